"""From the confidence of a draft to the probability that the target agrees, fitted on held-out answers.

A draft head is surer, or less sure, than it is right. Platt's scaling of the confidence's log odds, ``slope * logit(c) +
offset`` (Platt 1999; for networks Guo et al., arXiv 1706.04599), keeps the order of drafts and changes none of them: it
moves the threshold alone, once at start-up. This module imports no torch.
"""

from __future__ import annotations

import math
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

EDGE = 1e-6
"""Confidences are taken to be this far from 0 and 1 at least."""
STEPS = 50
"""Newton steps of a fit at most; a dozen do."""

Floats = NDArray[np.float64]


class Calibration(BaseModel):
    """Slope, above 0, and offset of the log odds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    slope: float = Field(gt=0, allow_inf_nan=False)
    offset: float = Field(allow_inf_nan=False)

    @classmethod
    def fit(cls, confidences: Floats, right: NDArray[np.bool_]) -> Self | None:
        """The likeliest, by Newton's method.

        Args:
            confidences: of drafts, from 0 to 1: ``[drafts]``.
            right: whether the target chose the same token: ``[drafts]``.

        Returns:
            None if the drafts say nothing: all right or all wrong, or the surer the worse.
        """
        if right.all() or not right.any():
            return None
        odds = _log_odds(confidences)
        design = np.stack((odds, np.ones_like(odds)), axis=1)
        # As Platt has it, a little off 0 and 1: a fit has an end even if confidences tell right from wrong.
        count = int(right.sum())
        wanted = np.where(right, (count + 1) / (count + 2), 1 / (len(right) - count + 2))
        weights = np.array([1.0, 0.0])
        for _ in range(STEPS):
            expected = _sigmoid(design @ weights)
            curvature = (design * (expected * (1 - expected))[:, None]).T @ design
            step = np.linalg.solve(curvature + 1e-9 * np.eye(2), design.T @ (wanted - expected))
            weights = weights + np.clip(step, -2.0, 2.0)
            if np.abs(step).max() < 1e-9:
                break
        slope, offset = weights.tolist()
        return cls(slope=slope, offset=offset) if slope > 0 and math.isfinite(offset) else None

    def probabilities(self, confidences: Floats) -> Floats:
        """That drafts of these confidences are right: ``[drafts]``."""
        return _sigmoid(self.slope * _log_odds(confidences) + self.offset)

    def confidence(self, probability: float) -> float:
        """The confidence of drafts that are right with a probability; 0 and 1 stay what they are."""
        if probability in (0.0, 1.0):
            return probability
        odds = math.log(probability / (1 - probability))
        return float(_sigmoid(np.array((odds - self.offset) / self.slope)))


def expected_error(probabilities: Floats, right: NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error (arXiv 1706.04599, eq. 3): how far bins of equal width are off, by drafts."""
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    drafts = np.bincount(which, minlength=bins)
    off = np.bincount(which, probabilities, bins) - np.bincount(which, right, bins)
    return float(np.abs(off).sum() / max(drafts.sum(), 1))


def _log_odds(confidences: Floats) -> Floats:
    clipped = np.clip(confidences, EDGE, 1 - EDGE)
    odds: Floats = np.log(clipped) - np.log1p(-clipped)
    return odds


def _sigmoid(odds: Floats) -> Floats:
    found: Floats = 1.0 / (1.0 + np.exp(-odds))
    return found
