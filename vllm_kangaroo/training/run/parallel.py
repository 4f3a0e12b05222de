"""Several processes that train together, as ``torchrun`` starts them: each takes a share of every
step's windows, and gradients are added up over all of them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

# All may have to wait for one that loads a model or lets it answer, longer than torch would by itself.
_PATIENCE = timedelta(days=7)

T = TypeVar("T")


def join(device: str) -> str:
    """Join the group that ``torchrun`` has set up, if it has; returns this process's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    kind = torch.device(device).type
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=_PATIENCE)
    return device


def leave() -> None:
    """Leave the group, if there is one, and end gloo's threads.

    They give tensors back to Python a little after a sum is known, and abort the process if Python
    has ended by then. They end with the last reference to the group: torch's modules for sharded
    weights go in cycles, and its cache of how to compute with them is never emptied by itself.
    """
    if not distributed.is_initialized():
        return
    gloo = distributed.get_backend() == "gloo"
    distributed.destroy_process_group()
    if gloo:
        from torch.distributed.tensor import debug  # which takes seconds to import

        gc.collect()
        debug._clear_sharding_prop_cache()
        gc.collect()


def size() -> int:
    """Processes that train together."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """This process's number among them; number 0 alone prints and writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def wait() -> None:
    """Go on only when all have come this far."""
    if distributed.is_initialized():
        distributed.barrier()


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """The processes do what follows one after the other, in the order of their numbers."""
    for _ in range(rank()):
        wait()
    yield
    for _ in range(rank(), size()):
        wait()


def deal(items: Sequence[T]) -> list[T | None]:
    """This process's share of some items, as many for each process: None where there is none left."""
    mine = items[rank() :: size()]
    return [*mine, *[None] * (-(-len(items) // size()) - len(mine))]


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their sums over all processes; one without counts as zero."""
    if size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        distributed.all_reduce(parameter.grad)


def total(values: list[float], device: str) -> list[float]:
    """Sums of some numbers over all processes."""
    if size() == 1:
        return values
    tensor: Tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor)
    found: list[float] = tensor.tolist()
    return found
