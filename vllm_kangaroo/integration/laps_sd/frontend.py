"""What LAPS-SD needs in vLLM's front end: hints checked request by request, and its metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.exceptions import VLLMValidationError

from vllm_kangaroo.integration.laps_sd.metrics import LapsSdProm
from vllm_kangaroo.integration.laps_sd.settings import asks_for_laps_sd, take_up
from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch
from vllm_kangaroo.laps_sd.lengths import HINT_KEY, read_hint
from vllm_kangaroo.laps_sd.policy_options import LapsSdError


class HintError(VLLMValidationError, LapsSdError):
    """A wrong hint, of the class that vLLM's server answers with status 400."""


def install() -> None:
    """Wrap the making of engine configurations, once; those of other schedulers are passed through.

    Raises:
        SeamError: if it is not as the register says.
    """
    _wrap({"vllm.engine.arg_utils:EngineArgs.create_engine_config": _create_engine_config})


def _wrap(wrappers: dict[str, Callable[[Any], Callable[..., Any]]]) -> None:
    patching.apply(*(Patch(target, make, "LAPS-SD") for target, make in wrappers.items()))


def _create_engine_config(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_engine_config(self: Any, *args: Any, **kwargs: Any) -> Any:
        config = original(self, *args, **kwargs)
        if take_up(config):
            _wrap(
                {
                    "vllm.v1.engine.input_processor:InputProcessor._validate_params": _validate_params,
                    "vllm.v1.metrics.loggers:PrometheusStatLogger.__init__": _init_prometheus,
                    "vllm.v1.metrics.loggers:PrometheusStatLogger.record": _record,
                }
            )
        return config

    return create_engine_config


def _validate_params(original: Callable[..., Any]) -> Callable[..., Any]:
    def validate(self: Any, params: Any, *args: Any, **kwargs: Any) -> Any:
        extra = getattr(params, "extra_args", None)
        if extra and HINT_KEY in extra and asks_for_laps_sd(self.vllm_config):
            most = params.max_tokens
            try:
                read_hint(extra, self.model_config.max_model_len if most is None else most)
            except LapsSdError as error:
                raise HintError(str(error)) from None
        return original(self, params, *args, **kwargs)

    return validate


def _init_prometheus(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        self.laps_sd_prom = LapsSdProm(self) if asks_for_laps_sd(vllm_config) else None

    return init


def _record(original: Callable[..., None]) -> Callable[..., None]:
    def record(
        self: Any,
        scheduler_stats: Any,
        iteration_stats: Any,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        ours = getattr(self, "laps_sd_prom", None)  # loggers made before the wrapping have none
        if scheduler_stats is not None and ours is not None:
            ours.take(scheduler_stats, engine_idx)
        original(self, scheduler_stats, iteration_stats, mm_cache_stats, engine_idx)

    return record
