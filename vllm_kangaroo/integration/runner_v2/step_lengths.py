"""Draft lengths by goodput control on the V2 runner, in the place of vLLM's table of batch sizes.

vLLM's scheduler looks the length of each step up by its number of requests, captures graphs for every length in the table, and
has the speculator draft as many. The table that it is configured with names all lengths; what it looks up in is this.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Any

import numpy as np

from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.goodput.acceptance import AcceptanceModel
from vllm_kangaroo.goodput.cost_model import Load
from vllm_kangaroo.goodput.step_lengths import StepLengths
from vllm_kangaroo.integration.config.compile_key import PLAN_KEY
from vllm_kangaroo.integration.config.plan import is_on_v2, plan_of
from vllm_kangaroo.integration.goodput.build import prior_of
from vllm_kangaroo.integration.goodput.figures import CHANNEL, GoodputFigures
from vllm_kangaroo.integration.inspect.figures import SCHEDULER
from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch
from vllm_kangaroo.options import EarlyExitPlan

ATTRIBUTE = "early_exit_step_lengths"
"""Of a scheduler."""


class StepLengthControl:
    """A scheduler's draft lengths: what it looks up, and what it is taught by each step that comes back.

    Args:
        scheduler: whose running requests say what the load is.
    """

    def __init__(
        self,
        scheduler: Any,
        plan: EarlyExitPlan,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        assert plan.goodput is not None
        path = plan.adapters[0]
        adapter = None if path is None else AdapterConfig.load(path)
        most = plan.num_speculative_tokens
        acceptance = AcceptanceModel(most, prior_of(adapter))
        self.lengths = StepLengths(acceptance, plan.goodput, most=most)
        self.figures = GoodputFigures(self.lengths, clock)
        self._scheduler = scheduler
        self._clock = clock
        self._before: set[str] = set()
        self._came = 0.0
        self._made = 0

    def __getitem__(self, requests: int) -> int:
        """Drafts of each request after a step of so many."""
        running = self._scheduler.running
        kv_tokens = sum(each.num_computed_tokens for each in running)
        return self.lengths.choose(Load(requests, kv_tokens))

    def observe(self, scheduled: Any, output: Any) -> None:
        """A step has come back.

        Args:
            scheduled: the ``SchedulerOutput``.
            output: the ``ModelRunnerOutput``.
        """
        counts: dict[str, int] = scheduled.num_scheduled_tokens
        if not counts or output.sampled_token_ids is None:
            return
        now = self._clock()
        drafts = scheduled.scheduled_spec_decode_tokens
        place, sampled = output.req_id_to_index, output.sampled_token_ids
        rows = [
            (count, len(drafts.get(name, ())), len(sampled[place[name]]))
            for name, count in counts.items()
            if name in place
        ]
        ran, drafted, gained = np.array(rows, dtype=np.int64).reshape(-1, 3).T
        contexts = np.array([self._context(name) for name in counts if name in place], np.int64)
        names = set(counts)
        if not self._before.isdisjoint(names):  # else the engine may have stood still before it
            prompts = int(np.maximum(ran - 1 - drafted, 0).sum())
            load = Load(len(names), int(contexts.sum()), prompts)
            tokens, brought = int(ran.sum()) - prompts, int(gained.sum())
            # Tokens come back before the drafts after them are made: between two steps lie the drafts of the one and the
            # verification of the other.
            self.lengths.observe(now - self._came, load, tokens, self._made, brought)
        self._before, self._came = names, now
        skipped = getattr(scheduled, "skip_drafts", False)  # since vLLM 0.33
        self._made = 0 if skipped else scheduled.num_spec_tokens_to_schedule
        got = gained > 0
        self.lengths.verified(contexts[got], drafted[got], gained[got] - 1)

    def _context(self, name: str) -> int:
        request = self._scheduler.requests.get(name)
        return 0 if request is None else int(request.num_computed_tokens)


def install() -> None:
    """Let this process's schedulers of early-exit engines with goodput control choose by it.

    Raises:
        SeamError: if vLLM is not as the register says.
    """
    patching.apply(
        Patch(f"{SCHEDULER}.__init__", _init, "step lengths"),
        Patch(f"{SCHEDULER}.update_from_output", _update_from_output, "step lengths"),
    )
    CHANNEL.install()


def _init(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        original(self, vllm_config, *args, **kwargs)
        additional = vllm_config.additional_config
        if isinstance(additional, dict) and PLAN_KEY in additional and is_on_v2(vllm_config):
            plan = plan_of(vllm_config)
            if plan.goodput is not None:
                self.dynamic_sd_lookup = StepLengthControl(self, plan)
                setattr(self, ATTRIBUTE, self.dynamic_sd_lookup)

    return init


def _update_from_output(original: Callable[..., Any]) -> Callable[..., Any]:
    def update_from_output(self: Any, scheduler_output: Any, model_runner_output: Any) -> Any:
        control: StepLengthControl | None = getattr(self, ATTRIBUTE, None)
        if control is not None:
            control.observe(scheduler_output, model_runner_output)
            CHANNEL.send(control.figures, self)
        return original(self, scheduler_output, model_runner_output)

    return update_from_output
