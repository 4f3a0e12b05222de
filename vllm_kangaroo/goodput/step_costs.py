"""What a step takes at one request: a cost model as plain figures, for whoever is outside the engine."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from vllm_kangaroo.goodput.cost_model import CostModel, Load


class StepCosts(BaseModel):
    """Seconds of the parts of a step, as an engine has learnt them from its own steps."""

    model_config = ConfigDict(frozen=True)

    verify: tuple[float, ...]
    """All but drafting, over 1, 2, ... tokens; with two or more there are drafts among them."""
    draft: float
    """A draft pass."""
    around: float
    """What a round of drafting takes beside its passes."""
    check: tuple[float, ...] = ()
    """Intermediate verifications of 1, 2, ... tokens; empty where there are none."""

    @classmethod
    def of(cls, costs: CostModel, kv_tokens: int, most: int, *, checks: bool) -> Self:
        """What a cost model says.

        Args:
            kv_tokens: the request's.
            most: tokens of the largest verification.
            checks: whether there are intermediate verifications.
        """
        load = Load(1, kv_tokens)
        widths = range(1, most + 1)
        return cls(
            verify=tuple(costs.verify(load, width, drafted=width > 1) for width in widths),
            draft=costs.draft(1, kv_tokens),
            around=costs.overhead(1),
            check=tuple(costs.check(width, kv_tokens) for width in widths) if checks else (),
        )

    @classmethod
    def middle(cls, found: Sequence[StepCosts]) -> Self:
        """The median of each figure: what one reading learnt of a busy moment is left out."""
        columns: dict[str, Any] = {
            name: tuple(map(median, zip(*(getattr(each, name) for each in found), strict=True)))
            for name in ("verify", "check")
        }
        columns |= {
            name: median(getattr(each, name) for each in found) for name in ("draft", "around")
        }
        return cls(**columns)

    def scaled(self, factor: float) -> Self:
        """The same on a machine that takes ``factor`` times as long."""
        return type(self)(
            verify=tuple(factor * each for each in self.verify),
            draft=factor * self.draft,
            around=factor * self.around,
            check=tuple(factor * each for each in self.check),
        )
