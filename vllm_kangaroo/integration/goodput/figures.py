"""Goodput control's figures, as the worker tells them to the front end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from vllm_kangaroo.goodput.controller import GoodputController
from vllm_kangaroo.goodput.reliability import BINS
from vllm_kangaroo.goodput.step_lengths import StepLengths
from vllm_kangaroo.integration.inspect.figures import MICRO, Channel, Figures

CHANNEL = Channel("early_exit_goodput", "goodput.", "goodput")


class GoodputFigures(Figures):
    """What a controller has counted."""

    def __init__(
        self, controller: GoodputController | StepLengths, clock: Callable[[], float]
    ) -> None:
        super().__init__(clock)
        self._controller = controller

    def totals(self) -> dict[str, int]:
        """Counters since start-up."""
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

    def gauges(self, gained: dict[str, int]) -> dict[str, int]:
        """Goodput, means and reliability."""
        found = self._means(gained) | {"gauge.goodput": int(self._controller.goodput * MICRO)}
        reliability = self._controller.reliability
        centres = (np.arange(BINS) + 0.5) / BINS
        expected = reliability.probabilities(centres)
        for at in np.flatnonzero(reliability.tried >= 1.0).tolist():
            right = reliability.right[at] / reliability.tried[at]
            found[f"reliability.{at}.predicted"] = int(expected[at] * MICRO)
            found[f"reliability.{at}.accepted"] = int(right * MICRO)
        return found

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
