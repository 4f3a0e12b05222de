"""What LAPS-SD needs in vLLM's front end: hints checked request by request, and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_kangaroo.integration.config import request_checks
from vllm_kangaroo.integration.laps_sd.metrics import LapsSdProm, take_out
from vllm_kangaroo.integration.laps_sd.settings import asks_for_laps_sd, take_up
from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch


def install() -> None:
    """Wrap the making of engine configurations, once; those of other schedulers are passed through.

    Raises:
        SeamError: if it is not as the register says.
    """
    _wrap({"vllm.engine.arg_utils:EngineArgs.create_engine_config": _create_engine_config})


def _wrap(wrappers: dict[str, Callable[[Any], Callable[..., Any]]]) -> None:
    patching.apply(*(Patch(target, make, "LAPS-SD") for target, make in wrappers.items()))


def _create_engine_config(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(
        self: Any, usage_context: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        config = original(self, usage_context, *args, **kwargs)
        if take_up(config):
            request_checks.refuse_rust_front_end(usage_context)
            request_checks.install()
            _wrap(
                {
                    "vllm.v1.metrics.loggers:PrometheusStatLogger.__init__": _init_prometheus,
                    "vllm.v1.metrics.loggers:StatLoggerManager.record": _record,
                }
            )
        return config

    return create_engine_config


def _init_prometheus(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        self.laps_sd_prom = LapsSdProm(self) if asks_for_laps_sd(vllm_config) else None

    return init


def _record(original: Callable[..., None]) -> Callable[..., None]:
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
                if (prometheus := getattr(logger, "laps_sd_prom", None)) is not None:
                    prometheus.record(figures, engine_idx or 0)

    return record
