"""Several processes that train together, as ``torchrun`` starts them: each has the whole model and a
share of every step's windows, and gradients are added up over all of them."""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn


def join(device: str) -> str:
    """Join the group that ``torchrun`` has set up, if it has; returns this process's device."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    kind = torch.device(device).type
    if kind == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if kind == "cuda" else "gloo")
    return device


def leave() -> None:
    """Leave the group, if there is one."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


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
