"""Goodput control's figures, from the worker to the front end.

They leave the worker on a step's output, as drafts do; the scheduler's process puts them into the one open dictionary of
counts in vLLM's ``SchedulerStats``, and the front end takes them out again before vLLM reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vllm_kangaroo.goodput.controller import GoodputController
from vllm_kangaroo.goodput.reliability import BINS
from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch

FIGURES = "early_exit_goodput"
"""Attribute of a step's output, and of a scheduler that has taken it up."""
PREFIX = "goodput."
MICRO = 1e6
EVERY = 0.2
"""Seconds between two tellings."""
SCHEDULER = "vllm.v1.core.sched.scheduler:Scheduler"


class Figures:
    """What a controller has counted since it was asked last.

    Args:
        clock: seconds.
    """

    def __init__(self, controller: GoodputController, clock: Callable[[], float]) -> None:
        self._controller = controller
        self._clock = clock
        self._due = 0.0
        self._sent: dict[str, int] = {}

    def take(self) -> dict[str, int] | None:
        """Counters as what they gained, gauges as they are, in whole numbers; None if it is not time yet."""
        now = self._clock()
        if now < self._due:
            return None
        self._due = now + EVERY
        totals = self._totals()
        gained = {
            key: value - self._sent.get(key, 0)
            for key, value in totals.items()
            if value != self._sent.get(key, 0)
        }
        self._sent = totals
        return gained | self._means(gained) | self._gauges()

    @staticmethod
    def _means(gained: dict[str, int]) -> dict[str, int]:
        """Of the steps since the last telling; vLLM's ``get_metrics`` shows counters in whole numbers, also of seconds."""
        steps = gained.get("count.steps")
        if not steps:
            return {}
        return {
            f"mean.{name}": gained.get(f"micro.{name}", 0) // steps
            for name in ("predicted", "taken", "error")
        }

    def _totals(self) -> dict[str, int]:
        stats = self._controller.stats
        found = {f"length.{at}": count for at, count in enumerate(stats.lengths)}
        found |= {f"off.{why}": count for why, count in stats.off.items()}
        found |= {
            "count.probes": stats.probes,
            "count.measured": stats.measured,
            "count.steps": stats.steps,
            "count.accepted": stats.accepted,
            "micro.expected": int(stats.expected * MICRO),
            "micro.predicted": int(stats.predicted_seconds * MICRO),
            "micro.taken": int(stats.seconds * MICRO),
            "micro.error": int(stats.error_seconds * MICRO),
        }
        return found

    def _gauges(self) -> dict[str, int]:
        found = {"gauge.goodput": int(self._controller.goodput * MICRO)}
        reliability = self._controller.reliability
        centres = (np.arange(BINS) + 0.5) / BINS
        expected = reliability.probabilities(centres)
        for at in np.flatnonzero(reliability.tried >= 1.0).tolist():
            right = reliability.right[at] / reliability.tried[at]
            found[f"reliability.{at}.predicted"] = int(expected[at] * MICRO)
            found[f"reliability.{at}.accepted"] = int(right * MICRO)
        return found


def install() -> None:
    """Have this process's schedulers hand on what is on the outputs of steps.

    Raises:
        SeamError: if vLLM is not as the register says.
    """
    patching.apply(
        Patch(f"{SCHEDULER}.update_from_output", _update_from_output, "goodput"),
        Patch(f"{SCHEDULER}.make_stats", _make_stats, "goodput"),
    )


def _update_from_output(original: Callable[..., Any]) -> Callable[..., Any]:
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        figures = getattr(model_runner_output, FIGURES, None)
        if figures is not None:
            setattr(self, FIGURES, figures)
        return original(self, scheduler_output, model_runner_output)

    return update_from_output


def _make_stats(original: Callable[..., Any]) -> Callable[..., Any]:
    def make_stats(self: Any, *args: Any, **kwargs: Any) -> Any:
        stats = original(self, *args, **kwargs)
        figures = getattr(self, FIGURES, None)
        if stats is not None and figures is not None:
            setattr(self, FIGURES, None)
            stats.num_kv_fetch_reqs_by_stage.update(
                {PREFIX + key: value for key, value in figures.items()}
            )
        return stats

    return make_stats


def take_out(stats: Any) -> dict[str, int]:
    """Take goodput control's figures out of a step's stats; keys without :data:`PREFIX`."""
    found: dict[str, int] = stats.num_kv_fetch_reqs_by_stage
    ours = [key for key in found if key.startswith(PREFIX)]
    return {key.removeprefix(PREFIX): found.pop(key) for key in ours}
