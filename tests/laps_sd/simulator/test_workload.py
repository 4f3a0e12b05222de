"""Rounds and arrivals against the laws that they are drawn from."""

from __future__ import annotations

import numpy as np
import pytest

from tests.laps_sd.simulator.streams import FLAT, stream
from vllm_kangaroo.laps_sd.simulator import baselines
from vllm_kangaroo.laps_sd.simulator.engine import simulate
from vllm_kangaroo.laps_sd.simulator.workload import (
    Acceptance,
    draw_rounds,
)


def test_accepted_drafts_follow_their_law_and_reach_the_length():
    lengths = np.full(400, 200)
    law = Acceptance(drafts=4, spread=0.0, early_spread=0.0)
    rounds = draw_rounds(lengths, np.full(400, 0.6), law, np.random.default_rng(0))
    assert all(sum(each) + len(each) >= 199 > sum(each[:-1]) + len(each) - 1 for each in rounds)
    flat = np.concatenate([np.array(each) for each in rounds])
    assert flat.mean() == pytest.approx(sum(0.6**j for j in range(1, 5)), rel=0.02)
    assert draw_rounds(
        np.array([5, 1]), np.ones(2), Acceptance(drafts=0), np.random.default_rng(0)
    ) == [[0] * 4, []]


def test_loads_are_what_they_say():
    """At load 0.9 a work-conserving server of batches is busy about that share of the time."""
    workload, facts = stream(2000)
    outcome = simulate(workload, facts, baselines.fcfs(), FLAT, batch_size=1, stride=50)
    busy = workload.seconds_alone.sum() / outcome.finished.max()
    assert busy == pytest.approx(0.9, abs=0.05)
