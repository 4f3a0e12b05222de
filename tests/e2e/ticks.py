"""A clock for schedulers under test, which does not depend on what else the machine does."""

from __future__ import annotations


class Ticks:
    """A clock by which every look at it takes so many seconds, and nothing else takes any time."""

    def __init__(self, seconds: float = 1e-3) -> None:
        self.now = 0.0
        self._seconds = seconds

    def __call__(self) -> float:
        self.now += self._seconds
        return self.now
