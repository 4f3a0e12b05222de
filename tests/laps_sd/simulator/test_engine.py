"""The simulated engine against what can be worked out by hand."""

from __future__ import annotations

import pytest

from tests.laps_sd.simulator.streams import FLAT, stream
from vllm_kangaroo.laps_sd.lengths import EmpiricalLengths
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.policy_options import LapsSdOptions
from vllm_kangaroo.laps_sd.simulator import baselines
from vllm_kangaroo.laps_sd.simulator.engine import simulate
from vllm_kangaroo.laps_sd.simulator.true_work import TrueWork


def test_fcfs_at_batch_one_is_the_recursion_of_a_single_server():
    workload, facts = stream(300)
    outcome = simulate(workload, facts, baselines.fcfs(), FLAT, batch_size=1)
    free = 0.0
    for at, arrival in enumerate(workload.arrivals):
        free = max(free, arrival) + 0.01 * (facts[at].true_tokens or 0)
        assert outcome.finished[at] == pytest.approx(free)
        assert outcome.first_token[at] == pytest.approx(
            free - 0.01 * ((facts[at].true_tokens or 0) - 1)
        )


@pytest.mark.parametrize("drafts", [0, 4])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_every_policy_serves_every_request(batch_size: int, drafts: int):
    workload, facts = stream(120, batch_size, drafts)
    for policy in (
        baselines.fcfs(),
        baselines.las(),
        LapsSdPolicy(LapsSdOptions(), EmpiricalLengths()),
        baselines.srpt(TrueWork(workload, [each.prompt_tokens for each in facts], FLAT)),
    ):
        outcome = simulate(workload, facts, policy, FLAT, batch_size=batch_size)
        assert (outcome.finished >= outcome.first_token).all()
        assert (outcome.first_token > workload.arrivals).all()
        # None faster than alone, and all served by the time a lazy server would need.
        alone = workload.seconds_alone
        assert (outcome.finished - workload.arrivals >= alone - 1e-9).all()
        assert outcome.finished.max() <= workload.arrivals[-1] + alone.sum() + 1e-6


def test_a_stride_changes_next_to_nothing():
    workload, facts = stream(200)
    means = []
    for stride in (1, 4):
        policy = LapsSdPolicy(LapsSdOptions(), EmpiricalLengths())
        outcome = simulate(workload, facts, policy, FLAT, batch_size=1, stride=stride)
        means.append((outcome.finished - workload.arrivals).mean())
        steps = outcome.steps
    assert means[0] == pytest.approx(means[1], rel=0.1)
    assert steps < 0.5 * sum(each.true_tokens or 0 for each in facts)
