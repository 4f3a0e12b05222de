"""The engine config of an early-exit engine: what is refused, and what vLLM must know of the plan."""

from __future__ import annotations

from typing import Any

from vllm.config import CUDAGraphMode, ModelConfig, ParallelConfig, SpeculativeConfig, VllmConfig
from vllm.logger import init_logger
from vllm.platforms import current_platform

from vllm_kangaroo.integration.config import arithmetic
from vllm_kangaroo.integration.config.architectures import names_of
from vllm_kangaroo.integration.config.compile_key import PLAN_KEY, PluginVllmConfig
from vllm_kangaroo.integration.config.refusals import WORKERS, WORKERS_V2
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.options import EarlyExitPlan, OptionError, TargetShape

logger = init_logger(__name__)

PROPOSER = "vllm_kangaroo.integration.runner_v1.proposer.EarlyExitProposer"
SPECULATOR = "vllm-kangaroo"
EXECUTOR = "vllm_kangaroo.integration.runner_v1.executor.EarlyExitExecutor"
EXECUTOR_V2 = "vllm_kangaroo.integration.runner_v2.executor.EarlyExitV2Executor"


class EarlyExitVllmConfig(PluginVllmConfig):
    """A ``VllmConfig`` whose scheduler reserves KV slots for drafts, which vLLM does not do for custom proposers."""

    @property
    def num_lookahead_tokens(self) -> int:
        """KV slots past the scheduled tokens that drafting writes."""
        return self.num_speculative_tokens


class EarlyExitV2VllmConfig(PluginVllmConfig):
    """The same for the V2 runner, where a last pass without a head writes one slot more."""

    @property
    def num_lookahead_tokens(self) -> int:
        """KV slots past the scheduled tokens that drafting writes."""
        return self.num_speculative_tokens + 1


def plan_of(vllm_config: VllmConfig) -> EarlyExitPlan:
    """The plan that travels in the engine config.

    Raises:
        OptionError: if there is none, because the proposer was named by hand.
    """
    additional = vllm_config.additional_config
    if not isinstance(additional, dict) or PLAN_KEY not in additional:
        raise OptionError(
            f"speculative_config['model']={PROPOSER!r} is not a setting for users: set 'method' to 'kangaroo' instead."
        )
    found = additional[PLAN_KEY]
    return METHODS[found["method"]].plan.model_validate(found)


def target_shape(model: ModelConfig) -> TargetShape:
    """The target's shape as the options need it, before any split over devices."""
    return TargetShape(
        name=model.model,
        architecture=model.architecture,
        other_names=names_of(model),
        num_hidden_layers=model.get_total_num_hidden_layers(),
        hidden_size=model.get_hidden_size(),
        num_attention_heads=model.hf_text_config.num_attention_heads,
        num_key_value_heads=model.get_total_num_kv_heads(),
        head_dim=model.get_head_size(),
        vocab_size=model.get_vocab_size(),
    )


def speculative_config(
    plan: EarlyExitPlan, model: ModelConfig, parallel: ParallelConfig, *, on_v2: bool = False
) -> SpeculativeConfig:
    """The config vLLM runs: its open door for drafters from outside, leading to our proposer and worker.

    On V2 that door is shut. There the config is that of a draft model which is the target itself; the worker sees to it that
    our speculator is made in its place.
    """
    workers = WORKERS_V2 if on_v2 else WORKERS
    parallel.worker_cls = workers[current_platform.device_type]
    config = SpeculativeConfig(
        method="custom_class",
        model=PROPOSER,
        num_speculative_tokens=plan.most_tokens,
        target_model_config=model,
        target_parallel_config=parallel,
    )
    if on_v2:
        config.method = "draft_model"
        config.model = model.model
        config.draft_sample_method = plan.draft_sample_method
        if plan.goodput is not None:
            config.num_speculative_tokens_per_batch_size = every_length(plan.most_tokens)
        if hasattr(config, "speculator"):  # a vLLM with a registry: see patches/
            config.speculator = SPECULATOR
    return config


