"""vLLM's multiprocess executor for the V2 runner: the scheduler is in its process, and not in the workers'."""

from __future__ import annotations

from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from vllm_kangaroo.integration.config.plan import plan_of
from vllm_kangaroo.integration.inspect import ladder_figures
from vllm_kangaroo.integration.passes import sessions
from vllm_kangaroo.integration.runner_v2 import step_lengths


class EarlyExitV2Executor(MultiprocExecutor):
    """Puts in place what early exits ask of a scheduler."""

    def _init_executor(self) -> None:
        sessions.install()
        ladder_figures.CHANNEL.install()
        if plan_of(self.vllm_config).goodput is not None:
            step_lengths.install()
        super()._init_executor()
