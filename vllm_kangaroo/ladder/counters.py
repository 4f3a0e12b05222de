"""What the ladder has computed, so that "nothing is computed twice" can be asserted."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

logger = logging.getLogger("vllm.plugins.kangaroo")  # a child of vLLM's, so that its level holds


@dataclass(slots=True)
class LadderCounters:
    """Running totals since start-up. Lists have one entry per tier."""

    positions: list[int] = field(default_factory=list)
    """Positions each tier has computed."""
    passes: list[int] = field(default_factory=list)
    """Passes each tier has made."""
    verified: int = 0
    """Positions run through the last tier, prompt positions included."""
    reused: list[int] = field(default_factory=list)
    """Positions each tier did not compute in a verification because the exit store had them."""
    dropped: list[int] = field(default_factory=list)
    """Positions each tier computed that never reached the last tier: drafts trimmed, or requests aborted."""
    tier_seconds: list[float] = field(default_factory=list)
    """Wall time of the passes of each tier alone, exit heads included (host clock)."""
    joined_seconds: float = 0.0
    """Wall time of the passes of all tiers in one graph, which are no one tier's (host clock)."""
    rounds: int = 0
    """Drafting rounds, counted per request."""
    drafted: int = 0
    """Tokens drafted."""
    draft_steps: int = 0
    """Draft passes, each over one token of several requests."""
    draft_seconds: float = 0.0
    """Wall time of draft steps, passes included (host clock)."""
    draft_pass_seconds: float = 0.0
    """Wall time of the model passes within draft steps (host clock)."""
    checks: int = 0
    """Intermediate verifications, each one pass over some drafts of several requests."""
    check_seconds: float = 0.0
    """Wall time of intermediate verifications (host clock)."""
    checked: int = 0
    """Drafts that the intermediate verifier has seen."""
    agreed: int = 0
    """Of these, those that it left as they were; what stood behind a disagreement is none."""
    replaced: int = 0
    """Drafts in whose place the intermediate verifier put a token of its own."""
    lookup_rounds: int = 0
    """Rounds whose drafts were looked up in the request's own text, counted per request; none of ``rounds``."""
    lookup_drafted: int = 0
    """Tokens of such drafts; none of ``drafted``."""
    lookup_accepted: int = 0
    """Of these, those that were accepted."""
    defects: int = 0
    """Times that an invariant did not hold for a request, which lost drafts and nothing else."""

    @classmethod
    def for_tiers(cls, tiers: int) -> LadderCounters:
        return cls(
            positions=[0] * tiers,
            passes=[0] * tiers,
            reused=[0] * tiers,
            dropped=[0] * tiers,
            tier_seconds=[0.0] * tiers,
        )

    def defect(self, what: str) -> None:
        """Count one; the first is logged."""
        self.defects += 1
        if self.defects == 1:
            logger.error(
                "%s. A request loses drafts and nothing else, but this is a defect of vllm-kangaroo: please report it. "
                "Further ones are counted as 'defects' and not logged.",
                what,
            )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
