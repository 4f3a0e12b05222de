"""Workers that run the early-exit model runner, one per platform."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker as GPUWorker

from vllm_kangaroo.integration import cpu_sampling
from vllm_kangaroo.integration.runner import EarlyExitCPUModelRunner, EarlyExitGPUModelRunner


def adopt(runner: Any, base: type, ours: type) -> Any:
    """Turn the runner vLLM has built into ours, which adds methods and no state.

    Raises:
        RuntimeError: if vLLM built another runner than the one ours derives from.
    """
    if type(runner) is not base:
        raise RuntimeError(
            f"vLLM built a {type(runner).__module__}.{type(runner).__name__}, where early-exit drafting needs "
            f"{base.__module__}.{base.__name__}: set VLLM_USE_V2_MODEL_RUNNER=0."
        )
    runner.__class__ = ours
    return runner


class EarlyExitCPUWorker(CPUWorker):
    """vLLM's CPU worker with an exit ladder."""

    model_runner: Any

    def init_device(self) -> None:
        """Build vLLM's runner and adopt it."""
        super().init_device()
        cpu_sampling.install()
        self.model_runner = adopt(self.model_runner, CPUModelRunner, EarlyExitCPUModelRunner)

    def early_exit_counters(self) -> dict[str, Any]:
        """The ladder's counters, for ``LLM.collective_rpc("early_exit_counters")``."""
        return dict(self.model_runner.early_exit_counters())


class EarlyExitGPUWorker(GPUWorker):
    """vLLM's CUDA worker with an exit ladder."""

    model_runner: Any

    def init_device(self) -> None:
        """Build vLLM's runner and adopt it."""
        super().init_device()
        self.model_runner = adopt(self.model_runner, GPUModelRunner, EarlyExitGPUModelRunner)

    def early_exit_counters(self) -> dict[str, Any]:
        """The ladder's counters, for ``LLM.collective_rpc("early_exit_counters")``."""
        return dict(self.model_runner.early_exit_counters())
