"""Layer ranges of a loaded vLLM model that share its weights.

A range is a shallow copy of the model's decoder with ``start_layer`` and ``end_layer`` moved, called as a pipeline
stage. No model is re-implemented.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import supports_pp
from vllm.sequence import IntermediateTensors

from vllm_kangaroo.integration.passes.ranks import pipeline_rank
from vllm_kangaroo.ladder.store import State
from vllm_kangaroo.options import OptionError


def find_decoder(model: nn.Module) -> nn.Module:
    """The submodule that holds the layers of a pipeline-capable model.

    Raises:
        OptionError: if the model is not of a kind that can be cut.
    """
    if supports_pp(model):
        for module in model.modules():
            if isinstance(getattr(module, "start_layer", None), int) and isinstance(
                getattr(module, "end_layer", None), int
            ):
                return module
    raise OptionError(
        f"{type(model).__name__} cannot be cut at an exit layer, since vLLM does not support it in a pipeline: "
        f"leave out speculative_config, or serve a model that supports pipeline parallelism."
    )


def state_keys(model: nn.Module, vllm_config: VllmConfig) -> tuple[str, ...]:
    """Names of the tensors that pass between two stages of the model (hidden states, residual).

    Raises:
        OptionError: if they are not all ``[tokens, hidden_size]``.
    """
    config = vllm_config.model_config
    make = cast(Callable[..., IntermediateTensors], model.make_empty_intermediate_tensors)
    tensors = make(1, config.dtype, torch.device("cpu")).tensors
    if any(tuple(part.shape) != (1, config.get_hidden_size()) for part in tensors.values()):
        raise OptionError(
            f"{type(model).__name__} hands more than hidden states and residual from layer to layer, which no exit "
            f"can keep: leave out speculative_config for this model."
        )
    return tuple(tensors)


class LayerRange(nn.Module):
    """Layers ``[start, end)`` of a decoder, sharing its weights."""

    def __init__(
        self, decoder: nn.Module, keys: tuple[str, ...], start: int, end: int, *, last: bool
    ) -> None:
        super().__init__()
        self.part = copy.copy(decoder)
        self.part.start_layer, self.part.end_layer = start, end  # type: ignore[assignment]
        self.keys = keys
        self.first, self.last = start == 0, last

    def forward(self, input_ids: Tensor | None, positions: Tensor, state: State | None) -> Any:
        """The stage's output: a :data:`State`, or normed hidden states ``[tokens, N]`` from the last stage."""
        below = (
            None if state is None else IntermediateTensors(dict(zip(self.keys, state, strict=True)))
        )
        with pipeline_rank(first=self.first, last=self.last):
            out = self.part.forward(
                input_ids=input_ids,
                positions=positions,
                intermediate_tensors=below,
                inputs_embeds=None,
            )
        return out if self.last else tuple(out[key] for key in self.keys)


def state_of(hidden_states: Tensor, residual: Tensor | None) -> State:
    """The state behind the two arguments in which compiled passes take it."""
    return (hidden_states,) if residual is None else (hidden_states, residual)


def residual_stream(state: State) -> Tensor:
    """The sum that the next layer's norm sees, ``[tokens, N]``."""
    return state[0] if len(state) == 1 else state[0] + state[1]
