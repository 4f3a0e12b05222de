"""The ladder's counters, as the worker tells them to the front end."""

from __future__ import annotations

from collections.abc import Callable

from vllm_kangaroo.integration.inspect.figures import MICRO, Channel, Figures
from vllm_kangaroo.ladder.ladder import Ladder

CHANNEL = Channel("early_exit_ladder", "ladder.", "ladder")


class LadderFigures(Figures):
    """What a ladder has counted, and what it holds.

    Args:
        exit_drafts: whether an exit drafts; else the model is run whole, and its one tier is told of.
    """

    def __init__(self, ladder: Ladder, exit_drafts: bool, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._ladder = ladder
        self._first = 0 if exit_drafts else ladder.tiers - 1

    def totals(self) -> dict[str, int]:
        """Counters since start-up; tiers are numbered from 1."""
        counted = self._ladder.counters
        by_tier = {
            "positions": counted.positions,
            "passes": counted.passes,
            "reused": counted.reused,
            "dropped": counted.dropped,
        }
        found = {
            f"tier.{name}.{at}": value
            for name, values in by_tier.items()
            for at, value in enumerate(values[self._first :], start=1)
        }
        for at, seconds in enumerate(counted.tier_seconds[self._first :], start=1):
            found[f"seconds.{at}"] = int(seconds * MICRO)
        found["seconds.all"] = int(counted.joined_seconds * MICRO)
        if self._ladder.tiers > 2:
            found |= {"tier.offered.2": counted.checked, "tier.accepted.2": counted.agreed}
        found |= {
            "source.rounds.exit": counted.rounds,
            "source.rounds.text": counted.lookup_rounds,
            "source.drafted.exit": counted.drafted,
            "source.drafted.text": counted.lookup_drafted,
            "count.defects": counted.defects,
        }
        return found

    def gauges(self, gained: dict[str, int]) -> dict[str, int]:
        """What is held just now."""
        return {
            "gauge.requests": self._ladder.requests,
            "gauge.store_bytes": sum(store.nbytes for store in self._ladder.stores),
        }
