"""Distributions of lengths against brute force; hints that are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_kangaroo.laps_sd.lengths import (
    BINS,
    EDGES,
    EmpiricalLengths,
    HintedLengths,
    KnownLength,
    LengthHistogram,
    OracleLengths,
    RequestFacts,
    bin_of,
    read_hint,
)
from vllm_kangaroo.laps_sd.policy_options import LapsSdError

FACTS = RequestFacts(prompt_tokens=5, max_tokens=4096)


@given(st.integers(1, 2**21))
def test_bins_hold_what_their_edges_say(tokens: int):
    at = bin_of(tokens)
    assert EDGES[at] <= tokens
    assert tokens < EDGES[at + 1] or at == BINS - 1


@given(st.dictionaries(st.integers(0, 17), st.floats(0.01, 5.0), min_size=1), st.integers(0, 3000))
def test_remaining_is_the_conditional_mean(weights: dict[int, float], done: int):
    length = LengthHistogram([weights.get(at, 0.0) for at in range(BINS)])
    mass = total = 0.0
    for at, weight in weights.items():
        values = np.arange(EDGES[at], EDGES[at + 1])
        values = values[values > done]
        share = weight / (EDGES[at + 1] - EDGES[at])
        mass += share * len(values)
        total += share * float((values - done).sum())
    if mass > 1e-6:
        assert np.isclose(length.remaining(done), total / mass)
    else:
        assert length.remaining(done) > 0
    assert length.remaining(done) > 0


def test_a_claim_that_has_been_passed_is_void():
    length = KnownLength(10)
    assert [length.remaining(done) for done in (0, 9)] == [10, 1]
    assert [length.remaining(done) for done in (10, 11, 500)] == [10, 11, 500]


def test_empirical_distribution_follows_what_finishes_and_forgets():
    found = EmpiricalLengths(memory=200)
    for _ in range(300):
        found.learn(FACTS, 20)
    assert abs(found.predict(FACTS).remaining(0) - 20) < 5
    for _ in range(2000):
        found.learn(FACTS, 400)
    assert abs(found.predict(FACTS).remaining(0) - 400) < 60


def test_hint_before_predictor_and_predictor_without_hint():
    found = HintedLengths(OracleLengths())
    assert found.predict(RequestFacts(5, 100, hint=7, true_tokens=50)).remaining(0) == 7
    assert found.predict(RequestFacts(5, 100, true_tokens=50)).remaining(0) == 50


@pytest.mark.parametrize("hint", [-1, 0, 101, 10**9, "20", 2.5, True, [3]])
def test_wrong_hints_are_refused_in_a_sentence(hint: object):
    with pytest.raises(
        LapsSdError, match=r"expected_output_tokens=.*whole number from 1 to max_tokens"
    ):
        read_hint({"expected_output_tokens": hint}, max_tokens=100)


def test_hints_that_are_right_or_absent():
    assert read_hint({"expected_output_tokens": 100}, max_tokens=100) == 100
    assert read_hint({"other": 1}, max_tokens=100) is None
    assert read_hint(None, max_tokens=100) is None
