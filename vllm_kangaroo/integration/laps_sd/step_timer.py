"""How long a step of the engine takes, its share of what the engine does between steps included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class StepInFlight:
    """A step on its way through the engine."""

    started: float
    """Seconds of the timer's clock."""
    kv_tokens: int
    """Positions whose keys and values it reads; 0 if nobody logs them."""


@dataclass(frozen=True, slots=True)
class TimedStep:
    """A step whose results have come."""

    seconds: float
    ended: float
    kv_tokens: int


class StepTimer:
    """Times steps from the results of the step before to their own, as long as there is work.

    What the engine does between steps, or lets overlap with them, delays requests as much. Of the time in which there
    is nothing to do, nothing is counted.

    Args:
        clock: seconds, never going back.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self._in_flight: dict[int, StepInFlight] = {}
        self._last_ended = 0.0
        self.busy = False
        """Whether there was work left after the last results: the time from then on is the next step's."""

    def start(self, output: Any, started: float, kv_tokens: int) -> None:
        """A step has been scheduled: vLLM's ``SchedulerOutput`` of it, and when."""
        self._in_flight[id(output)] = StepInFlight(started, kv_tokens)

    def end(self, output: Any) -> TimedStep | None:
        """The results of a step have come; None for one that was not started here."""
        now = self.clock()
        step = self._in_flight.pop(id(output), None)
        if step is None:
            return None
        last, self._last_ended = self._last_ended, now
        since = last if self.busy else max(last, step.started)
        return TimedStep(now - since, now, step.kv_tokens)
