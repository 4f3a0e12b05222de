"""What is expected of drafts: by position, context and request, and by their confidence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kangaroo.adapters.calibration import Calibration
from vllm_kangaroo.goodput.acceptance import AcceptanceModel
from vllm_kangaroo.goodput.reliability import Reliability

MOST = 5


def learn(
    model: AcceptanceModel,
    rounds: int,
    truth: list[list[float]],
    contexts: list[int] | None = None,
    seed: int = 0,
) -> None:
    """Rounds with all drafts, of requests whose drafts are accepted with these probabilities by position."""
    random = np.random.default_rng(seed)
    count = len(truth)
    slots = np.arange(count)
    lengths = np.array(contexts if contexts is not None else [100] * count)
    for _ in range(rounds):
        right = random.random((count, MOST)) < np.array(truth)
        accepted = np.cumprod(right, axis=1).sum(axis=1)
        model.learn(slots, lengths, np.full(count, MOST), accepted)


def test_the_prior_is_what_is_known_of_the_adapter() -> None:
    model = AcceptanceModel(MOST, (0.5, 0.4))
    assert model.by_position == pytest.approx([0.5, 0.4, 0.4, 0.4, 0.4])


def test_positions_are_told_apart() -> None:
    model = AcceptanceModel(MOST)
    learn(model, 400, [[0.9, 0.7, 0.5, 0.5, 0.5]] * 4)
    assert model.by_position[:3] == pytest.approx([0.9, 0.7, 0.5], abs=0.08)


def test_a_request_is_known_by_its_own_drafts_and_a_new_one_by_all() -> None:
    model = AcceptanceModel(MOST)
    learn(model, 100, [[0.9] * MOST, [0.2] * MOST])
    good, bad = model.chains(np.array([0, 1]), np.array([100, 100]))[:, 0]
    assert good > 0.75
    assert bad < 0.4
    model.open(1)
    new = model.chains(np.array([1]), np.array([100]))[0, 0]
    assert bad < new < good


def test_requests_that_are_alike_are_taken_to_be_alike() -> None:
    """The more they are, the less a streak of one of them says."""
    alike, apart = AcceptanceModel(MOST), AcceptanceModel(MOST)
    learn(alike, 300, [[0.5] * MOST] * 8)
    learn(apart, 300, [[0.9] * MOST, [0.1] * MOST] * 4)
    assert alike.request_weight > 10 * apart.request_weight
    spread = alike.chains(np.arange(8), np.full(8, 100))[:, 0]
    assert spread.max() - spread.min() < 0.15


def test_long_contexts_are_told_apart() -> None:
    model = AcceptanceModel(MOST)
    learn(model, 150, [[0.8] * MOST] * 2 + [[0.4] * MOST] * 2, [100, 100, 5000, 5000])
    for slot in range(4):
        model.open(slot)
    short, long = model.chains(np.array([0, 1]), np.array([100, 5000]))[:, 0]
    assert short > long + 0.15


def test_a_sudden_change_is_noticed_within_a_few_drafts() -> None:
    model = AcceptanceModel(MOST)
    learn(model, 200, [[0.9] * MOST] * 2)
    assert model.by_position[0] > 0.8
    learn(model, 30, [[0.1] * MOST] * 2, seed=1)
    assert model.chains(np.array([0]), np.array([100]))[0, 0] < 0.25


@settings(deadline=None, max_examples=60)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 40), st.integers(1, 100_000), st.integers(1, MOST), st.integers(0, MOST)
        ),
        min_size=1,
        max_size=40,
    ),
    sure=st.floats(0.0, 1.0),
)
def test_expectations_stay_probabilities(
    rows: list[tuple[int, int, int, int]], sure: float
) -> None:
    """Whatever is learnt, of however many requests."""
    model, reliability = AcceptanceModel(MOST), Reliability()
    for slot in range(41):
        model.open(slot)
    for slot, context, drafted, accepted in rows:
        confidences = np.full((1, MOST), sure)
        model.learn(
            *(np.array([each]) for each in (slot, context, drafted, min(drafted, accepted))),
            reliability.probabilities(confidences.ravel()).reshape(1, MOST),
        )
        reliability.learn(np.full(drafted, sure), np.arange(drafted) < accepted)
    slots, contexts = np.arange(41), np.geomspace(1, 100_000, 41).astype(np.int64)
    chains = model.chains(slots, contexts)
    assert chains.shape == (41, MOST)
    assert ((chains > 0.0) & (chains < 1.0)).all()
    assert 0.0 < reliability.probability(sure) < 1.0


@settings(deadline=None, max_examples=60)
@given(st.floats(0.0, 1.0), st.booleans())
def test_one_draft_and_many_agree(sure: float, calibrated: bool) -> None:
    calibration = Calibration(slope=0.7, offset=-0.3) if calibrated else None
    reliability = Reliability(calibration)
    reliability.learn(np.array([sure, 0.3, 0.9]), np.array([True, False, True]))
    many = reliability.probabilities(np.array([sure]))
    assert reliability.probability(sure) == pytest.approx(float(many[0]))


def test_confidences_are_corrected_where_they_are_off() -> None:
    """Drafts of confidence 0.9 of which half are right; of others nothing is known."""
    reliability = Reliability()
    random = np.random.default_rng(0)
    for _ in range(40):
        reliability.learn(np.full(5, 0.9), random.random(5) < 0.5)
    assert reliability.probability(0.9) == pytest.approx(0.5, abs=0.1)
    assert reliability.probability(0.3) == pytest.approx(0.3)
    assert reliability.tried.max() <= Reliability.WINDOW


def test_a_calibration_is_where_it_begins() -> None:
    calibration = Calibration(slope=0.5, offset=-0.5)
    wanted = calibration.probabilities(np.array([0.8]))
    assert Reliability(calibration).probabilities(np.array([0.8])) == pytest.approx(wanted)
