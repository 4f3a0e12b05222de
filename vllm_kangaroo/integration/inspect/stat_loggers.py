"""Figures of ours beside vLLM's own metrics: taken out of the scheduler's stats, and shown by its Prometheus logger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from vllm_kangaroo.integration.register.patching import Patch

LOGGERS = "vllm.v1.metrics.loggers"


class Metrics(Protocol):
    """Shows the figures of one part of this package."""

    def record(self, figures: Any, engine: int) -> None:
        """Show what was found in the stats of a step."""
        ...


LIVE: dict[str, Any] = {"multiprocess_mode": "mostrecent"}
"""For gauges: of several API servers' values the newest stands."""


def metric_maker(prefix: str) -> Callable[..., Any]:
    """Makes metrics by class, name, text and labels beside vLLM's own two.

    Args:
        prefix: of their names, behind vLLM's.
    """

    def make(kind: Any, name: str, text: str, *extra: str, **options: Any) -> Any:
        return kind(
            name=f"vllm:{prefix}_{name}",
            documentation=text,
            labelnames=["model_name", "engine", *extra],
            **options,
        )

    return make


def patches(
    feature: str,
    attribute: str,
    make: Callable[[Any], Metrics],
    *,
    asked: Callable[[Any], bool],
    take_out: Callable[[Any], Mapping[Any, int]],
) -> tuple[Patch, Patch]:
    """What puts a feature's metrics beside vLLM's.

    Args:
        feature: see :class:`Patch`.
        attribute: of vLLM's ``PrometheusStatLogger``, to keep the metrics in.
        make: makes them from that logger.
        asked: whether an engine of this config has the feature.
        take_out: takes the feature's figures out of vLLM's ``SchedulerStats``.
    """

    def init_prometheus(original: Callable[..., None]) -> Callable[..., None]:
        def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            original(self, vllm_config, *args, **kwargs)
            setattr(self, attribute, make(self) if asked(vllm_config) else None)

        return init

    def record_figures(original: Callable[..., None]) -> Callable[..., None]:
        """Before any logger sees the stats: those that print would take our counts for vLLM's own."""

        def record(
            self: Any,
            scheduler_stats: Any,
            iteration_stats: Any,
            mm_cache_stats: Any = None,
            engine_idx: int | None = None,
        ) -> None:
            figures = take_out(scheduler_stats) if scheduler_stats is not None else {}
            original(self, scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)
            if figures:
                for logger in self.stat_loggers:
                    if (prometheus := getattr(logger, attribute, None)) is not None:
                        prometheus.record(figures, engine_idx or 0)

        return record

    return (
        Patch(f"{LOGGERS}:PrometheusStatLogger.__init__", init_prometheus, feature),
        Patch(f"{LOGGERS}:StatLoggerManager.record", record_figures, feature),
    )
