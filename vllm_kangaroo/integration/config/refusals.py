"""What early-exit drafting does not do: settings and models that are refused, each in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from vllm.config import ModelConfig, ParallelConfig
from vllm.platforms import current_platform

from vllm_kangaroo.options import OptionError

WORKERS = {
    "cpu": "vllm_kangaroo.integration.runner_v1.cpu_backend.EarlyExitCPUWorker",
    "cuda": "vllm_kangaroo.integration.runner_v1.worker.EarlyExitGPUWorker",
}
WORKERS_V2 = {
    "cpu": "vllm_kangaroo.integration.runner_v2.cpu_backend.EarlyExitV2CPUWorker",
    "cuda": "vllm_kangaroo.integration.runner_v2.worker.EarlyExitV2GPUWorker",
}
SIZES = {
    "pipeline_parallel_size": "splits the model by layers, as the exit ladder does: set it to 1 and use "
    "tensor_parallel_size.",
    "data_parallel_size": "is not supported with early-exit drafting: set it to 1 and start several servers.",
    "prefill_context_parallel_size": "is not supported with early-exit drafting: set it to 1.",
    "decode_context_parallel_size": "is not supported with early-exit drafting: set it to 1.",
    "nnodes": "is not supported with early-exit drafting: set it to 1.",
}
"""Of ``ParallelConfig``: what must be 1."""
SWITCHES = {
    "enable_lora": "is not supported with early-exit drafting: leave it out.",
    "enable_prompt_embeds": "is not supported with early-exit drafting: leave it out.",
    "kv_sharing_fast_prefill": "leaves prompt positions without the states that drafting starts from: leave it out.",
    "enable_dbo": "splits each batch in two (dual batch overlap), which the exit ladder does not: leave it out.",
    "enable_hc_sp": "splits positions over devices (sequence parallelism), which the exit ladder does not: leave it out.",
    "enable_eplb": "moves experts between passes, of which the exit ladder runs several in a step: leave it out.",
}
"""Of ``EngineArgs``: what must not be set."""


def refuse_unsupported(args: Any, model: ModelConfig, parallel: ParallelConfig) -> None:
    """Refuse what early-exit drafting cannot do.

    Args:
        args: the ``EngineArgs``.

    Raises:
        OptionError: naming the setting and the remedy.
    """
    for sentence in (*_models(model), *_settings(args, parallel)):
        raise OptionError(sentence)


def _models(model: ModelConfig) -> Iterator[str]:
    name, drop = model.model, "leave out speculative_config for it"
    if model.is_encoder_decoder:
        yield f"{name} is an encoder-decoder, which has no exit ladder: {drop}."
    if model.is_hybrid or model.is_attention_free:
        yield f"{name} has recurrent layers, whose state cannot be rewound to an exit: {drop}."
    if model.runner_type != "generate":
        yield f"{name} does not generate text (runner={model.runner_type!r}): {drop}."
    if model.is_multimodal_model:
        yield f"{name} is a multimodal model, which early-exit drafting does not serve: {drop}."


def _settings(args: Any, parallel: ParallelConfig) -> Iterator[str]:
    for name, why in SIZES.items():
        if (size := getattr(parallel, name)) > 1:
            yield f"{name}={size} {why}"
    for name, why in SWITCHES.items():
        if getattr(args, name):
            yield f"{name}=True {why}"
    if parallel.ubatch_size > 1:
        yield f"ubatch_size={parallel.ubatch_size} splits each batch, which the exit ladder does not: leave it out."
    if parallel.distributed_executor_backend == "external_launcher":
        yield (
            "distributed_executor_backend='external_launcher' is not supported with early-exit drafting: leave it out "
            "and let vLLM start its workers."
        )
    if parallel.distributed_executor_backend == "ray":
        from vllm import envs

        # Worked out anew each time; since 0.33 there is one Ray executor, and no variable.
        if not getattr(envs, "VLLM_USE_RAY_V2_EXECUTOR_BACKEND", True):
            yield (
                "VLLM_USE_RAY_V2_EXECUTOR_BACKEND=0 picks a Ray executor that early-exit drafting does not know: leave "
                "the variable out."
            )
    if args.kv_transfer_config is not None:
        yield (
            f"kv_transfer_config={args.kv_transfer_config!r} is not supported with early-exit drafting: leave it out."
        )
    if parallel.worker_cls not in ("auto", *WORKERS.values(), *WORKERS_V2.values()):
        yield f"worker_cls={parallel.worker_cls!r} cannot draft early: leave it at 'auto', which picks vllm-kangaroo's."
    if current_platform.device_type not in WORKERS:
        yield (
            f"device {current_platform.device_type!r} is not supported with early-exit drafting: use one of "
            f"{', '.join(WORKERS)}."
        )
