"""A worker's figures on their way to the front end.

They leave the worker on a step's output, as drafts do; the scheduler's process puts them into the one open dictionary of
counts in vLLM's ``SchedulerStats``, and the front end takes them out again before vLLM reads it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch

MICRO = 1e6
EVERY = 0.2
"""Seconds between two tellings."""
SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"


class Figures(ABC):
    """What has been counted since it was asked for last.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._due = 0.0
        self._sent: dict[str, int] = {}

    def take(self) -> dict[str, int] | None:
        """Counters as what they gained, gauges as they are, in whole numbers; None if it is not time yet."""
        now = self._clock()
        if now < self._due:
            return None
        self._due = now + EVERY
        totals = self.totals()
        gained = {
            key: value - self._sent.get(key, 0)
            for key, value in totals.items()
            if value != self._sent.get(key, 0)
        }
        self._sent = totals
        return gained | self.gauges(gained)

    @abstractmethod
    def totals(self) -> dict[str, int]:
        """Counters since start-up."""

    @abstractmethod
    def gauges(self, gained: dict[str, int]) -> dict[str, int]:
        """What is told as it is, with what the counters have gained at hand."""


class Channel:
    """The way of one feature's figures.

    Args:
        attribute: of a step's output, and of a scheduler that has taken it up.
        prefix: of the feature's keys in the stats.
        feature: see :class:`Patch`.
    """

    def __init__(self, attribute: str, prefix: str, feature: str) -> None:
        self.attribute = attribute
        self.prefix = prefix
        self._feature = feature

    def send(self, figures: Figures, output: Any) -> None:
        """Put what there is to be told on a step's output; in the worker."""
        if (found := figures.take()) is not None:
            setattr(output, self.attribute, found)

    def install(self) -> None:
        """Have this process's schedulers hand on what is on the outputs of steps.

        Raises:
            SeamError: if vLLM is not as the register says.
        """
        patching.apply(
            Patch(f"{SCHEDULER}.update_from_output", self.update_from_output, self._feature),
            Patch(f"{SCHEDULER}.make_stats", self.make_stats, self._feature),
        )

    def update_from_output(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """:attr:`Patch.make` for the scheduler's method of that name."""

        attribute = self.attribute

        def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
            figures = getattr(model_runner_output, attribute, None)
            if figures is not None:
                setattr(self, attribute, figures)
            return original(self, scheduler_output, model_runner_output)

        return update_from_output

    def make_stats(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """:attr:`Patch.make` for the scheduler's method of that name."""

        attribute, prefix = self.attribute, self.prefix

        def make_stats(self: Any, *args: Any, **kwargs: Any) -> Any:
            stats = original(self, *args, **kwargs)
            figures = getattr(self, attribute, None)
            if stats is not None and figures is not None:
                setattr(self, attribute, None)
                stats.num_kv_fetch_reqs_by_stage.update(
                    {prefix + key: value for key, value in figures.items()}
                )
            return stats

        return make_stats

    def take_out(self, stats: Any) -> dict[str, int]:
        """Take the feature's figures out of a step's stats; keys without the prefix."""
        found: dict[str, int] = stats.num_kv_fetch_reqs_by_stage
        ours = [key for key in found if key.startswith(self.prefix)]
        return {key.removeprefix(self.prefix): found.pop(key) for key in ours}
