"""Goodput control in Prometheus and ``llm.get_metrics()``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vllm_kangaroo.goodput.reliability import BINS
from vllm_kangaroo.integration.config.compile_key import PLAN_KEY
from vllm_kangaroo.integration.goodput.figures import CHANNEL
from vllm_kangaroo.integration.inspect import stat_loggers
from vllm_kangaroo.integration.inspect.figures import MICRO
from vllm_kangaroo.integration.register import patching


class GoodputProm:
    """The metrics, in vLLM's style.

    Args:
        logger: vLLM's ``PrometheusStatLogger``, whose metric classes and labels are used.
    """

    def __init__(self, logger: Any) -> None:
        self._values = logger.per_engine_labelvalues

        make = stat_loggers.metric_maker("goodput")
        counter, gauge = logger._counter_cls, logger._gauge_cls
        live = stat_loggers.LIVE
        self._lengths = make(
            counter, "requests", "Requests by how many drafts were chosen for a step.", "length"
        )
        self._off = make(
            counter, "undrafted_requests", "Requests without drafts in a step, by reason.", "reason"
        )
        self._counts = {
            "probes": make(counter, "probes", "Steps that drafted to see whether drafts pay."),
            "measured": make(counter, "measured", "Steps left without drafts to be timed."),
            "steps": make(counter, "steps", "Steps whose time was predicted."),
            "accepted": make(counter, "accepted_drafts", "Drafts that were accepted."),
            "expected": make(counter, "expected_drafts", "Drafts expected to be accepted."),
            "predicted": make(counter, "predicted_seconds", "Seconds predicted for those steps."),
            "taken": make(counter, "step_seconds", "Seconds which they took."),
            "error": make(counter, "error_seconds", "Seconds by which the two differ, absolute."),
        }
        self._goodput = make(
            gauge, "tokens_per_second", "Tokens a second expected of the newest step.", **live
        )
        self._mean = make(
            gauge,
            "mean_step_seconds",
            "Of the newest steps: seconds predicted and taken, and by which the two differ.",
            "of",
            **live,
        )
        self._reliability = make(
            gauge,
            "reliability",
            "Drafts by confidence: share predicted to be accepted, and share that was.",
            "confidence",
            "share",
            **live,
        )

    def record(self, figures: Mapping[str, int], engine: int) -> None:
        """Show what was found in the stats of a step."""
        labels = self._values[engine]
        for key, value in figures.items():
            kind, *rest = key.split(".")
            if kind == "length":
                self._lengths.labels(*labels, rest[0]).inc(value)
            elif kind == "off":
                self._off.labels(*labels, rest[0]).inc(value)
            elif kind == "count":
                self._counts[rest[0]].labels(*labels).inc(value)
            elif kind == "micro":
                self._counts[rest[0]].labels(*labels).inc(max(0.0, value / MICRO))
            elif kind == "mean":
                self._mean.labels(*labels, rest[0]).set(value / MICRO)
            elif kind == "gauge":
                self._goodput.labels(*labels).set(value / MICRO)
            else:
                confidence = f"{int(rest[0]) / BINS:.1f}"
                self._reliability.labels(*labels, confidence, rest[1]).set(value / MICRO)


def install() -> None:
    """Show the figures of engines that weigh drafts; other engines are passed through.

    Raises:
        SeamError: if vLLM is not as the register says.
    """
    patching.apply(
        *stat_loggers.patches(
            "goodput", "goodput_prom", GoodputProm, asked=weighs_drafts, take_out=CHANNEL.take_out
        )
    )


def weighs_drafts(vllm_config: Any) -> bool:
    """Whether an engine of this config has goodput control."""
    additional = vllm_config.additional_config
    plan = additional.get(PLAN_KEY) if isinstance(additional, dict) else None
    return isinstance(plan, dict) and plan.get("goodput") is not None
