"""What happened on the device and beside it, counted without making the host wait."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor


@dataclass(slots=True)
class Counters:
    """Numbers of an engine's steps; only :meth:`as_dict` reads the device."""

    verifications: int = 0
    """Steps of the upper layers alone."""
    verification_replays: int = 0
    """Those of them that were a graph's replay."""
    reused: int = 0
    """Tokens whose tier-1 state was kept."""
    whole_steps: int = 0
    """Steps of all layers: those with a prompt in them."""
    whole_tokens: int = 0
    draftings: int = 0
    """Rounds, of a whole batch each."""
    drafting_replays: int = 0
    padded_rows: int = 0
    """Rows that only filled a drafting graph up."""
    skipped: int = 0
    """Rounds in which vLLM asked for no drafts."""
    proposed: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    """Drafts that were proposed, counted on the device."""
    replaced: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64))
    """Those of them that are an intermediate verifier's, in the place of another, counted on the device."""

    @classmethod
    def on(cls, device: torch.device) -> Counters:
        """Counters of which those that the device counts are kept there."""
        return cls(
            proposed=torch.zeros((), dtype=torch.int64, device=device),
            replaced=torch.zeros((), dtype=torch.int64, device=device),
        )

    def as_dict(self) -> dict[str, int]:
        """All of them as numbers. Waits for the device."""
        return {name: int(value) for name, value in asdict(self).items()}
