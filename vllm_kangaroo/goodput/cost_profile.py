"""What passes took when they were timed at the start of an engine, and the file in which that is kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Tokens of the passes that are timed."""


FALLS = 1.05
"""Times what a larger pass took from which a smaller one is believed to take longer."""
FAR = 1e6
"""Tokens past the last size that is timed to which its slope goes on."""


class Curve(BaseModel):
    """Seconds of a pass by its number of tokens, linear between the sizes that were timed and beyond the last."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    tokens: tuple[int, ...] = Field(min_length=2)
    seconds: tuple[float, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if len(self.tokens) != len(self.seconds):
            raise ValueError("tokens and seconds differ in number")
        if self.tokens[0] < 1 or any(np.diff(self.tokens) <= 0):
            raise ValueError("tokens do not increase from at least 1")
        if min(self.seconds) <= 0.0:
            raise ValueError("seconds are not all above 0")
        return self

    @classmethod
    def timed(cls, seconds: Mapping[int, float]) -> Self:
        """Of timings by number of tokens.

        Where a few more tokens take a little less time, what disturbed the smaller pass is in its time. By :data:`FALLS` or more
        it is taken at its word: other kernels are made for other sizes.
        """
        tokens = sorted(seconds)
        rising = np.minimum.accumulate([seconds[count] for count in reversed(tokens)])[::-1]
        kept = dict(zip(tokens, rising.tolist(), strict=True))
        kept |= {count: seconds[count] for count in cls.doubtful(seconds)}
        return cls(tokens=tuple(tokens), seconds=tuple(kept.values()))

    @staticmethod
    def doubtful(seconds: Mapping[int, float]) -> list[int]:
        """Sizes that a larger one took so much less than that the curve falls: better timed once more."""
        least, found = float("inf"), []
        for count in sorted(seconds, reverse=True):
            if seconds[count] >= FALLS * least:
                found.append(count)
            least = min(least, seconds[count])
        return found[::-1]

    def arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The same as arrays, with one place more far to the right along the last slope."""
        tokens, seconds = np.array(self.tokens, float), np.array(self.seconds, float)
        slope = max(0.0, (seconds[-1] - seconds[-2]) / (tokens[-1] - tokens[-2]))
        return np.append(tokens, tokens[-1] + FAR), np.append(seconds, seconds[-1] + slope * FAR)


class CostProfile(BaseModel):
    """Passes timed by themselves, without what an engine does around them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    verify: Curve
    """The whole model, by tokens."""
    draft: Curve | None = None
    """Tier 1 and its head, by requests; None if nothing drafts by passes."""
    check: Curve | None = None
    """HiSpec's intermediate verification, by tokens; None if there is none."""
    timed: bool = True
    """False if nothing was timed."""

    @classmethod
    def unknown(cls, *, drafts: bool = True, checks: bool = False, seconds: float = 0.01) -> Self:
        """Where nothing was timed: shapes that the first steps correct."""

        def curve(share: float) -> Curve:
            return Curve(tokens=(1, 65), seconds=(share * seconds, 2 * share * seconds))

        return cls(
            verify=curve(1.0),
            draft=curve(0.3) if drafts else None,
            check=curve(0.3) if checks else None,
            timed=False,
        )


class ProfileStore:
    """Profiles on disk, a file for each model, device, dtype and settings.

    What cannot be read counts as not there, and what cannot be written is left: a profile is a start and no more.
    """

    VERSION = 2

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._key = {"version": self.VERSION, **key}
        text = json.dumps(self._key, sort_keys=True, default=str)
        self.file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def load(self) -> CostProfile | None:
        """The profile that was kept; None if there is none."""
        try:
            return CostProfile.model_validate_json(self.file.read_text(encoding="utf-8"))
        except (OSError, ValidationError, ValueError):
            return None

    def save(self, profile: CostProfile) -> None:
        """Keep it for the next start."""
        temporary = self.file.with_suffix(f".{os.getpid()}")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(profile.model_dump_json(indent=1) + "\n", encoding="utf-8")
            temporary.replace(self.file)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
