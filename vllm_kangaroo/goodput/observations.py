"""What a step showed, kept until the next decision: all ranks of an engine then learn the same at the same point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from vllm_kangaroo.goodput.cost_model import CostModel, Load


@dataclass(slots=True)
class Observations:
    """Seconds of one step's parts. Plain values, which can be sent to other processes."""

    verify: tuple[float, Load, int, bool] | None = None
    """Seconds, what the verification ran over, tokens of requests that decode, whether there were drafts among them."""
    drafts: list[tuple[float, int, float]] = field(default_factory=list)
    """Of each draft pass after a round's first: seconds, requests, KV tokens."""
    checks: list[tuple[float, int, float]] = field(default_factory=list)
    """Of each intermediate verification: seconds, tokens, KV tokens."""
    opening: tuple[float, int, float] | None = None
    """Of the round's first draft pass, with all that the round took beside its passes: as of another."""

    @property
    def drafting(self) -> float:
        """Seconds of the whole round."""
        first = () if self.opening is None else (self.opening,)
        return sum(seconds for seconds, *_ in (*first, *self.drafts, *self.checks))

    def teach(self, costs: CostModel) -> None:
        """Let a cost model learn them."""
        if self.drafts:
            costs.observe_draft(*_mean(self.drafts))
        if self.checks:
            costs.observe_check(*_mean(self.checks))
        if self.opening is not None:
            costs.observe_opening(*self.opening)
        if self.verify is not None:
            seconds, load, tokens, drafted = self.verify
            costs.observe_verify(seconds, load, tokens, drafted=drafted)


def _mean(passes: Sequence[tuple[float, int, float]]) -> tuple[float, float, float]:
    count = len(passes)
    if count == 1:
        return passes[0]
    seconds, width, kv_tokens = map(sum, zip(*passes, strict=True))
    return seconds / count, width / count, kv_tokens / count
