"""Layer ranges of a model of vLLM's Transformers backend: a shallow copy in which the other layers hand on their input."""

from __future__ import annotations

import copy
import sys
from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.sequence import IntermediateTensors

from vllm_kangaroo.integration.passes.cutting import Cut, LayerRange, refusal
from vllm_kangaroo.integration.passes.pipeline_cut import copied_path
from vllm_kangaroo.integration.passes.ranks import RankView
from vllm_kangaroo.ladder.store import State

BACKEND = "vllm.model_executor.models.transformers.base"


def of_backend(target: nn.Module) -> bool:
    """Whether vLLM runs ``target`` by its Transformers backend."""
    module = sys.modules.get(BACKEND)  # imported if it has built the model
    return module is not None and isinstance(target, module.Base)


def _skip(self: nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


def skipped(module: nn.Module) -> nn.Module:
    """A copy of ``module`` with all its attributes, which models may read, that hands on its input."""
    twin = copy.copy(module)
    twin.__class__ = type(f"Skipped{type(module).__name__}", (type(module),), {"forward": _skip})
    return twin


class BackendRange(LayerRange):
    """A stage whose ``pp_group`` tells it its place, as the backend's ``forward`` asks."""

    def __init__(self, part: nn.Module, **ends: bool) -> None:
        super().__init__(**ends)
        self.part = part

    def forward(self, input_ids: Tensor | None, positions: Tensor, state: State | None) -> Any:
        """See :class:`LayerRange`."""
        below = None if state is None else IntermediateTensors({"hidden_states": state[0]})
        out = self.part.forward(
            input_ids=input_ids, positions=positions, intermediate_tensors=below, inputs_embeds=None
        )
        return out if self.last else (out["hidden_states"],)


class BackendCut(Cut):
    """A model of the Transformers backend.

    Raises:
        OptionError: if it has not one list of layers, without which vLLM does not cut it either.
    """

    def __init__(self, target: nn.Module, vllm_config: VllmConfig) -> None:
        model: Any = target.model
        decoder: Any = model
        names = list(model._pp_plan or {})
        if not names:  # as vLLM's own pipelines of such models
            decoder = model.get_decoder()
            children = decoder.named_children()
            names = [name for name, each in children if next(each.parameters(), None) is not None]
        lists = [name for name in names if isinstance(decoder.get_submodule(name), nn.ModuleList)]
        if len(lists) != 1:
            raise refusal(
                target,
                f"Transformers' {type(model).__name__} has {len(lists)} lists of layers and not one",
            )
        inner = next(name for name, module in model.named_modules() if module is decoder)
        prefix = f"model.{inner}." if inner else "model."
        self._layers = prefix + lists[0]
        self._after = [prefix + name for name in names[names.index(lists[0]) + 1 :]]
        super().__init__(target, getattr(decoder, "norm", None), None)

    def range(self, start: int, end: int, *, last: bool = False) -> BackendRange:
        """See :meth:`Cut.range`."""
        path, _, name = self._layers.rpartition(".")
        part, parent = copied_path(self.target, path.split("."))
        layers = parent.get_submodule(name)
        parts: dict[str, nn.Module] = {
            name: nn.ModuleList(
                layer if start <= at < end else skipped(layer)
                for at, layer in enumerate(layers.children())
            )
        }
        parent._modules = {**parent._modules, **parts}
        if not last:
            for after in self._after:
                holder, _, leaf = after.rpartition(".")
                module = part.get_submodule(holder)
                module._modules = {**module._modules, leaf: skipped(module.get_submodule(leaf))}
        group: Any = part.pp_group
        part.pp_group = RankView(group, first=start == 0, last=last)  # type: ignore[assignment]
        return BackendRange(part, first=start == 0, last=last)
