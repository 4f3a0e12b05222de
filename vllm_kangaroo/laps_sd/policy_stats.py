"""What the policy counts, for a scheduler to show."""

from __future__ import annotations

from vllm_kangaroo.laps_sd.request_state import RequestState


class PolicyStats:
    """Gauges and counters kept up event by event, and observations until :meth:`forget`."""

    def __init__(self, queues: int) -> None:
        self.queued = [[0, 0] for _ in range(queues)]
        """Requests by queue, non-perceptible and perceptible."""
        self.preemptions = 0
        """Times a more urgent request took the place of a running one."""
        self.starved = 0
        """Times a request went to the front for having waited long."""
        self.waits: list[float] = []
        """Seconds from arrival to the first start, of requests that have started."""
        self.estimates: list[tuple[float, float]] = []
        """Remaining engine seconds as estimated when a request became perceptible, and as they turned out."""

    def forget(self) -> None:
        """Drop the observations made until now."""
        self.waits.clear()
        self.estimates.clear()

    def added(self, request: RequestState) -> None:
        """A request has arrived."""
        self.queued[request.queue][request.perceptible] += 1

    def removed(self, request: RequestState) -> None:
        """A request has ended."""
        self.queued[request.queue][request.perceptible] -= 1

    def moved(self, request: RequestState, queue: int, perceptible: bool) -> None:
        """A request has moved from a queue and state to those it has now."""
        self.queued[queue][perceptible] -= 1
        self.queued[request.queue][request.perceptible] += 1

    def finished(self, request: RequestState) -> None:
        """A request has ended by itself."""
        if request.estimate is not None:
            remaining, attained = request.estimate
            self.estimates.append((remaining, request.attained - attained))
