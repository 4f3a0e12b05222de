"""The V1 worker and model runner of vLLM's CPU build.

In a module of its own, since to import vLLM's CPU worker takes the streams, events and memory figures of CUDA out of PyTorch,
for the whole process: see :mod:`vllm.v1.worker.cpu.shm`.
"""

from __future__ import annotations

from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_kangaroo.integration.passes import compile_cache
from vllm_kangaroo.integration.runner_v1.runner import EarlyExitRunnerMixin
from vllm_kangaroo.integration.runner_v1.worker import EarlyExitWorkerMixin, adopt
from vllm_kangaroo.integration.sampling import cpu_sampling


class EarlyExitCPUModelRunner(EarlyExitRunnerMixin, CPUModelRunner):
    """For vLLM's CPU backend."""


class EarlyExitCPUWorker(EarlyExitWorkerMixin, CPUWorker):
    """vLLM's CPU worker with an exit ladder."""

    def init_device(self) -> None:
        """Build vLLM's runner and adopt it."""
        super().init_device()
        cpu_sampling.install()
        compile_cache.install()
        self.model_runner = adopt(self.model_runner, CPUModelRunner, EarlyExitCPUModelRunner)
