"""What stands in for the interpreter's own work yields what it would."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from vllm.triton_utils import tl, triton
from vllm.v1.worker.gpu.sample import gumbel

from tests.v2 import quick_interpreter

ORIGINAL = gumbel.murmur3_uniform32  # as this module is imported, before a test runs


@triton.jit
def _both(out: Any, seed_ptr: Any, pos_ptr: Any, SIZE: tl.constexpr) -> None:
    row = tl.program_id(0)
    offset = tl.arange(0, SIZE)
    seed, pos = tl.load(seed_ptr + row), tl.load(pos_ptr + row)
    tl.store(out + row * SIZE + offset, ORIGINAL(seed, pos, offset))


@pytest.mark.core
def test_random_numbers_are_vllms_own() -> None:
    seeds = torch.tensor([0, 11, -5, 2**62 + 12345], dtype=torch.int64)
    positions = torch.tensor([0, 3, 2**30 + 7, 2**30], dtype=torch.int64)
    wanted = torch.zeros(4, 16)
    _both[(4,)](wanted, seeds, positions, SIZE=16)
    assert gumbel.murmur3_uniform32 is quick_interpreter.uniform_of_tensors
    offsets = torch.arange(16, dtype=torch.int32).numpy()
    for row, seed, pos in zip(wanted, seeds.tolist(), positions.tolist(), strict=True):
        found = quick_interpreter.uniform(seed, pos, offsets)
        assert (row.numpy() == found).all()
    assert len(wanted.unique()) == wanted.numel()
