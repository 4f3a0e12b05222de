"""Confidences that are off by a known scaling are set right; thresholds mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from vllm_kangaroo.adapters.calibration import Calibration, expected_error


def drafts(slope: float, offset: float, count: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and whether each draft is right with the probability that scaling gives."""
    rng = np.random.default_rng(0)
    confidences = rng.beta(0.8, 0.8, count)
    true = Calibration(slope=slope, offset=offset).probabilities(confidences)
    return confidences, rng.random(count) < true


@pytest.mark.parametrize(("slope", "offset"), [(1.0, 0.0), (0.5, -0.7), (2.0, 0.4)])
def test_a_fit_finds_the_scaling(slope: float, offset: float) -> None:
    confidences, right = drafts(slope, offset)
    fitted = Calibration.fit(confidences, right)
    assert fitted is not None
    assert fitted.slope == pytest.approx(slope, rel=0.08)
    assert fitted.offset == pytest.approx(offset, abs=0.06)
    assert expected_error(fitted.probabilities(confidences), right) < 0.01


def test_drafts_above_a_threshold_are_right_as_often_as_it_says() -> None:
    confidences, right = drafts(0.5, -0.7)
    fitted = Calibration.fit(confidences, right)
    assert fitted is not None
    near = fitted.confidence(0.6)
    within = np.abs(confidences - near) < 0.02
    assert right[within].mean() == pytest.approx(0.6, abs=0.05)
    assert np.abs(right[np.abs(confidences - 0.6) < 0.02].mean() - 0.6) > 0.15
    assert expected_error(confidences, right) > 0.1


@given(
    st.floats(0.05, 5.0),
    st.floats(-3.0, 3.0),
    st.floats(0.01, 0.99),
)
def test_there_and_back(slope: float, offset: float, probability: float) -> None:
    found = Calibration(slope=slope, offset=offset)
    confidence = found.confidence(probability)
    if 1e-5 < confidence < 1 - 1e-5:
        assert found.probabilities(np.array([confidence]))[0] == pytest.approx(probability)
    assert found.confidence(0.0) == 0.0 and found.confidence(1.0) == 1.0


def test_drafts_that_say_nothing_fit_nothing() -> None:
    confidences = np.linspace(0.01, 0.99, 99)
    assert Calibration.fit(confidences, np.ones(99, dtype=bool)) is None
    assert Calibration.fit(confidences, np.zeros(99, dtype=bool)) is None
    assert Calibration.fit(confidences, confidences < 0.5) is None


def test_confidences_that_tell_right_from_wrong_have_a_fit() -> None:
    confidences = np.linspace(0.01, 0.99, 99)
    fitted = Calibration.fit(confidences, confidences > 0.5)
    assert fitted is not None and 0.45 < fitted.confidence(0.5) < 0.55


@pytest.mark.parametrize("slope", [0.0, -1.0, float("nan"), float("inf")])
def test_a_slope_that_turns_the_order_is_refused(slope: float) -> None:
    with pytest.raises(ValidationError):
        Calibration(slope=slope, offset=0.0)
