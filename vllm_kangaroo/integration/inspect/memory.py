"""Bytes of the tensors an engine holds, each counted once however many modules share it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from vllm_kangaroo.integration.runner_v1.proposer import EarlyExitProposer


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind tensors, shared memory counted once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def bytes_of_weights(holders: Iterable[Any]) -> int:
    """Bytes of the parameters and buffers of all modules that objects hold.

    Args:
        holders: modules, and the proposer of an early-exit engine, which holds some.
    """
    modules = {id(part): part for root in _roots(holders) for part in root.modules()}.values()
    tensors: list[Tensor] = []
    packed: dict[int, int] = {}
    for module in modules:
        tensors += module.parameters(recurse=False)
        tensors += module.buffers(recurse=False)
        for held in _packed(module):
            if isinstance(held, Tensor):
                tensors.append(held)
            else:
                packed[id(held)] = held.n * held.k * cast(Tensor, module.weight).element_size()
    return bytes_of(tensors) + sum(packed.values())


def _roots(holders: Iterable[Any]) -> Iterator[nn.Module]:
    for holder in holders:
        if isinstance(holder, nn.Module):
            yield holder
        elif isinstance(holder, list | tuple):
            yield from _roots(holder)
        elif isinstance(holder, partial):  # a compiled pass is called without its module's __call__
            yield from _roots(holder.args)
        elif isinstance(holder, EarlyExitProposer):
            yield from _roots([*holder.model.passes])


def _packed(module: nn.Module) -> Iterator[Any]:
    """What vLLM's CPU kernels hold in the place of a linear layer's weight, or beside it."""
    run = getattr(module, "cpu_linear", None)
    for cell in getattr(run, "__closure__", None) or ():
        held = cell.cell_contents
        if isinstance(held, Tensor) or {"n", "k", "handler_tensor"} <= set(dir(held)):
            yield held
