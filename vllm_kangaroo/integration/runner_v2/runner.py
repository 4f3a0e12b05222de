"""The V2 model runner with an early-exit speculator: which steps may replay a verification's graph."""

from __future__ import annotations

from typing import Any

from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from vllm_kangaroo.integration.inspect.ladder_figures import CHANNEL
from vllm_kangaroo.integration.runner_v2.speculator import KangarooSpeculator


class EarlyExitV2RunnerMixin(GPUModelRunner):
    """Adds no state: the speculator holds it."""

    speculator: KangarooSpeculator

    def gather_batch_req_state(self, scheduler_output: Any, dummy_run: bool) -> Any:
        """vLLM runs a prompt's last token as a decode. It has no kept state, so that its step is no verification."""
        state, uniform = super().gather_batch_req_state(scheduler_output, dummy_run)
        if state is None or self.speculator.runs_undrafted(state.num_scheduled_tokens):
            return state, uniform
        upper_only = self.speculator.runs_upper_only(
            state.idx_mapping_np, state.num_scheduled_tokens, has_prefill=state.has_prefill
        )
        return state, uniform if upper_only else None

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Samples and drafts; what there is to be told goes along with the tokens."""
        output = super().sample_tokens(grammar_output)
        # Asynchronously scheduled, what the scheduler will get is within.
        told = getattr(output, "model_runner_output", output)
        if told is not None:
            CHANNEL.send(self.speculator.figures, told)
        return output

    def early_exit_counters(self) -> dict[str, Any]:
        """What drafting and verification did. Waits for the device."""
        return self.speculator.counters.as_dict()


class EarlyExitV2GPUModelRunner(EarlyExitV2RunnerMixin, GPUModelRunner):
    """For CUDA."""
