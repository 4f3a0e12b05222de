"""The worker that runs the early-exit model runner, and what it shares with that of the CPU build."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.gpu_worker import Worker as GPUWorker

from vllm_kangaroo.integration.goodput.figures import CHANNEL as GOODPUT
from vllm_kangaroo.integration.inspect.ladder_figures import CHANNEL as LADDER
from vllm_kangaroo.integration.runner_v1.executor import DRAFTS
from vllm_kangaroo.integration.runner_v1.runner import EarlyExitGPUModelRunner

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput


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


class EarlyExitWorkerMixin(GPUWorker):
    """What early-exit drafting asks of a worker on any platform."""

    model_runner: Any

    def compile_or_warm_up_model(self) -> Any:
        """As vLLM's; then the passes are timed, if drafts are to be weighed."""
        found = super().compile_or_warm_up_model()
        self.model_runner.drafter.start_goodput()
        return found

    def execute_model(self, scheduler_output: SchedulerOutput) -> Any:
        """A whole step, sampling and drafts included, where no grammar has to be waited for.

        vLLM asks for them in calls of their own; each is a journey between processes in which the model stands still.
        """
        output = super().execute_model(scheduler_output)
        if output is None and not scheduler_output.has_structured_output_requests:
            return self.sample_tokens(None)
        return output

    def sample_tokens(self, grammar_output: GrammarOutput | None) -> Any:
        """Samples, and hands the drafts along: :class:`EarlyExitExecutor` need not come back for them."""
        output = super().sample_tokens(grammar_output)
        if output is not EMPTY_MODEL_RUNNER_OUTPUT:  # which all steps share
            setattr(output, DRAFTS, self.take_draft_token_ids())
            drafter = self.model_runner.drafter
            LADDER.send(drafter.figures, output)
            if drafter.goodput is not None:
                GOODPUT.send(drafter.goodput.figures, output)
        return output

    def early_exit_counters(self) -> dict[str, Any]:
        """The ladder's counters, for ``LLM.collective_rpc("early_exit_counters")``."""
        return dict(self.model_runner.early_exit_counters())


class EarlyExitGPUWorker(EarlyExitWorkerMixin, GPUWorker):
    """vLLM's CUDA worker with an exit ladder."""

    def init_device(self) -> None:
        """Build vLLM's runner and adopt it."""
        super().init_device()
        self.model_runner = adopt(self.model_runner, GPUModelRunner, EarlyExitGPUModelRunner)
