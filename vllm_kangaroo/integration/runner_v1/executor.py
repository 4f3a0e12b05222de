"""vLLM's multiprocess executor, without the journey that fetches drafts."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from vllm_kangaroo.integration.goodput import figures
from vllm_kangaroo.integration.goodput.metrics import weighs_drafts
from vllm_kangaroo.integration.inspect import ladder_figures
from vllm_kangaroo.integration.passes import sessions

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import GrammarOutput, SchedulerOutput
    from vllm.v1.outputs import DraftTokenIds

DRAFTS = "early_exit_drafts"
"""Attribute of a step's output under which our workers hand the next step's drafts along."""


class EarlyExitExecutor(MultiprocExecutor):
    """Takes drafts from the step's output, where :class:`EarlyExitWorkerMixin` has put them."""

    _output: Any = None

    def _init_executor(self) -> None:
        sessions.install()
        ladder_figures.CHANNEL.install()
        if weighs_drafts(self.vllm_config):
            figures.CHANNEL.install()
        super()._init_executor()

    def execute_model(self, scheduler_output: SchedulerOutput, non_block: bool = False) -> Any:
        """As vLLM's; the output may already be there, with its tokens sampled."""
        self._output = super().execute_model(scheduler_output, non_block=non_block)
        return self._output

    def sample_tokens(self, grammar_output: GrammarOutput | None, non_block: bool = False) -> Any:
        """As vLLM's, for steps that waited for a grammar."""
        self._output = super().sample_tokens(grammar_output, non_block=non_block)
        return self._output

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """Drafts of the step that ended last; asks the worker only if it did not hand any along."""
        output = self._output.result() if isinstance(self._output, Future) else self._output
        if hasattr(output, DRAFTS):
            drafts: DraftTokenIds | None = getattr(output, DRAFTS)
            return drafts
        return super().take_draft_token_ids()
