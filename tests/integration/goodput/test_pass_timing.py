"""What is made of timings; the passes themselves are timed in the end-to-end tests."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from vllm_kangaroo.integration.goodput.pass_timing import DOUBTS, PassTimer


def test_a_size_that_seems_dearer_than_a_larger_one_is_timed_again() -> None:
    """One that was disturbed the first time is not, one that always is stays so."""
    config: Any = SimpleNamespace(
        device_config=SimpleNamespace(device=torch.device("cpu")),
        scheduler_config=SimpleNamespace(max_num_batched_tokens=4, max_num_seqs=4),
    )
    timer, runs = PassTimer(config, lambda found: found, lambda: 0.0), [0, 0, 0, 0]

    def seconds(run: Any, tokens: int) -> float:
        assert run() == tokens
        runs[tokens - 1] += 1
        disturbed = tokens == 1 and runs[0] == 1
        return {1: 0.01, 2: 0.012, 3: 0.01, 4: 0.01}[tokens] + 0.005 * disturbed

    timer._seconds = seconds  # type: ignore[method-assign]
    curve = timer._curve(lambda tokens: lambda: tokens, 4)
    assert curve.seconds == (0.01, 0.012, 0.01, 0.01)
    assert runs == [2, 1 + DOUBTS, 1, 1]
