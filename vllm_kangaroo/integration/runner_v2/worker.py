"""The worker that runs the V2 model runner with a speculator of ours, and what it shares with that of the CPU build."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker as GPUWorker

from vllm_kangaroo.integration.config.plan import plan_of
from vllm_kangaroo.integration.inspect.ladder_figures import CHANNEL as LADDER
from vllm_kangaroo.integration.passes import sessions
from vllm_kangaroo.integration.runner_v2 import speculators, step_lengths
from vllm_kangaroo.integration.runner_v2.runner import EarlyExitV2GPUModelRunner


def adopt(runner: Any, base: type, ours: type) -> Any:
    """Turn the runner vLLM has built into ours, which adds methods and no state.

    Raises:
        RuntimeError: if vLLM built another runner than the one ours derives from.
    """
    if type(runner) is not base:
        raise RuntimeError(
            f"vLLM built a {type(runner).__module__}.{type(runner).__name__}, where early-exit drafting was configured "
            f"for {base.__module__}.{base.__name__}: set VLLM_USE_V2_MODEL_RUNNER=0."
        )
    runner.__class__ = ours
    return runner


def install(vllm_config: Any) -> None:
    """The scheduler is in this process, and is made later."""
    speculators.install()
    sessions.install()
    LADDER.install()
    if plan_of(vllm_config).goodput is not None:
        step_lengths.install()


class EarlyExitV2WorkerMixin(GPUWorker):
    """What early-exit drafting asks of a worker on any platform."""

    model_runner: Any

    def early_exit_counters(self) -> dict[str, Any]:
        """What drafting did, for ``LLM.collective_rpc("early_exit_counters")``."""
        return dict(self.model_runner.early_exit_counters())


class EarlyExitV2GPUWorker(EarlyExitV2WorkerMixin, GPUWorker):
    """vLLM's CUDA worker, whose runner drafts early."""

    def init_device(self) -> None:
        """Let vLLM build its runner, and adopt it."""
        install(self.vllm_config)
        super().init_device()
        self.model_runner = adopt(self.model_runner, GPUModelRunner, EarlyExitV2GPUModelRunner)
