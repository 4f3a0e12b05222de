"""What goodput control counts: what it chose, why it drafted nothing, and how good its predictions were."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Off(StrEnum):
    """Why a request got no drafts in a step."""

    REQUEST = "request"
    """It asked for none (`max_drafts` 0), or samples by a seed."""
    ENDING = "ending"
    """It is about to end, so that no draft could be used."""
    LOAD = "load"
    """Drafts do not pay beside so many requests; for a single one they would."""
    ACCEPTANCE = "acceptance"
    """Too few would be accepted to pay at any load."""
    MEASURING = "measuring"
    """Steps without drafts are timed now and then."""


@dataclass(slots=True)
class GoodputStats:
    """Running totals since start-up."""

    lengths: list[int] = field(default_factory=list)
    """Requests by how many drafts they got in a step, from 0 on."""
    off: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Off, 0))
    """Requests that got none, by :class:`Off`."""
    probes: int = 0
    """Steps that drafted to find out whether drafts pay again."""
    measured: int = 0
    """Steps that left drafts out to time a step without."""
    steps: int = 0
    """Steps that were timed."""
    predicted_seconds: float = 0.0
    """Predicted for these, drafting included."""
    seconds: float = 0.0
    """Which they took."""
    error_seconds: float = 0.0
    """Sum of the differences' absolute values."""
    relative_errors: float = 0.0
    """Sum of the same over what each step took."""
    tokens: int = 0
    """Generated in these steps."""
    expected: float = 0.0
    """Drafts that were expected to be accepted."""
    accepted: int = 0
    """Drafts that were."""

    def timed(self, seconds: float, predicted: float, tokens: int, drafting: float = 0.0) -> None:
        """A step took ``seconds`` where so many were predicted.

        Args:
            drafting: seconds of drafting beside, which nothing was predicted of.
        """
        error = abs(predicted - seconds)
        self.steps += 1
        self.seconds += seconds + drafting
        self.predicted_seconds += predicted + drafting
        self.error_seconds += error
        self.relative_errors += error / max(seconds, 1e-9)
        self.tokens += tokens
