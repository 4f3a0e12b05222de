"""The oracle's knowledge is what the simulator takes, and the bound holds for every policy of the package."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kangaroo.laps_sd.lengths import RequestFacts
from vllm_kangaroo.laps_sd.policy_options import LapsSdOptions
from vllm_kangaroo.laps_sd.simulator import baselines
from vllm_kangaroo.laps_sd.simulator.engine import simulate
from vllm_kangaroo.laps_sd.simulator.policy_comparison import (
    POLICIES,
    SimulationSettings,
    compare,
)
from vllm_kangaroo.laps_sd.simulator.step_time import StepTime
from vllm_kangaroo.laps_sd.simulator.true_work import TrueWork, least_mean_latency
from vllm_kangaroo.laps_sd.simulator.workload import Acceptance, Workload
from vllm_kangaroo.laps_sd.trace import TraceRequest

pytestmark = pytest.mark.slow

STEP_TIMES = st.builds(
    StepTime,
    fixed=st.sampled_from([1e-4, 0.01]),
    per_token=st.sampled_from([0.0, 1e-4]),
    per_prompt_token=st.sampled_from([None, 1e-5, 1e-3]),
    per_kv=st.sampled_from([0.0, 1e-6, 1e-4]),
    per_request=st.sampled_from([0.0, 1e-3]),
    draft=st.sampled_from([0.0, 2e-3]),
)
REQUESTS = st.tuples(
    st.sampled_from([1, 7, 300, 2047, 2048, 2049, 6000]),  # prompts, of up to three steps
    st.sampled_from([1, 2, 5, 30, 200]),  # answers
    st.sampled_from([0.0, 0.0, 0.003, 0.1, 3.0]),  # seconds since the one before arrived
)


@given(
    requests=st.lists(REQUESTS, min_size=2, max_size=20),
    step_time=STEP_TIMES,
    drafts=st.sampled_from([0, 2]),
    predictor=st.sampled_from(["oracle", "empirical"]),
    options=st.fixed_dictionaries(
        {"max_wait_s": st.sampled_from([0.05, 300.0]), "base_rounds": st.sampled_from([1.0, 4.0])}
    ),
    stride=st.sampled_from([1, 4]),
    seed=st.integers(0, 3),
)
@settings(max_examples=150, deadline=None)
def test_no_policy_beats_the_bound_with_one_request_at_a_time(
    requests: list[tuple[int, int, float]],
    step_time: StepTime,
    drafts: int,
    predictor: Any,
    options: dict[str, Any],
    stride: int,
    seed: int,
):
    arrivals = np.cumsum([gap for *_, gap in requests]).tolist()
    later = [
        TraceRequest([1] * prompt, output, arrival_s=arrival)
        for (prompt, output, _), arrival in zip(requests, arrivals, strict=True)
    ]
    trace = [TraceRequest([1] * 20, 30)] * len(later) + later
    given_settings = SimulationSettings(
        requests=len(later),
        predictor=predictor,
        arrivals="trace",
        step_time=step_time,
        acceptance=Acceptance(drafts=drafts),
        options=LapsSdOptions.model_validate(options),
        stride=stride,
        seed=seed,
    )
    result = compare(trace, given_settings).result
    assert set(result.policies) == set(POLICIES)
    assert result.bound_mean_latency_s is not None
    for name, found in result.policies.items():
        assert found.mean_latency_s >= result.bound_mean_latency_s * (1 - 1e-9), name


@given(
    requests=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 6)), min_size=1, max_size=5),
)
@settings(max_examples=200, deadline=None)
def test_the_bound_is_the_best_of_all_schedules(requests: list[tuple[int, int]]):
    """Of seconds as units, that can be interrupted: some order by priority is among the best ones."""
    arrivals, work = (
        np.array(each, dtype=np.float64) for each in zip(*sorted(requests), strict=True)
    )
    best = min(_mean_by_priority(arrivals, work, order) for order in permutations(range(len(work))))
    assert least_mean_latency(arrivals, work) == pytest.approx(best)


def _mean_by_priority(arrivals: Any, work: Any, order: tuple[int, ...]) -> float:
    left, now, ended = work.tolist(), 0, [0] * len(work)
    while any(left):
        ready = [at for at in order if left[at] and arrivals[at] <= now]
        now += 1
        if ready:
            left[ready[0]] -= 1
            if not left[ready[0]]:
                ended[ready[0]] = now
    return float((np.array(ended) - arrivals).mean())


@given(
    prompts=st.lists(st.sampled_from([1, 50, 2048, 5000]), min_size=1, max_size=4),
    step_time=STEP_TIMES,
    stride=st.sampled_from([1, 4]),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_what_is_left_is_what_the_simulator_takes(
    prompts: list[int], step_time: StepTime, stride: int, data: st.DataObject
):
    rounds = [data.draw(st.lists(st.integers(0, 2), max_size=12)) for _ in prompts]
    workload = Workload(np.zeros(len(prompts)), rounds, 2, np.ones(len(prompts)))
    facts = [
        RequestFacts(prompt, 4096, true_tokens=1 + sum(each) + len(each))
        for prompt, each in zip(prompts, rounds, strict=True)
    ]
    work = TrueWork(workload, prompts, step_time)
    finished = simulate(
        workload, facts, baselines.fcfs(), step_time, batch_size=1, stride=stride
    ).finished
    assert np.cumsum(work.totals()) == pytest.approx(finished)
    for request, prompt in enumerate(prompts):
        prompt_step = step_time.seconds(1, 2048, 2048, 0, 2048)
        if prompt > 2048:
            less = work.left(request) - work.left(request, prompt_tokens=2048)
            assert less == pytest.approx(prompt_step)
        for done in range(len(rounds[request])):
            kv = prompt + sum(rounds[request][:done]) + done
            less = work.left(request, prompt, done) - work.left(request, prompt, done + 1)
            assert less == pytest.approx(step_time.seconds(1, 3, kv, 2))


def test_prompts_count_for_the_oracle():
    """Long prompts with short answers go behind short prompts with answers of a few rounds more."""
    step_time = StepTime(fixed=0.01, per_token=1e-3)
    prompts, lengths = [2000, 10] * 20, [2, 6] * 20
    workload = Workload(np.zeros(40), [[0] * (each - 1) for each in lengths], 0, np.ones(40))
    facts = [
        RequestFacts(prompt, 4096, true_tokens=length)
        for prompt, length in zip(prompts, lengths, strict=True)
    ]
    for batch_size in (1, 4):
        work = TrueWork(workload, prompts, step_time, batch_size=batch_size)
        policy = baselines.srpt(work)
        finished = simulate(workload, facts, policy, step_time, batch_size=batch_size).finished
        assert finished[1::2].max() < finished[::2].min()
    assert work.left(0) > work.left(1)


def test_the_oracle_comes_close_to_the_bound_where_steps_are_short():
    trace = [TraceRequest([1] * (20 + 700 * (at % 3)), 10 + 90 * (at % 2)) for at in range(600)]
    settings_ = SimulationSettings(requests=300, predictor="oracle", load=0.9)
    result = compare(trace, settings_, ["srpt", "fcfs"]).result
    assert result.bound_mean_latency_s is not None
    assert result.policies["srpt"].mean_latency_s < 1.02 * result.bound_mean_latency_s
    assert result.policies["fcfs"].mean_latency_s > 1.2 * result.bound_mean_latency_s
    in_batches = settings_.model_copy(update={"batch_size": 4})
    assert compare(trace, in_batches, ["fcfs"]).result.bound_mean_latency_s is None