def every_length(most: int) -> list[tuple[int, int, int]]:
    """vLLM's table of draft lengths by batch size, with each from none to ``most``, the last for all sizes that are left.

    vLLM captures graphs for the lengths in it, as many as the batches of each want. Which is used in a step is not looked up
    here: see :mod:`vllm_kangaroo.integration.runner_v2.step_lengths`.
    """
    return [
        *((length + 1, length + 1, length) for length in range(most)),
        (most + 1, 1 << 20, most),
    ]


def is_on_v2(vllm_config: VllmConfig) -> bool:
    """Whether an early-exit engine runs on the V2 model runner."""
    config = vllm_config.speculative_config
    return config is not None and config.method == "draft_model"


def finish(vllm_config: VllmConfig, plan: EarlyExitPlan) -> VllmConfig:
    """Put the plan into the engine config, which carries it to every process.

    Raises:
        OptionError: if ``additional_config`` is not a dictionary.
    """
    additional: Any = vllm_config.additional_config
    if not isinstance(additional, dict):
        raise OptionError(
            f"additional_config={additional!r} must be a dictionary for early-exit drafting: pass one, or leave it out."
        )
    vllm_config.additional_config = additional | {PLAN_KEY: plan.model_dump(mode="json")}
    if is_on_v2(vllm_config):
        return _finish_v2(vllm_config, plan)
    compilation = vllm_config.compilation_config
    if compilation.cudagraph_mode not in (None, CUDAGraphMode.NONE) and current_platform.is_cuda():
        logger.warning(
            "Early-exit drafting runs without CUDA graphs: cudagraph_mode %s is set to NONE.",
            compilation.cudagraph_mode.name,
        )
        compilation.cudagraph_mode = CUDAGraphMode.NONE
        compilation.cudagraph_capture_sizes = []
    parallel = vllm_config.parallel_config
    if parallel.distributed_executor_backend == "mp":
        parallel.distributed_executor_backend = EXECUTOR
    elif parallel.distributed_executor_backend == "ray":
        from vllm_kangaroo.integration.ray.executor import EarlyExitRayExecutor

        # The class and not its name, by which vLLM would not know that Ray runs the workers.
        parallel.distributed_executor_backend = EarlyExitRayExecutor
    if arithmetic.lacks(dtype := vllm_config.model_config.dtype):
        logger.warning(arithmetic.remark(dtype))
    vllm_config.__class__ = EarlyExitVllmConfig
    return vllm_config


def _finish_v2(vllm_config: VllmConfig, plan: EarlyExitPlan) -> VllmConfig:
    if not vllm_config.use_v2_model_runner:
        raise OptionError(
            "Early-exit drafting was configured for vLLM's V2 model runner, which vLLM does not take for this engine: set "
            "VLLM_USE_V2_MODEL_RUNNER=0."
        )
    if vllm_config.parallel_config.distributed_executor_backend == "mp":
        vllm_config.parallel_config.distributed_executor_backend = EXECUTOR_V2
    limits = vllm_config.scheduler_config
    checked = plan.tokens_per_round
    if checked and limits.max_num_seqs * checked > limits.max_num_batched_tokens:
        raise OptionError(
            f"speculative_config['draft_tokens_per_round']={checked} for max_num_seqs={limits.max_num_seqs} are more "
            f"tokens than max_num_batched_tokens={limits.max_num_batched_tokens}: raise the last, or lower one of the "
            f"first two."
        )
    compilation = vllm_config.compilation_config
    mode = compilation.cudagraph_mode
    captured = CUDAGraphMode.FULL_DECODE_ONLY
    if mode is not None and mode.decode_mode() != CUDAGraphMode.FULL:
        captured = CUDAGraphMode.NONE
    if mode is not None and mode != captured and compilation.cudagraph_capture_sizes:
        logger.warning(
            "Early-exit drafting captures verifications and drafts, and steps without a prompt alone: cudagraph_mode %s is "
            "set to %s.",
            mode.name,
            captured.name,
        )
        compilation.cudagraph_mode = captured
        if captured == CUDAGraphMode.NONE:
            compilation.cudagraph_capture_sizes = []
    vllm_config.__class__ = EarlyExitV2VllmConfig
    return vllm_config
