"""Drafts that were looked up: how many are proposed, alone and where an exit drafts too."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.cost_profile import CostProfile, Curve
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.lookup_control import LookupControl, Surplus

LOAD = Load(2, 200)
SLOTS = np.arange(2)
CONTEXTS = np.array([100, 100])
SURVIVALS = [[0.5, 0.3, 0.01], [0.02]]


def costs() -> CostModel:
    """A step of 40 ms, 1 ms more for each token beyond two."""
    return CostModel(CostProfile(verify=Curve.timed({1: 0.040, 2: 0.040, 102: 0.140})))


def control(exits: Surplus | None, rate: float) -> LookupControl:
    return LookupControl(costs(), lambda load: rate, lambda lost: False, exits)


def bringing(*surplus: float) -> Surplus:
    def exits(load: Load, slots: Ints, contexts: Ints) -> Floats:
        return np.array(surplus)

    return exits


def test_the_likeliest_are_proposed() -> None:
    trimmed = control(None, 50.0).trim(LOAD, SLOTS, CONTEXTS, SURVIVALS)
    assert trimmed.lengths == [2, 0]
    assert trimmed.expected == pytest.approx(0.8)


@pytest.mark.parametrize("rate", [50.0, 500.0])
def test_an_exit_that_would_not_draft_keeps_nothing_back(rate: float) -> None:
    """Whatever a step brought that had luck."""
    alone = control(None, rate).trim(LOAD, SLOTS, CONTEXTS, SURVIVALS)
    assert control(bringing(0.0, 0.0), rate).trim(LOAD, SLOTS, CONTEXTS, SURVIVALS) == alone


def test_a_request_takes_the_better_source() -> None:
    better = control(bringing(0.9, 0.0), 50.0).trim(LOAD, SLOTS, CONTEXTS, SURVIVALS)
    assert better.lengths == [0, 0]
    worse = control(bringing(0.1, 0.0), 50.0).trim(LOAD, SLOTS, CONTEXTS, SURVIVALS)
    assert worse.lengths == [2, 0]
