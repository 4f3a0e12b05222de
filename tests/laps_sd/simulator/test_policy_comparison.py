"""Policies beside each other: what knowing, or learning, the lengths of answers is worth."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.laps_sd.simulator.streams import FLAT, two_kinds
from vllm_kangaroo.laps_sd.policy_options import LapsSdError, LapsSdOptions
from vllm_kangaroo.laps_sd.simulator.policy_comparison import SimulationSettings, compare

pytestmark = pytest.mark.slow


def test_a_trace_arrives_at_its_own_times_or_is_refused():
    settings = SimulationSettings(requests=50, predictor="oracle", step_time=FLAT, arrivals="trace")
    timed = [replace(each, arrival_s=0.5 * at) for at, each in enumerate(two_kinds(100))]
    assert compare(timed, settings, ["fcfs"]).workload.arrivals.tolist() == [
        0.5 * at for at in range(50, 100)
    ]
    with pytest.raises(LapsSdError, match="not in the order of arrival_s"):
        compare(timed, settings.model_copy(update={"requests": 60}), ["fcfs"])
    with pytest.raises(LapsSdError, match="50 of 50 requests have no arrival_s"):
        compare(two_kinds(100), settings, ["fcfs"])


def test_knowing_lengths_helps_and_learning_comes_close():
    trace = two_kinds(1600)
    found = {}
    for predictor in ("oracle", "learned", "empirical"):
        settings = SimulationSettings(
            requests=700,
            predictor=predictor,
            step_time=FLAT,
            options=LapsSdOptions(min_history=100),
        )
        result = compare(trace, settings, ["fcfs", "laps-sd", "srpt"]).result.policies
        found[predictor] = result["laps-sd"].mean_latency_s / result["fcfs"].mean_latency_s
        best = result["srpt"].mean_latency_s / result["fcfs"].mean_latency_s
        assert result["laps-sd"].preemptions and result["laps-sd"].estimate_error is not None
    assert best <= found["oracle"] * 1.02
    assert found["oracle"] < 0.7
    assert found["learned"] < found["oracle"] + 0.05
    assert found["learned"] <= found["empirical"] < 0.95


def test_more_requests_than_the_trace_has_stops_the_learning():
    settings = SimulationSettings(requests=500, predictor="empirical", step_time=FLAT)
    comparison = compare(two_kinds(200), settings, ["laps-sd"])
    assert comparison.result.requests == 500
    assert (comparison.latencies("laps-sd") > 0).all()
