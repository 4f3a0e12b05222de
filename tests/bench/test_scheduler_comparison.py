"""What replay prepares before an engine is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vllm_kangaroo.bench.scheduler_comparison import (
    Pair,
    ReplayResult,
    Run,
    full_batches,
    poisson,
    teach,
    usable,
)
from vllm_kangaroo.laps_sd.learned import LearnedLengths
from vllm_kangaroo.laps_sd.trace import DEFAULT_TRACE, TraceRequest, read_trace


def test_requests_that_do_not_fit_are_left_out():
    trace = [TraceRequest([1] * 10, 5), TraceRequest([1] * 10, 50), TraceRequest([1] * 96, 5)]
    assert usable(trace, max_model_len=100, max_tokens=20) == trace[:1]
    assert usable(trace, max_model_len=100) == trace[:2]


def test_capacity_ends_where_batches_are_no_longer_full():
    ended = np.array([1.0, 2.0, 9.0, 3.0, 4.0, 20.0])  # two long ones are left at the end
    assert full_batches(ended, batch_size=2) == 4 / 4.0
    for places in (6, 64):  # nobody waits, and the first to end says nothing of the others
        assert full_batches(ended, places) == 6 / ended.max()


def test_arrivals_are_those_of_the_rate_and_the_seed():
    trace = [TraceRequest([1], 1)] * 4000
    one, same, other = (poisson(trace, 8.0, seed).arrivals for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
    assert one[-1] == pytest.approx(4000 / 8.0, rel=0.1)


def test_the_predictor_starts_with_what_earlier_requests_taught(tmp_path: Path):
    file = tmp_path / "lengths.npz"
    teach(read_trace(DEFAULT_TRACE)[:320], 1024, file)
    assert LearnedLengths(file=file).learnt == 320


def test_ratios_are_of_one_stream():
    def run(mean: float) -> Run:
        return Run(
            simulated_mean_s=1.1 * mean,
            simulated_srpt_s=0.55 * mean,
            mean_latency_s=mean,
            p50_latency_s=1,
            p90_latency_s=1,
            p99_latency_s=1,
            seconds=9,
            tokens_per_round=2,
            tokens=9,
        )

    pairs = [
        Pair(fcfs=run(2.0), laps_sd=run(1.0)),
        Pair(fcfs=run(4.0), laps_sd=run(3.0)),
    ]
    result = ReplayResult(settings={}, pairs=pairs)
    assert (result.ratio.low, result.ratio.median, result.ratio.high) == (0.5, 0.625, 0.75)
    assert [pair.oracle for pair in pairs] == [0.5, 0.5]
