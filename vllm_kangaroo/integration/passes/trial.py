"""Trying a loaded model on a few tokens before there is any KV cache, to see whether its parts make up the whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.forward_context import set_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

from vllm_kangaroo.integration.passes.cutting import Cut, refusal

TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-6}
"""Relative error within which two results are one; for half precision it is 2e-2."""


def trial_tokens(vllm_config: VllmConfig) -> tuple[Tensor, Tensor]:
    """Token ids and positions, as the runner gives them to a model: ``[tokens]`` each."""
    config, device = vllm_config.model_config, vllm_config.device_config.device
    last = min(5, config.max_model_len - 1)
    ids = torch.tensor([1, config.get_vocab_size() // 2], dtype=torch.int32, device=device)
    return ids, torch.tensor([min(1, last), last], dtype=torch.int64, device=device)


@contextmanager
def without_kv(target: nn.Module, vllm_config: VllmConfig) -> Iterator[None]:
    """Within the context ``target`` runs eagerly, and its attention layers attend to nothing kept.

    vLLM's own profiling runs do so too, but some backends then leave their output as it lies in memory. Here it
    depends on queries, keys and values of the token itself.
    """
    layers = [module for module in target.modules() if isinstance(module, AttentionLayerBase)]
    for layer in layers:
        layer.forward = partial(_mixture, layer)
    try:
        with (
            torch.inference_mode(),
            set_forward_context(None, vllm_config, num_tokens=2, skip_compiled=True),
        ):
            yield
    finally:
        for layer in layers:
            del layer.forward


def _mixture(layer: Any, *args: Any, **kwargs: Any) -> Tensor:
    """In the place of an attention layer's ``forward``: the sum of its inputs, cut to the width of its output."""
    given = [*args, *kwargs.values()]
    inputs = [each.reshape(len(each), -1) for each in given if isinstance(each, Tensor)]
    shape = next((each for each in given if isinstance(each, torch.Size)), None)
    shape = shape or torch.Size((len(inputs[0]), layer.num_heads * layer.head_size_v))
    flat = torch.cat(inputs, dim=1)
    width = shape[1:].numel()
    flat = nn.functional.pad(flat, (0, -flat.shape[1] % width))
    return flat.view(len(flat), -1, width).sum(dim=1).view(shape)


def run_whole(target: nn.Module, input_ids: Tensor, positions: Tensor, below: Any = None) -> Any:
    """The uncut model's output, called as vLLM's runner calls it."""
    return target.forward(
        input_ids=input_ids, positions=positions, intermediate_tensors=below, inputs_embeds=None
    )


def check_parts(cut: Cut, exits: Sequence[int], vllm_config: VllmConfig) -> None:
    """Run a few tokens through the ranges between ``exits`` and through the whole model.

    Args:
        exits: layer numbers in order, the last being all layers.

    Raises:
        OptionError: if a range cannot be run, or the results differ.
    """
    hidden_size = vllm_config.model_config.get_hidden_size()
    input_ids, positions = trial_tokens(vllm_config)
    with without_kv(cut.target, vllm_config):
        whole = run_whole(cut.target, input_ids, positions)
        try:
            states = [cut.range(0, exits[0])(input_ids, positions, None)]
            for start, end in pairwise(exits):
                states.append(cut.range(start, end)(None, positions, _copies(states[-1])))
            *lower, before_norm = states
            top = cut.range(*exits[-2:], last=True)(None, positions, _copies(lower[-1]))
            norm = cut.range(exits[-1], exits[-1], last=True)(None, positions, _copies(before_norm))
        except Exception as error:
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
            raise refusal(cut.target, f"its layers do not run in parts ({problem})") from error
        shapes = {tuple(part.shape) for state in states for part in state}
        if shapes != {(len(input_ids), hidden_size)}:
            raise refusal(
                cut.target,
                f"it hands more than hidden states and residual from layer to layer (shapes {sorted(shapes)} for "
                f"{len(input_ids)} tokens of hidden size {hidden_size}), which no exit keeps",
            )
        if not (_same(cut.finished(top), whole) and _same(cut.finished(norm), whole)):
            raise refusal(
                cut.target, "its layers run in parts give another result than run at once"
            )


def _copies(state: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(part.clone() for part in state)  # a norm may work in place


def _same(found: Any, expected: Any) -> bool:
    if not (isinstance(found, Tensor) and found.shape == expected.shape):
        return False
    found, expected = found.double(), expected.double()
    bound = TOLERANCE.get(expected.dtype, 2e-2)
    return bool((found - expected).norm() <= bound * expected.norm())
