"""Layer ranges of a decoder that can be a pipeline stage: ``start_layer`` and ``end_layer`` moved on a shallow copy.

How the model calls its decoder (argument names, and what it does afterwards) is recorded from one run of the whole.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.sequence import IntermediateTensors

from vllm_kangaroo.integration.passes.cutting import Cut, LayerRange, refusal
from vllm_kangaroo.integration.passes.ranks import pipeline_rank
from vllm_kangaroo.integration.passes.trial import run_whole, trial_tokens, without_kv
from vllm_kangaroo.ladder.store import State

TOKENS, POSITIONS, BELOW = "input_ids", "positions", "intermediate_tensors"


@dataclass(frozen=True)
class Call:
    """How a decoder is called: for each argument which of the three it is, or its constant value."""

    args: tuple[tuple[str | None, Any], ...]
    kwargs: Mapping[str, tuple[str | None, Any]]

    @classmethod
    def recorded(cls, args: Sequence[Any], kwargs: Mapping[str, Any], **given: Any) -> Call | None:
        """From the arguments of a call and the three objects ``given`` to the model; None if they do not arrive as they are."""

        def kind(value: Any) -> tuple[str | None, Any]:
            name = next((name for name, each in given.items() if value is each), None)
            return name, None if name else value

        found = cls(
            tuple(kind(value) for value in args), {k: kind(value) for k, value in kwargs.items()}
        )
        every = [*found.args, *found.kwargs.values()]
        whole = sorted(name for name, _ in every if name) == sorted(given)
        return found if whole and not any(isinstance(value, Tensor) for _, value in every) else None

    def fill(self, **given: Any) -> tuple[list[Any], dict[str, Any]]:
        """Arguments of a call with other tokens, positions and state below."""
        args = [given[name] if name else value for name, value in self.args]
        return args, {k: given[name] if name else v for k, (name, v) in self.kwargs.items()}

    def tokens_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What stands in the place of the tokens."""
        for (name, _), value in zip(self.args, args, strict=True):
            if name == TOKENS:
                return value
        return next(kwargs[k] for k, (name, _) in self.kwargs.items() if name == TOKENS)


class PipelineRange(LayerRange):
    """A pipeline stage.

    Args:
        part: the stage: a decoder, or what holds it and hands everything on to it.
        keys: names of the tensors between stages; ``held`` are those of them that are tensors and not None.
    """

    def __init__(
        self, part: nn.Module, call: Call, keys: Sequence[str], held: Sequence[str], **ends: bool
    ) -> None:
        super().__init__(**ends)
        self.part = part
        self.call = call
        self.keys, self.held = tuple(keys), tuple(held)

    def forward(self, input_ids: Tensor | None, positions: Tensor, state: State | None) -> Any:
        """See :class:`LayerRange`."""
        below = None
        if state is not None:
            parts = dict(zip(self.held, state, strict=True))
            below = IntermediateTensors({key: parts.get(key) for key in self.keys})
        args, kwargs = self.call.fill(
            input_ids=input_ids, positions=positions, intermediate_tensors=below
        )
        with pipeline_rank(first=self.first, last=self.last):
            out = self.part.forward(*args, **kwargs)
        return out if self.last else tuple(out[key] for key in self.held)


class _Echo(nn.Module):
    """In the place of a decoder: hands on what stands in the place of the tokens."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.call.tokens_of(args, kwargs)


class PipelineCut(Cut):
    """A model whose layers a decoder with ``start_layer`` and ``end_layer`` runs.

    Args:
        decoder_name: the decoder's name in ``target``.

    Raises:
        OptionError: if it cannot be run as a stage.
    """

    def __init__(self, target: nn.Module, decoder_name: str, vllm_config: VllmConfig) -> None:
        self._path = decoder_name.split(".")
        outer, self.call, finish = self._record(target, vllm_config)
        self._inner = self._path[outer:]
        self._part = target.get_submodule(".".join(self._path[:outer]))
        decoder = target.get_submodule(decoder_name)
        super().__init__(target, getattr(decoder, "norm", None), finish)
        self.keys, self.held = self._state_keys(vllm_config)

    def range(self, start: int, end: int, *, last: bool = False) -> PipelineRange:
        """See :meth:`Cut.range`."""
        return PipelineRange(
            self._stage(start, end), self.call, self.keys, self.held, first=start == 0, last=last
        )

    def _stage(self, start: int, end: int) -> nn.Module:
        part, inner = copied_path(self._part, self._inner)
        inner.start_layer, inner.end_layer = start, end  # type: ignore[assignment]
        return part

    def _record(self, target: nn.Module, vllm_config: VllmConfig) -> tuple[int, Call, Any]:
        """How many names of the path lead to the outermost module that serves as a stage, its call, what comes after it."""
        heard: dict[int, tuple[Call | None, Any]] = {}
        input_ids, positions = trial_tokens(vllm_config)
        below = IntermediateTensors({})
        modules = [
            target.get_submodule(".".join(self._path[:depth]))
            for depth in range(1, len(self._path) + 1)
        ]

        def listen(depth: int, module: nn.Module) -> None:
            original = module.forward

            def forward(*args: Any, **kwargs: Any) -> Any:
                call = Call.recorded(
                    args,
                    kwargs,
                    input_ids=input_ids,
                    positions=positions,
                    intermediate_tensors=below,
                )
                out = original(*args, **kwargs)
                heard[depth] = (call, out)
                return out

            module.forward = forward

        with without_kv(target, vllm_config):
            for depth, module in enumerate(modules, start=1):
                listen(depth, module)
            try:
                whole = run_whole(target, input_ids, positions, below)
            finally:
                for module in modules:
                    del module.forward
        for depth, (call, out) in sorted(heard.items()):
            if call is not None:
                return depth, call, None if out is whole else self._after(target, depth, call)
        raise refusal(
            target,
            f"its {type(modules[-1]).__name__} is called with something else than tokens, positions and the state below",
        )

    def _after(self, target: nn.Module, depth: int, call: Call) -> Any:
        twin, parent = copied_path(target, self._path[: depth - 1])
        parent._modules = {**parent._modules, self._path[depth - 1]: _Echo(call)}

        def finish(hidden_states: Tensor) -> Tensor:
            found: Tensor = run_whole(twin, hidden_states, hidden_states)
            return found

        return finish

    def _state_keys(self, vllm_config: VllmConfig) -> tuple[list[str], list[str]]:
        input_ids, positions = trial_tokens(vllm_config)
        args, kwargs = self.call.fill(
            input_ids=input_ids, positions=positions, intermediate_tensors=None
        )
        with without_kv(self.target, vllm_config), pipeline_rank(first=True, last=False):
            try:
                out = self._stage(0, 1).forward(*args, **kwargs)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}".splitlines()[0]
                raise refusal(
                    self.target, f"its first layer does not run without the others ({problem})"
                ) from error
        if not isinstance(out, IntermediateTensors):
            raise refusal(self.target, "its first layer without the others hands on no state")
        keys = list(out.tensors)
        return keys, [key for key in keys if out.tensors[key] is not None]


def copied_path(module: nn.Module, path: Sequence[str]) -> tuple[nn.Module, nn.Module]:
    """A copy of ``module`` that shares all but the modules along ``path``, which are copies; and the last of these."""
    top = inner = copy.copy(module)
    for name in path:
        child = copy.copy(inner.get_submodule(name))
        inner._modules = {**inner._modules, name: child}
        inner = child
    return top, inner
