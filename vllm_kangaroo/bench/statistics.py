"""The arithmetic behind the figures; no engine, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from pydantic import BaseModel, ConfigDict, computed_field


class Spread(BaseModel):
    """Median and range of a handful of repeated measurements."""

    model_config = ConfigDict(frozen=True)

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(median=median(values), low=min(values), high=max(values))


def paired_ratios(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """``other / base`` of measurements taken one right after the other.

    Raises:
        ValueError: if the two are not of one length.
    """
    return [theirs / ours for ours, theirs in zip(base, other, strict=True)]


class Acceptance(BaseModel):
    """How drafting went over some verification steps."""

    model_config = ConfigDict(frozen=True)

    steps: int = 0
    """Verification steps, those of prompts and steps without drafts left out."""
    drafted: int = 0
    accepted: int = 0

    def __add__(self, other: Acceptance) -> Acceptance:
        return Acceptance(
            steps=self.steps + other.steps,
            drafted=self.drafted + other.drafted,
            accepted=self.accepted + other.accepted,
        )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def length(self) -> float | None:
        """Tokens per verification step, the target's own token included; None without steps."""
        return 1 + self.accepted / self.steps if self.steps else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def drafts_per_step(self) -> float | None:
        """Tokens drafted per verification step; None without steps."""
        return self.drafted / self.steps if self.steps else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def rate(self) -> float | None:
        """Share of the drafted tokens that were accepted; None without drafts."""
        return self.accepted / self.drafted if self.drafted else None


def first_divergence(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Index of the first token in which two outputs differ, or None if they are identical.

    Where one output goes on after the other has ended, that is the length of the shorter.
    """
    for at, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            return at
    return None if len(ours) == len(theirs) else min(len(ours), len(theirs))
