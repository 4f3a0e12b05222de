"""Who drafts in a step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.checked_round import CheckedRound
from vllm_kangaroo.goodput.draft_round import DraftRound
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.length_plan import LengthPlan
from vllm_kangaroo.goodput.small_round import SmallRound

NOBODY = np.zeros(0, dtype=np.int64)


AnyRound = DraftRound | SmallRound | CheckedRound


@dataclass(slots=True)
class CachedPlan:
    """A plan, and what it holds for."""

    key: tuple[int, int, int, bytes]
    plan: LengthPlan
    chains: Floats
    checks: bool
    uses: int = 0


@dataclass(slots=True)
class Chosen:
    """Who drafts in a step."""

    requests: Ints
    """Their places among those that were asked about."""
    limits: Ints
    """Most drafts of each, ``[requests]``."""
    round: AnyRound | None
    """None if nobody does."""
    seen: bool = True
    """Whether the step is learnt from."""
