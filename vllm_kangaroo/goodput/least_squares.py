"""Least squares that follow a stream of observations."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from operator import mul

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RIDGE = 1e-10
"""Tells apart features that have always gone together."""


class LeastSquares:
    """Recursive least squares with forgetting, about a prior that is not forgotten; no coefficient below zero.

    Kept as information matrix and vector rather than as a covariance, which would grow without bound in directions that
    a steady load never shows. Errors count relative to the value that is expected. Values far above what is expected are
    left out unless they stay: a page fault or another process must not bend the model, a slower machine must.

    Args:
        prior: coefficients before anything is observed.
        spread: how far each may be off, a standard deviation.
        forgetting: what is left of an observation's weight after each further one that is like it, whose features are in
            proportion to its own. Of one unlike it :attr:`UNLIKE` is left: what is seldom done must stay known meanwhile.
        noise: relative standard deviation of an observation.
        least: value below which it is that of this one: what is next to nothing need not be known to a hundredth.
    """

    UNLIKE = 0.995
    OUTLIER = 3.0
    """Times the expected value."""
    STAYING = 4
    """Outliers in a row that are believed, and all that came before them no longer."""
    PARDON = 0.25
    """Of an outlier that each observation between them makes up for: what comes more often than that is no accident, it
    is the price of something that is done in turns with something else."""
    AFTER_CHANGE = 0.05
    """What is left of the weight of all that was observed before these."""
    SETTLED = 32
    """Observations after which coefficients are worked out anew every :data:`EVERY` of them only."""
    EVERY = 8
    WRONG = 2.0
    """Standard deviations of noise beyond which they are worked out at once."""
    TAKEN = 4
    """Of how many observations one is taken in by then if they are brief: each costs some time too."""
    BRIEF = 0.005
    """Seconds."""

    def __init__(
        self,
        prior: Sequence[float],
        spread: Sequence[float],
        forgetting: float = 0.98,
        noise: float = 0.1,
        least: float = 1e-9,
    ) -> None:
        self.values: Floats = np.array(prior, dtype=np.float64)
        self.coefficients: list[float] = self.values.tolist()
        """The same as plain numbers."""
        self.observations = 0
        self._prior_information = np.diag(1.0 / np.square(np.array(spread, dtype=np.float64)))
        self._prior_moment = self._prior_information @ self.values
        self._information = np.zeros_like(self._prior_information)
        self._moment = np.zeros_like(self.values)
        self._forgetting = forgetting
        self._noise = noise
        self._least = least
        self._outliers = 0.0
        """How many of them there were of late, less those made up for."""
        self._in_a_row = 0
        self._unsolved = 0
        self._came: dict[int, int] = {}
        """By kind, how many values had come when its newest did."""
        self._values = 0
        self._skipped: dict[int, int] = {}
        """By kind, values since the newest that was taken in."""

    def predict(self, features: Floats) -> float:
        """The expected value at ``[n]`` features."""
        return float(features @ self.values)

    def observe(self, features: Floats, value: float, *, kind: int = 0) -> None:
        """Take in one value at ``[n]`` features.

        Args:
            kind: most brief values of each kind are passed over, but none of a kind that seldom comes.
        """
        self._values += 1
        often = self._values - self._came.get(kind, -self.TAKEN) < self.TAKEN
        self._came[kind] = self._values
        skipped = self._skipped.get(kind, 0) + 1
        spared = often and skipped < self.TAKEN and self.observations > self.SETTLED
        if spared and value < self.BRIEF:
            self._skipped[kind] = skipped
            return
        self._skipped[kind] = 0
        expected = max(float(features @ self.values), self._least)
        if self.observations >= self.EVERY and value > self.OUTLIER * expected:
            self._outliers = min(self._outliers + 1.0, 2.0 * self.STAYING)
            self._in_a_row += 1
            if self._outliers < self.STAYING:
                return
            if self._in_a_row >= self.STAYING:
                self._information *= self.AFTER_CHANGE
                self._moment *= self.AFTER_CHANGE
        else:
            self._outliers = max(0.0, self._outliers - self.PARDON)
            self._in_a_row = 0
        # By the larger of both: what was expected far too low would else weigh far too much.
        weighted = features * (1.0 / (self._noise * max(expected, value)) ** 2)
        self._forget(features)
        self._information += np.multiply.outer(weighted, features)
        self._moment += weighted * value
        self.observations += 1
        self._unsolved += 1
        wrong = abs(value - expected) > self.WRONG * self._noise * expected
        if wrong or self.observations < self.SETTLED or self._unsolved >= self.EVERY:
            self._solve()

    def _forget(self, features: Floats) -> None:
        """Lose a little of what is known, and most of it of what these features tell (Cao and Schwartz 2000)."""
        self._information *= self.UNLIKE
        self._moment *= self.UNLIKE
        known = self._information @ features
        much = float(known @ features)
        if much > 0.0:
            share = (1.0 - self._forgetting / self.UNLIKE) / much
            self._information -= np.multiply.outer(share * known, known)
            self._moment -= share * float(features @ self._moment) * known

    def _solve(self) -> None:
        self._unsolved = 0
        information = (self._prior_information + self._information).tolist()
        moment = (self._prior_moment + self._moment).tolist()
        # Coefficients that would be below zero are zero, and the others at their best beside these.
        free = list(range(len(moment)))
        found = [0.0] * len(moment)
        while free:
            solution = _solved(
                [[information[one][other] for other in free] for one in free],
                [moment[one] for one in free],
            )
            if min(solution) >= 0.0:
                for one, value in zip(free, solution, strict=True):
                    found[one] = value
                break
            free = [one for one, value in zip(free, solution, strict=True) if value >= 0.0]
        self.values, self.coefficients = np.array(found), found


def _solved(information: list[list[float]], moment: list[float]) -> list[float]:
    """The solution of ``information @ x = moment`` by Cholesky's decomposition, features of whatever size.

    In plain numbers: for a handful of features LAPACK takes several times as long to be called.
    """
    size = [sqrt(row[at]) for at, row in enumerate(information)]
    lower: list[list[float]] = []
    forward: list[float] = []
    for row, own, value in zip(information, size, moment, strict=True):
        reduced: list[float] = []
        for cell, other, above in zip(row, size, lower, strict=False):
            dot = sum(map(mul, reduced, above))
            reduced.append((cell / (own * other) - dot) / above[-1])
        left = 1.0 + RIDGE - sum(map(mul, reduced, reduced))
        forward.append((value / own - sum(map(mul, reduced, forward))) / sqrt(max(left, RIDGE)))
        lower.append([*reduced, sqrt(max(left, RIDGE))])
    found = forward
    for at in range(len(found) - 1, -1, -1):
        found[at] /= lower[at][at]
        for below in range(at):
            found[below] -= lower[at][below] * found[at]
    return [value / own for value, own in zip(found, size, strict=True)]
