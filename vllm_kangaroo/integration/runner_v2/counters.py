"""What happened on the device and beside it, counted without making the host wait."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


@dataclass(slots=True)
class Counters:
    """Numbers of an engine's steps; only :meth:`as_dict` reads the device."""

    positions: list[int] = field(default_factory=list)
    """That each tier has computed, of rows that only fill a graph up none."""
    passes: list[int] = field(default_factory=list)
    """Of each tier."""
    verifications: int = 0
    """Steps of the upper layers alone."""
    verification_replays: int = 0
    """Those of them that were a graph's replay."""
    reused: int = 0
    """Tokens whose state below the last tier was kept."""
    whole_steps: int = 0
    """Steps of all layers: those with a prompt in them, or after none was drafted."""
    whole_tokens: int = 0
    whole_replays: int = 0
    """Those of them that were a graph's replay: without drafts, and of a token a request."""
    draftings: int = 0
    """Rounds, of a whole batch each."""
    drafting_replays: int = 0
    drafters: int = 0
    """Requests in those rounds."""
    padded_rows: int = 0
    """Rows that only filled a drafting graph up."""
    skipped: int = 0
    """Rounds in which vLLM asked for no drafts."""
    proposed: Tensor = field(default_factory=_zero)
    """Drafts that were proposed, counted on the device."""
    replaced: Tensor = field(default_factory=_zero)
    """Those of them that are an intermediate verifier's, in the place of another, counted on the device."""
    checked: Tensor = field(default_factory=_zero)
    """Drafts that came before an intermediate verifier, counted on the device."""
    agreed: Tensor = field(default_factory=_zero)
    """Those of them that it accepted, counted on the device."""

    @classmethod
    def on(cls, device: torch.device, tiers: int) -> Counters:
        """Counters of which those that the device counts are kept there."""
        found = cls(positions=[0] * tiers, passes=[0] * tiers)
        for name in ("proposed", "replaced", "checked", "agreed"):
            setattr(found, name, torch.zeros((), dtype=torch.int64, device=device))
        return found

    def ran(self, tier: int, tokens: int, passes: int = 1) -> None:
        """A tier ran so many passes over so many tokens each; tiers are counted from 0."""
        self.positions[tier] += tokens * passes
        self.passes[tier] += passes

    def as_dict(self) -> dict[str, Any]:
        """All of them as numbers, or lists of numbers by tier. Waits for the device."""
        return {
            name: list(value) if isinstance(value, list) else int(value)
            for name, value in asdict(self).items()
        }
