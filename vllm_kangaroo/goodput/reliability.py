"""From a draft's confidence to the probability that it is accepted, kept up by what verifications say."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.adapters.calibration import EDGE, Calibration
from vllm_kangaroo.goodput.least_squares import Floats

LEAST, MOST = 0.001, 0.999
BINS = 10
"""Of equal width, from 0 to 1."""


class Reliability:
    """A calibration, and by bins of confidence how far it has been off.

    Args:
        calibration: of the adapter; None takes confidences at their word.
    """

    PRIOR_WEIGHT = 8.0
    """Drafts of a bin that the calibration counts for."""
    WINDOW = 200.0
    """Drafts of a bin that are remembered."""

    def __init__(self, calibration: Calibration | None = None) -> None:
        self._calibration = calibration
        self.tried: Floats = np.zeros(BINS)
        self.right: Floats = np.zeros(BINS)
        self.predicted: Floats = np.zeros(BINS)
        """Sums of the calibration's probabilities."""
        self._shift: Floats = np.zeros(BINS)
        self._shifts: list[float] = self._shift.tolist()

    def base(self, confidences: Floats) -> Floats:
        """By the calibration alone: ``[drafts]``."""
        if self._calibration is None:
            return confidences
        return self._calibration.probabilities(confidences)

    def probabilities(self, confidences: Floats) -> Floats:
        """That drafts of these confidences are accepted if those before them are: ``[drafts]``."""
        shifted = self.base(confidences) + self._shift[bins_of(confidences)]
        found: Floats = np.minimum(np.maximum(shifted, LEAST), MOST)
        return found

    def probability(self, confidence: float) -> float:
        """The same of one draft."""
        base = confidence
        if self._calibration is not None:
            sure = min(max(confidence, EDGE), 1.0 - EDGE)
            odds = math.log(sure / (1.0 - sure))
            base = 1.0 / (
                1.0 + math.exp(-self._calibration.slope * odds - self._calibration.offset)
            )
        shifted = base + self._shifts[min(int(confidence * BINS), BINS - 1)]
        return min(max(shifted, LEAST), MOST)

    def learn(self, confidences: Floats, right: NDArray[np.bool_]) -> None:
        """Take in drafts of which those before them were accepted, and whether each was."""
        if not len(confidences):
            return
        which = bins_of(confidences)
        self.tried += np.bincount(which, minlength=BINS)
        self.right += np.bincount(which, right, BINS)
        self.predicted += np.bincount(which, self.base(confidences), BINS)
        if self.tried.max() > self.WINDOW:
            kept = np.minimum(1.0, self.WINDOW / np.maximum(self.tried, 1.0))
            for sums in (self.tried, self.right, self.predicted):
                sums *= kept
        self._shift = (self.right - self.predicted) / (self.tried + self.PRIOR_WEIGHT)
        self._shifts = self._shift.tolist()


def bins_of(confidences: Floats) -> NDArray[np.int64]:
    """Which bin each falls into."""
    found: NDArray[np.int64] = np.minimum((confidences * BINS).astype(np.int64), BINS - 1)
    return found
