"""vLLM's scheduler with LAPS-SD's order: requests of a lower queue are paused, with their KV kept while blocks last.

vLLM's own ``schedule`` does the work. Before each step it is shown only those requests that the policy has chosen: as
running, in the policy's order, those that have KV, and in the waiting queue those that have none. Others that have KV
are *paused*: left out of the step, in status RUNNING, keeping their blocks and their state in the runner.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm.logger import init_logger
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.metrics.stats import SchedulerStats
from vllm.v1.request import Request, RequestStatus

from vllm_kangaroo.integration.config.compile_key import PluginVllmConfig
from vllm_kangaroo.integration.laps_sd.admission import admission
from vllm_kangaroo.integration.laps_sd.eviction import BlockEviction
from vllm_kangaroo.integration.laps_sd.metrics import StatsPacker
from vllm_kangaroo.integration.laps_sd.queue import StagedRequestQueue
from vllm_kangaroo.integration.laps_sd.settings import refuse_unsupported, scheduler_options
from vllm_kangaroo.integration.laps_sd.step_capacity import StepCapacity
from vllm_kangaroo.integration.laps_sd.step_log import StepLog
from vllm_kangaroo.integration.laps_sd.step_timer import StepTimer
from vllm_kangaroo.integration.laps_sd.steps import StepLedger
from vllm_kangaroo.laps_sd.build import build_policy
from vllm_kangaroo.laps_sd.lengths import RequestFacts, read_hint
from vllm_kangaroo.laps_sd.policy_options import LapsSdError

logger = init_logger("vllm.plugins.kangaroo.laps_sd")

FINISHED_BY_ITSELF = (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)


class LapsSdScheduler(Scheduler):
    """For ``--scheduler-cls vllm_kangaroo.LapsSdScheduler``; options in ``additional_config["laps_sd"]``.

    Where vLLM schedules asynchronously an :class:`AsyncLapsSdScheduler` is made instead.

    Raises:
        LapsSdError: for a wrong option, or a configuration it does not serve.
    """

    schedules_ahead = False
    """Whether steps are scheduled before the results of the last are there."""
    waiting: StagedRequestQueue
    running: list[Request]
    policy: SchedulingPolicy

    def __new__(cls, vllm_config: Any, *args: Any, **kwargs: Any) -> LapsSdScheduler:
        """Pick the class that fits vLLM's way of scheduling."""
        if cls is LapsSdScheduler and vllm_config.scheduler_config.async_scheduling:
            cls = AsyncLapsSdScheduler
        return super().__new__(cls)

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        refuse_unsupported(vllm_config)
        options = scheduler_options(vllm_config)
        super().__init__(vllm_config, *args, **kwargs)
        self.laps = build_policy(options)
        self.paused: dict[str, Request] = {}
        """Requests left out of steps with their KV kept."""
        self.pauses = 0
        self.evictions = 0
        self._has_priorities = self.policy == SchedulingPolicy.PRIORITY
        # The policy puts victims last in `running`, which is where the FCFS branches of vLLM look for them.
        self.policy = SchedulingPolicy.FCFS
        self.waiting = StagedRequestQueue()
        self._blocked: dict[str, Request] = {}
        """Requests that wait for a grammar or the like, unknown to the policy until then."""
        self._packer = StatsPacker(self.laps)
        # A front end whose configuration was built without the plugin would show our figures as vLLM's own.
        self._shows_figures = isinstance(vllm_config, PluginVllmConfig)
        log = options.step_log
        self._step_log = StepLog(Path(log).expanduser()) if log else None
        self._timer = StepTimer(time.monotonic)
        self._ledger = StepLedger(self.laps, self.requests, 1 + self.num_spec_tokens)
        self.laps.catch_up = self._ledger.settle
        self._step_capacity = StepCapacity(self)
        self._eviction = BlockEviction(self, self.laps, self.paused, self._evict)

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds by which steps are timed and waits are counted."""
        return self._timer.clock

    @clock.setter
    def clock(self, clock: Callable[[], float]) -> None:
        self._timer.clock = clock

    # Requests come and go

    def add_request(self, request: Request) -> None:
        """As vLLM's; the policy is given the request once nothing keeps it from running."""
        known = request.request_id in self.requests
        super().add_request(request)
        if known:  # more input for a streaming session
            return
        if self._is_blocked_waiting_status(request.status):
            self._blocked[request.request_id] = request
        else:
            self._give_to_policy(request)

    def _give_to_policy(self, request: Request, *, runs: bool = False) -> None:
        """Add a request to the policy, or end it for a wrong hint; one that ``runs`` already is added all the same."""
        params = request.sampling_params
        try:
            hint = read_hint(params.extra_args, request.max_tokens) if params else None
        except LapsSdError as error:  # of a front end that does not check hints
            logger.error("Request %s: %s", request.request_id, error)
            self._end_as_an_error(request.request_id)
            if not runs:
                return
            hint = None
        facts = RequestFacts(
            prompt_tokens=request.num_prompt_tokens,
            max_tokens=request.max_tokens,
            prompt_token_ids=request.prompt_token_ids or (),
            temperature=params.temperature if params else 0.0,
            hint=hint,
        )
        priority = request.priority if self._has_priorities else 0
        self.laps.add(request.request_id, facts, self.clock(), priority)
        if runs:
            self.laps.adopt(request.request_id)

    def _end_as_an_error(self, request_id: str) -> None:
        """Let vLLM end a request, and no other, with the next step."""
        errors: Any = self.grammar_compile_error_reqs
        if isinstance(errors, dict):  # since vLLM 0.33, with what to say about it
            errors[request_id] = None
        else:
            errors.add(request_id)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        self._forget(request)
        freed = super()._free_request(request, delay_free_blocks)
        self._timer.busy = self._timer.busy and bool(self.requests)
        return freed

    def _forget(self, request: Request) -> None:
        name = request.request_id
        self.paused.pop(name, None)
        self._blocked.pop(name, None)
        if name in self.laps:
            self._ledger.remove(name)
            ended = request.status in FINISHED_BY_ITSELF
            self.laps.remove(name, output_tokens=request.num_output_tokens if ended else None)

    def _handle_stopped_request(self, request: Request) -> bool:
        if request.resumable:  # its answer is about to become prompt
            self._ledger.settle(request.request_id)
        finished = super()._handle_stopped_request(request)
        if not finished:  # a streaming session waits for more input, among vLLM's own waiting
            self._forget(request)
        return finished

    # One step

    def schedule(self, throttle_prefills: bool = False) -> Any:
        """Choose, arrange, and let vLLM schedule what is left to see."""
        started = self.clock()
        if self._blocked:
            self._unblock()
        sessions = bool(self.kv_holding_waiting)
        staged = self._arrange(started)
        output = super().schedule(throttle_prefills)
        for request in staged:  # what vLLM could not take in after all
            if request.status != RequestStatus.RUNNING:
                self.laps.release(request.request_id)
        if sessions:
            self._adopt_sessions()
        if output.total_num_scheduled_tokens:
            self._timer.start(output, started, self._kv_tokens(output))
        return output

    def _unblock(self) -> None:
        for request in list(self._blocked.values()):
            if self._handle_blocked_waiting_request(request):
                del self._blocked[request.request_id]
                self.deferred_waiting.discard(request)
                self._give_to_policy(request)

    def _kv_tokens(self, output: Any) -> int:
        if self._step_log is None:
            return 0
        return sum(self.requests[name].num_computed_tokens for name in output.num_scheduled_tokens)

    def _arrange(self, now: float) -> list[Request]:
        """Show vLLM what the policy has chosen, and pause the rest of those that have KV.

        What goes on running is left as it is: the work is that of the changes.

        Returns:
            Waiting requests that are to start.
        """
        started, stopped = self.laps.choose(self._capacity(), now, admission(self))
        if stopped:
            for name in stopped:
                self._pause(self.requests[str(name)])
            self.running = [each for each in self.running if each.request_id not in self.paused]
        staged = []
        for name in started:
            request = self.requests[str(name)]
            if request.status == RequestStatus.RUNNING:
                del self.paused[request.request_id]
                self.running.append(request)
            else:
                staged.append(request)
        scarce = self._step_capacity.is_scarce(staged)
        if scarce:  # then it matters who comes first, and who is last
            self.running.sort(key=lambda each: self.laps.rank(each.request_id))
        self._eviction.evict_running_for(staged)
        self.waiting.stage(staged)
        if self.use_v2_model_runner:  # its paused requests keep a slot each
            chosen = len(self.running) + len(staged)
            while self.paused and chosen + len(self.paused) > self.max_num_running_reqs:
                self._eviction.evict_paused()
        self._eviction.watch_allocation(scarce)
        return staged

    def _capacity(self) -> int:
        """Requests that may run, beside streaming sessions with KV, which vLLM takes in by itself."""
        capacity = min(self.max_num_active_reqs, self.max_num_running_reqs)
        capacity -= self.num_waiting_for_streaming_input
        for request in self.kv_holding_waiting:
            capacity -= not self._is_blocked_waiting_status(request.status)
        return max(capacity, 0)

    def _pause(self, request: Request) -> None:
        self.paused[request.request_id] = request
        self.pauses += 1

    def _adopt_sessions(self) -> None:
        """Streaming sessions that go on have been taken in by vLLM itself."""
        for request in self.running:
            if request.request_id not in self.laps:
                self._give_to_policy(request, runs=True)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Account for the step, then as vLLM's."""
        step = self._timer.end(scheduler_output)
        if step is not None:
            prompts = self._ledger.record(
                scheduler_output, model_runner_output, step.seconds, step.ended
            )
            if self._step_log is not None:
                self._step_log.write(scheduler_output, step.seconds, step.kv_tokens, prompts)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if step is not None:
            self._ledger.report()
            self._timer.busy = self.get_num_unfinished_requests() > 0
        return outputs

    # KV is lost

    def _evict(self, request: Request) -> None:
        self._preempt_request(request, time.monotonic())

    def _preempt_request(
        self, request: Request, timestamp: float, drop_stale_output: bool = False
    ) -> None:
        super()._preempt_request(request, timestamp, drop_stale_output)
        self.evictions += 1
        name = request.request_id
        self.paused.pop(name, None)
        if name in self.laps:
            self._ledger.evicted(name)
            self.laps.evicted(name, request.num_tokens)

    def reset_prefix_cache(
        self, reset_running_requests: bool = False, reset_connector: bool = False
    ) -> bool:
        """As vLLM's, with the paused counted among the running."""
        if reset_running_requests:
            for request in list(self.paused.values()):
                self._preempt_request(request, time.monotonic(), drop_stale_output=True)
        return super().reset_prefix_cache(reset_running_requests, reset_connector)

    def set_pause_state(self, pause_state: PauseState) -> None:
        """As vLLM's; what time passes meanwhile is charged to no request."""
        self._timer.busy = False
        super().set_pause_state(pause_state)

    # Counts

    def get_request_counts(self) -> tuple[int, int]:
        """Running ones, the paused among them, and waiting ones."""
        running, waiting = super().get_request_counts()
        return running + len(self.paused), waiting

    def make_stats(self, *args: Any, **kwargs: Any) -> SchedulerStats | None:
        """As vLLM's, the paused being deferred, with the policy's own figures in it."""
        stats = super().make_stats(*args, **kwargs)
        if stats is not None:
            stats.num_running_reqs -= len(self.paused)
            stats.num_skipped_waiting_reqs += len(self.paused)
            if self._shows_figures:
                self._packer.pack(stats, len(self.paused), self.pauses, self.evictions)
        self.laps.stats.forget()
        return stats

    def shutdown(self) -> None:
        """As vLLM's, after what has been learnt of lengths is saved."""
        self.laps.save()
        if self._step_log is not None:
            self._step_log.close()
        super().shutdown()


class AsyncLapsSdScheduler(LapsSdScheduler, AsyncScheduler):
    """The same where vLLM schedules a step before it has the results of the last."""

    schedules_ahead = True

    def _pause(self, request: Request) -> None:
        super()._pause(request)
        # They stand for drafts that the runner keeps for the very next step only.
        request.spec_token_ids = []
