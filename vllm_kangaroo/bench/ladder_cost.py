"""What a run cost on the ladder: positions computed per tier, and time within and outside passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, computed_field


class LadderCost(BaseModel):
    """The growth of :class:`vllm_kangaroo.ladder.counters.LadderCounters` over a run."""

    model_config = ConfigDict(frozen=True)

    positions: tuple[int, ...]
    """Positions each tier computed."""
    dropped: tuple[int, ...]
    """Of these, those that never reached the last tier: drafts that were trimmed."""
    verified: int
    """Positions that the last tier ran, prompts included."""
    drafted: int
    """Tokens drafted by tier 1."""
    rounds: int
    """Rounds of drafting, counted per request."""
    draft_steps: int
    draft_seconds: float
    draft_pass_seconds: float
    checks: int = 0
    """Intermediate verifications."""
    check_seconds: float = 0.0
    replaced: int = 0
    """Drafts in whose place the intermediate verifier put a token of its own."""
    lookup_rounds: int = 0
    """Rounds whose drafts were looked up in the request's own text; none of ``rounds``."""
    lookup_drafted: int = 0
    lookup_accepted: int = 0

    @classmethod
    def between(cls, before: Mapping[str, Any], after: Mapping[str, Any]) -> LadderCost:
        """From two readings of ``LLM.collective_rpc("early_exit_counters")[0]``."""

        def each(name: str) -> tuple[int, ...]:
            return tuple(new - old for old, new in zip(before[name], after[name], strict=True))

        one = (
            "verified",
            "drafted",
            "rounds",
            "draft_steps",
            "draft_seconds",
            "draft_pass_seconds",
            "checks",
            "check_seconds",
            "replaced",
            "lookup_rounds",
            "lookup_drafted",
            "lookup_accepted",
        )
        grown = {name: after[name] - before[name] for name in one}
        return cls(positions=each("positions"), dropped=each("dropped"), **grown)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def nothing_twice(self) -> bool:
        """Whether each tier computed every position exactly once that the last tier ran."""
        return all(
            computed - dropped == self.verified
            for computed, dropped in zip(self.positions, self.dropped, strict=True)
        )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds_per_draft_step(self) -> float | None:
        """Seconds of one draft step, its pass included; None without any."""
        return self.draft_seconds / self.draft_steps if self.draft_steps else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def seconds_per_check(self) -> float | None:
        """Seconds of one intermediate verification; None without any."""
        return self.check_seconds / self.checks if self.checks else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def share_outside_passes(self) -> float | None:
        """Share of a draft step that is not the model's pass; None without any."""
        if not self.draft_seconds:
            return None
        return 1 - self.draft_pass_seconds / self.draft_seconds
