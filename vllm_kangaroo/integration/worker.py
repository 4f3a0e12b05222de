"""Workers that run the early-exit model runner, one per platform."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker as GPUWorker


def _adopt(runner: Any, base_name: str, cls: type) -> Any:
    """Turn the runner vLLM has built into ours, which adds methods and no state.

    Raises:
        RuntimeError: if vLLM built another runner than the one ours derives from.
    """
    if type(runner) is not cls.__mro__[2] and type(runner).__name__ != base_name:
        raise RuntimeError(
            f"vLLM built a {type(runner).__module__}.{type(runner).__name__}, where early-exit drafting needs a "
            f"{base_name}: set VLLM_USE_V2_MODEL_RUNNER=0 and leave worker_cls at 'auto'."
        )
    runner.__class__ = cls
    return runner


class EarlyExitCPUWorker(CPUWorker):
    """vLLM's CPU worker with an exit ladder."""

    def init_device(self) -> None:
        super().init_device()
        from vllm_kangaroo.integration.runner import EarlyExitCPUModelRunner

        self.model_runner = _adopt(self.model_runner, "CPUModelRunner", EarlyExitCPUModelRunner)

    def early_exit_counters(self) -> dict[str, Any]:
        """The ladder's counters, reachable through ``LLM.collective_rpc("early_exit_counters")``."""
        return self.model_runner.early_exit_counters()


class EarlyExitGPUWorker(GPUWorker):
    """vLLM's CUDA worker with an exit ladder."""

    def init_device(self) -> None:
        super().init_device()
        from vllm_kangaroo.integration.runner import EarlyExitGPUModelRunner

        self.model_runner = _adopt(self.model_runner, "GPUModelRunner", EarlyExitGPUModelRunner)

    def early_exit_counters(self) -> dict[str, Any]:
        """The ladder's counters, reachable through ``LLM.collective_rpc("early_exit_counters")``."""
        return self.model_runner.early_exit_counters()
