"""What LAPS-SD needs in vLLM's front end: hints checked request by request, and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_kangaroo.integration.config import request_checks
from vllm_kangaroo.integration.inspect import stat_loggers
from vllm_kangaroo.integration.laps_sd.metrics import LapsSdProm, take_out
from vllm_kangaroo.integration.laps_sd.settings import asks_for_laps_sd, take_up
from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch

FEATURE = "LAPS-SD"


def install() -> None:
    """Wrap the making of engine configurations, once; those of other schedulers are passed through.

    Raises:
        SeamError: if it is not as the register says.
    """
    target = "vllm.engine.arg_utils:EngineArgs.create_engine_config"
    patching.apply(Patch(target, _create_engine_config, FEATURE))


def _create_engine_config(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(
        self: Any, usage_context: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        config = original(self, usage_context, *args, **kwargs)
        if take_up(config):
            request_checks.refuse_rust_front_end(usage_context)
            request_checks.install()
            patching.apply(
                *stat_loggers.patches(
                    FEATURE, "laps_sd_prom", LapsSdProm, asked=asks_for_laps_sd, take_out=take_out
                )
            )
        return config

    return create_engine_config
