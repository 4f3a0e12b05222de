"""LAPS-SD's options in vLLM's configuration, and what it does not serve."""

from __future__ import annotations

from typing import Any

from vllm.config import VllmConfig

from vllm_kangaroo.integration.config.compile_key import LAPS_SD_KEY, PluginVllmConfig
from vllm_kangaroo.laps_sd.policy_options import LapsSdError, LapsSdOptions, parse_options

SCHEDULER_NAMES = ("LapsSdScheduler", "AsyncLapsSdScheduler")


def is_laps_sd(scheduler_cls: Any) -> bool:
    """Whether a scheduler, by its class or its name, is LAPS-SD's."""
    name = (
        scheduler_cls
        if isinstance(scheduler_cls, str)
        else getattr(scheduler_cls, "__qualname__", "")
    )
    return name.rpartition(".")[2] in SCHEDULER_NAMES


def asks_for_laps_sd(vllm_config: Any) -> bool:
    """Whether an engine of this ``VllmConfig`` is scheduled by LAPS-SD."""
    return is_laps_sd(vllm_config.scheduler_config.scheduler_cls)


def scheduler_options(vllm_config: Any) -> LapsSdOptions:
    """The options in ``additional_config["laps_sd"]``; the defaults without it.

    Raises:
        LapsSdError: naming the key, the value and the remedy.
    """
    additional = vllm_config.additional_config
    return parse_options(additional.get(LAPS_SD_KEY, {}) if isinstance(additional, dict) else {})


def take_up(vllm_config: Any) -> bool:
    """Check a finished engine configuration, and keep LAPS-SD's options out of vLLM's key of compiled code.

    Returns:
        Whether it is LAPS-SD's.

    Raises:
        LapsSdError: for options that are wrong or have no effect, or a configuration it does not serve.
    """
    if not asks_for_laps_sd(vllm_config):
        refuse_idle_options(vllm_config)
        return False
    refuse_unsupported(vllm_config)
    scheduler_options(vllm_config)
    if type(vllm_config) is VllmConfig:  # that of an early-exit engine keeps them out by itself
        vllm_config.__class__ = PluginVllmConfig
    return True


def refuse_idle_options(vllm_config: Any) -> None:
    """Refuse options of LAPS-SD for vLLM's own scheduler, which would have no effect.

    Raises:
        LapsSdError: naming the key, the value and the remedy.
    """
    additional = vllm_config.additional_config
    given = additional.get(LAPS_SD_KEY) if isinstance(additional, dict) else None
    if given and vllm_config.scheduler_config.scheduler_cls is None:
        raise LapsSdError(
            f"additional_config['laps_sd']={given!r} has no effect on vLLM's own scheduler: set scheduler_cls to "
            f"'vllm_kangaroo.LapsSdScheduler', or leave it out."
        )


def refuse_unsupported(vllm_config: Any) -> None:
    """Refuse engines whose requests LAPS-SD cannot pause or whose lengths mean nothing.

    Raises:
        LapsSdError: naming the setting and the remedy.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    drop = "leave out scheduler_cls, or"
    refusals = [
        (
            vllm_config.kv_transfer_config is not None,
            f"kv_transfer_config is set, and LAPS-SD cannot pause requests whose KV is transferred: {drop} leave it out.",
        ),
        (
            vllm_config.ec_transfer_config is not None,
            f"ec_transfer_config is set, and LAPS-SD does not serve encoder transfers: {drop} leave it out.",
        ),
        (
            parallel.distributed_executor_backend == "external_launcher",
            (
                f"distributed_executor_backend='external_launcher' starts a scheduler for each device, and LAPS-SD's, "
                f"which go by their clocks, would not agree: {drop} leave it out."
            ),
        ),
        (
            model.runner_type != "generate",
            (
                f"{model.model} does not generate text (runner={model.runner_type!r}), so that there is no answer "
                f"length to schedule by: leave out scheduler_cls."
            ),
        ),
        (
            model.is_diffusion,
            f"{model.model} is a diffusion model, which has a scheduler of its own: leave out scheduler_cls.",
        ),
    ]
    for refused, sentence in refusals:
        if refused:
            raise LapsSdError(sentence)
