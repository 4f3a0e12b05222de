"""The V2 runner's counters, as it tells them to the front end beside a step's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vllm_kangaroo.integration.inspect.figures import Figures

if TYPE_CHECKING:
    from vllm_kangaroo.integration.runner_v2.speculator import KangarooSpeculator


class DeviceCounts:
    """What the device counts, as it was when its last copy had arrived: the host never waits for one.

    Args:
        counts: of the device, of one number each.
    """

    def __init__(self, counts: list[Tensor]) -> None:
        self._counts = counts
        self._captured = counts[0].device.type == "cuda"
        self._host = torch.zeros(len(counts), dtype=torch.int64, pin_memory=self._captured)
        self._known = [0] * len(counts)
        self._arrived: torch.cuda.Event | None = None

    def read(self) -> list[int]:
        """The numbers of the newest copy that is there; another is sent for."""
        if not self._captured:
            return torch.stack(self._counts).tolist()
        if self._arrived is not None and self._arrived.query():
            self._known, self._arrived = self._host.tolist(), None
        if self._arrived is None:
            self._host.copy_(torch.stack(self._counts), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        return self._known


class SpeculatorFigures(Figures):
    """What a speculator has counted, and what it holds, by the names of the V1 runner's ladder.

    Two of these are missing: a pass in a graph has no time of its own, and what is drafted for nothing shows as the difference
    between positions computed and reused.
    """

    def __init__(self, speculator: KangarooSpeculator, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self._speculator = speculator
        counters = speculator.counters
        self._device = DeviceCounts([counters.proposed, counters.checked, counters.agreed])

    def totals(self) -> dict[str, int]:
        """Counters since start-up; tiers are numbered from 1."""
        counters = self._speculator.counters
        proposed, checked, agreed = self._device.read()
        tiers = len(counters.positions)
        found = {}
        for at in range(tiers):
            found[f"tier.positions.{at + 1}"] = counters.positions[at]
            found[f"tier.passes.{at + 1}"] = counters.passes[at]
        for at in range(1, tiers):
            found[f"tier.reused.{at}"] = counters.reused
        if tiers > 2:
            found |= {"tier.offered.2": checked, "tier.accepted.2": agreed}
        return found | {
            "source.rounds.exit": counters.drafters,
            "source.drafted.exit": proposed,
        }

    def gauges(self, gained: dict[str, int]) -> dict[str, int]:
        """What is held just now."""
        return {
            "gauge.requests": len(self._speculator.req_states.req_id_to_index),
            "gauge.store_bytes": self._speculator.kept.nbytes,
        }
