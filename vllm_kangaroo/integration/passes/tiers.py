"""Tiers of a loaded vLLM model: layer ranges that share its weights, compiled where vLLM would compile.

A tier is a shallow copy of the model's decoder with ``start_layer`` and ``end_layer`` moved, called as a pipeline
stage. No model is re-implemented. Each compiled pass is its own class with its own code object, since vLLM drops
Dynamo's guards and keys compiled code by code object and qualified name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import supports_pp
from vllm.sequence import IntermediateTensors

from vllm_kangaroo.integration.passes.adapter import AdapterLayer
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


class ExitHead(nn.Module):
    """Turns a tier's output into logits: an adapter, or the target's own final norm, then the target's LM head."""

    def __init__(self, model: nn.Module, norm: LayerRange, adapter: AdapterLayer | None) -> None:
        super().__init__()
        self.norm = norm
        self.adapter = adapter
        # A bound method, so that the model does not become a submodule of ours.
        self._compute_logits = cast(Callable[[Tensor], Tensor], model.compute_logits)

    def forward(self, positions: Tensor, state: State) -> Tensor:
        """States ``[tokens, N]`` -> logits ``[tokens, V]``; leaves the states as they are."""
        if self.adapter is None:
            # The norm may work in place, and the states are kept for the tier above.
            normed = self.norm(None, positions, tuple(part.clone() for part in state))
        else:
            normed = self.adapter(positions, _residual_stream(state))
        return self._compute_logits(normed)


class _Pass(nn.Module):
    """Base of everything that is compiled as one graph."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "", **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class BottomPass(_Pass):
    """Tier 1 over prompt positions and last drafts; an adapter sees its keys and values written, nothing more."""

    tier: LayerRange
    adapter: AdapterLayer | None

    def forward(self, input_ids: Tensor, positions: Tensor) -> tuple[State, Tensor | None]:
        state = self.tier(input_ids, positions, None)
        return state, _absorbed(self.adapter, positions, state)


class MiddlePass(_Pass):
    """Layers between two exits, over positions that no intermediate verification has seen."""

    tier: LayerRange
    adapter: AdapterLayer | None

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[State, Tensor | None]:
        state = self.tier(None, positions, _state(hidden_states, residual))
        return state, _absorbed(self.adapter, positions, state)


class CheckingPass(_Pass):
    """Layers between two exits and the exit head: the intermediate verifier's own next tokens."""

    tier: LayerRange
    exit: ExitHead

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[State, Tensor]:
        state = self.tier(None, positions, _state(hidden_states, residual))
        return state, self.exit(positions, state).argmax(dim=-1)


class TopPass(_Pass):
    """The remaining layers and the final norm."""

    tier: LayerRange

    def forward(self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None) -> Tensor:
        return cast(Tensor, self.tier(None, positions, _state(hidden_states, residual)))


class JoinedPass(_Pass):
    """All tiers: those below the last over a few tokens, the last over these and what is kept of others.

    What a verification needs after drafting, as one graph in place of one per tier: entering a compiled graph costs
    a small model about as much as a layer does.
    """

    lower: nn.ModuleList
    adapters: list[AdapterLayer | None]
    top: LayerRange

    def forward(
        self,
        input_ids: Tensor,
        tail_positions: Tensor,
        positions: Tensor,
        order: Tensor,
        hidden_states: Tensor,
        residual: Tensor | None,
    ) -> tuple[Tensor, list[Tensor]]:
        absorbed = []
        state: State | None = None
        for at, tier in enumerate(self.lower):
            state = tier(input_ids if at == 0 else None, tail_positions, state)
            adapter = self.adapters[at]
            if adapter is not None:
                absorbed.append(adapter.absorb(tail_positions, _residual_stream(state)))
        assert state is not None
        kept = _state(hidden_states, residual)
        joined = tuple(
            torch.cat(parts).index_select(0, order) for parts in zip(kept, state, strict=True)
        )
        return cast(Tensor, self.top(None, positions, joined)), absorbed


class DraftingPass(_Pass):
    """Tier 1 and the exit head: one token in, the next token and its probability out."""

    tier: LayerRange
    exit: ExitHead

    def forward(self, input_ids: Tensor, positions: Tensor) -> tuple[State, Tensor, Tensor]:
        state = self.tier(input_ids, positions, None)
        logits = self.exit(positions, state).float()
        top, token_ids = logits.max(dim=-1)
        return state, token_ids.to(torch.int32), (top - logits.logsumexp(dim=-1)).exp()


class DrawingPass(_Pass):
    """Tier 1 and the exit head: one token in, float32 logits of the next out."""

    tier: LayerRange
    exit: ExitHead

    def forward(self, input_ids: Tensor, positions: Tensor) -> tuple[State, Tensor]:
        state = self.tier(input_ids, positions, None)
        return state, self.exit(positions, state).float()


class WeighingPass(_Pass):
    """Layers between two exits and the exit head: the intermediate verifier's float32 logits."""

    tier: LayerRange
    exit: ExitHead

    def forward(
        self, positions: Tensor, hidden_states: Tensor, residual: Tensor | None
    ) -> tuple[State, Tensor]:
        state = self.tier(None, positions, _state(hidden_states, residual))
        return state, self.exit(positions, state).float()


def _state(hidden_states: Tensor, residual: Tensor | None) -> State:
    return (hidden_states,) if residual is None else (hidden_states, residual)


def _absorbed(adapter: AdapterLayer | None, positions: Tensor, state: State) -> Tensor | None:
    return None if adapter is None else adapter.absorb(positions, _residual_stream(state))


def _residual_stream(state: State) -> Tensor:
    return state[0] if len(state) == 1 else state[0] + state[1]


def compiled(base: type[_Pass], label: str, vllm_config: VllmConfig, **parts: Any) -> _Pass:
    """An instance of ``base`` that vLLM's machinery compiles on its own, or runs eagerly under ``enforce_eager``.

    ``label`` tells apart passes of one kind (it enters the compile cache's key); token counts are dynamic.
    """
    name = f"{base.__name__}[{label}]"
    source = base.forward
    forward = FunctionType(
        source.__code__.replace(co_name=name),
        source.__globals__,
        name,
        source.__defaults__,
        source.__closure__,
    )
    forward.__annotations__ = dict(source.__annotations__)
    forward.__qualname__, forward.__module__ = name, source.__module__
    own = type(name, (base,), {"forward": forward, "__module__": base.__module__})
    names = [n for n in source.__annotations__ if n != "return"]
    decorated = support_torch_compile(dynamic_arg_dims=dict.fromkeys(names, 0))(own)
    return cast(_Pass, decorated(vllm_config=vllm_config, **parts))


def direct(run: Any) -> Any:
    """What to call in place of a pass that has run once: its compiled function, or the pass itself if it runs eagerly.

    vLLM drops all guards. Around a compiled function it still binds the arguments for them after a fresh compile,
    and enters a context for CUDA graphs, which early-exit passes do not capture: a short pass feels both.
    """
    compiled_fn = getattr(run, "aot_compiled_fn", None)
    if compiled_fn is None:
        return run
    if run.vllm_config.compilation_config.dynamic_shapes_config.evaluate_guards:
        return run
    return partial(compiled_fn.fn, run)
