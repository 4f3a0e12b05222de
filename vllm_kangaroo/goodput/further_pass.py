"""When a round is to have a second draft pass, whatever it brings: what one takes is known from such passes alone."""

from __future__ import annotations

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.observations import Observations


class FurtherPass:
    """Counts rounds of a single pass, whose time tells nothing of how much of it opens the round."""

    EVERY = 16
    """Such rounds in a row after which another pass is due."""

    def __init__(self) -> None:
        self._without = 0

    def observe(self, seen: Observations) -> None:
        """A step was looked at."""
        if seen.opening is not None:
            self._without = 0 if seen.drafts else self._without + 1

    @property
    def due(self) -> bool:
        """Whether no second pass has been timed for long."""
        return self._without >= self.EVERY

    def made(self) -> None:
        """One is made, if the requests do not end first."""
        self._without = 0


def further_seconds(costs: CostModel, load: Load, drafts: int, contexts: Ints) -> float:
    """Seconds that another draft of each request takes.

    Args:
        drafts: of all requests, without these.
        contexts: of the requests that draft, ``[requests]``.
    """
    count, width = len(contexts), load.requests + drafts
    cost = costs.draft(count, float(contexts.sum()))
    cost += costs.verify(load, width + count, drafted=True)
    return cost - costs.verify(load, width, drafted=True)
