"""The V2 worker and model runner of vLLM's CPU build.

In a module of its own, since to import vLLM's CPU worker takes the streams, events and memory figures of CUDA out of PyTorch,
for the whole process: see :mod:`vllm.v1.worker.cpu.shm`.
"""

from __future__ import annotations

from vllm.v1.worker.cpu.model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from vllm_kangaroo.integration.runner_v2.runner import EarlyExitV2RunnerMixin
from vllm_kangaroo.integration.runner_v2.worker import EarlyExitV2WorkerMixin, adopt, install


class EarlyExitV2CPUModelRunner(EarlyExitV2RunnerMixin, CPUModelRunner):
    """For vLLM's CPU backend."""


class EarlyExitV2CPUWorker(EarlyExitV2WorkerMixin, CPUWorker):
    """vLLM's CPU worker, whose runner drafts early."""

    def init_device(self) -> None:
        """Let vLLM build its runner, and adopt it."""
        install(self.vllm_config)
        super().init_device()
        self.model_runner = adopt(self.model_runner, CPUModelRunner, EarlyExitV2CPUModelRunner)
