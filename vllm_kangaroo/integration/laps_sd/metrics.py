"""LAPS-SD's figures, from the scheduler's process to Prometheus and ``llm.get_metrics()``.

The scheduler may run in a process of its own, from which only vLLM's ``SchedulerStats`` reach the front end, decoded
as exactly that class. Ours travel in its one open dictionary of counts, and are taken out before vLLM reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from operator import sub
from typing import Any

from vllm_kangaroo.integration.inspect import stat_loggers
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy

PREFIX = "laps_sd."
MICRO = 1e6
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class StatsPacker:
    """Puts what the policy has counted since the last step into the stats of a step."""

    def __init__(self, policy: LapsSdPolicy) -> None:
        self._policy_stats = policy.stats
        self._sent = (0, 0, 0, 0)
        self._names = [PREFIX + "paused"]
        for queue in range(len(policy.stats.queued)):
            self._names += (
                f"{PREFIX}queue.{queue}.{state}" for state in ("non_perceptible", "perceptible")
            )
        counts = ("pauses", "evictions", "preemptions", "starved")
        self._names += (f"{PREFIX}count.{name}" for name in counts)

    def pack(self, stats: Any, paused: int, pauses: int, evictions: int) -> None:
        """Gauges as they are, counters as what they gained, observations one by one in microseconds."""
        counted = self._policy_stats
        out: dict[str, int] = stats.num_kv_fetch_reqs_by_stage
        counts = (pauses, evictions, counted.preemptions, counted.starved)
        gained = map(sub, counts, self._sent)
        out.update(zip(self._names, (paused, *chain(*counted.queued), *gained), strict=True))
        self._sent = counts
        for at, seconds in enumerate(counted.waits):
            out[f"{PREFIX}wait.{at}"] = int(seconds * MICRO)
        for at, (estimated, true) in enumerate(counted.estimates):
            out[f"{PREFIX}estimated.{at}"] = int(estimated * MICRO)
            out[f"{PREFIX}true.{at}"] = int(true * MICRO)


def take_out(stats: Any) -> dict[str, int]:
    """Take LAPS-SD's figures out of a step's stats; keys without :data:`PREFIX`."""
    found: dict[str, int] = stats.num_kv_fetch_reqs_by_stage
    ours = [key for key in found if key.startswith(PREFIX)]
    return {key.removeprefix(PREFIX): found.pop(key) for key in ours}


class LapsSdProm:
    """The metrics, in vLLM's style.

    Args:
        logger: vLLM's ``PrometheusStatLogger``, whose metric classes and labels are used.
    """

    def __init__(self, logger: Any) -> None:
        self._values = logger.per_engine_labelvalues

        make = stat_loggers.metric_maker("laps_sd")
        gauge, counter, histogram = logger._gauge_cls, logger._counter_cls, logger._histogram_cls
        live = stat_loggers.LIVE
        self._requests = make(
            gauge, "requests", "Requests by queue and state.", "queue", "state", **live
        )
        self._paused = make(gauge, "paused_requests", "Requests paused with their KV kept.", **live)
        self._counts = {
            "pauses": make(counter, "pauses", "Times a request was paused with its KV kept."),
            "evictions": make(
                counter, "evictions", "Times a request had to give up its KV blocks."
            ),
            "preemptions": make(
                counter,
                "preemptions",
                "Times a more urgent request took the place of a running one.",
            ),
            "starved": make(
                counter, "starved", "Times a request went to the front after max_wait_s."
            ),
        }
        self._times = {
            "wait": make(
                histogram,
                "wait_seconds",
                "Seconds from arrival to the first step.",
                buckets=SECONDS,
            ),
            "estimated": make(
                histogram,
                "estimated_service_seconds",
                "Engine seconds still to come, as estimated when a request became perceptible.",
                buckets=SECONDS,
            ),
            "true": make(
                histogram,
                "true_service_seconds",
                "Engine seconds that came after that estimate.",
                buckets=SECONDS,
            ),
        }

    def record(self, figures: Mapping[str, int], engine: int) -> None:
        """Show what :func:`take_out` found in the stats of a step.

        vLLM hands the stats of a step to one front end alone, and where there are several API servers Prometheus adds
        up what they count and shows the gauge that was set last: each figure is shown once.
        """
        labels = self._values[engine]
        for key, value in figures.items():
            name, *rest = key.split(".")
            if name == "paused":
                self._paused.labels(*labels).set(value)
            elif name == "queue":
                self._requests.labels(*labels, *rest).set(value)
            elif name == "count":
                self._counts[rest[0]].labels(*labels).inc(value)
            else:
                self._times[name].labels(*labels).observe(value / MICRO)
