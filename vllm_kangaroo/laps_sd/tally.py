"""What the policy counts, for a host to show."""

from __future__ import annotations

from vllm_kangaroo.laps_sd.request_state import Entry


class Tally:
    """Gauges kept up event by event, and observations for the host to take away."""

    def __init__(self, queues: int) -> None:
        self.queued = [[0, 0] for _ in range(queues)]
        """Requests by queue, non-perceptible and perceptible."""
        self.preemptions = 0
        """Times a running request had to make room for a more urgent one."""
        self.starved = 0
        """Times a request went to the front for having waited long."""
        self.waits: list[float] = []
        """Seconds from arrival to the first start, of requests started since it was last taken."""
        self.estimates: list[tuple[float, float]] = []
        """Remaining engine seconds as estimated when a request became perceptible, and as they turned out."""

    def forget(self) -> None:
        """Drop the observations made until now, taken or not."""
        self.waits.clear()
        self.estimates.clear()

    def enter(self, entry: Entry) -> None:
        """A request has arrived."""
        self.queued[entry.queue][entry.perceptible] += 1

    def leave(self, entry: Entry) -> None:
        """A request has ended."""
        self.queued[entry.queue][entry.perceptible] -= 1

    def shift(self, entry: Entry, queue: int, perceptible: bool) -> None:
        """A request has moved from a queue and state to those it has now."""
        self.queued[queue][perceptible] -= 1
        self.queued[entry.queue][entry.perceptible] += 1

    def finished(self, entry: Entry) -> None:
        """A request has ended by itself."""
        if entry.estimate is not None:
            remaining, attained = entry.estimate
            self.estimates.append((remaining, entry.attained - attained))
