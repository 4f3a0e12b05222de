"""vLLM's scheduler with LAPS-SD's order: requests of a lower queue are paused, with their KV kept while blocks last.

vLLM's own ``schedule`` does the work. Before each step it is shown only those requests that the policy has chosen: as
running, in the policy's order, those that have KV, and in the waiting queue those that have none. Others that have KV
are *paused*: left out of the step, in status RUNNING, keeping their blocks and their state in the runner.
"""

from __future__ import annotations

import time
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
from vllm_kangaroo.integration.laps_sd.metrics import StatsPacker
from vllm_kangaroo.integration.laps_sd.queue import StagedRequestQueue
from vllm_kangaroo.integration.laps_sd.settings import refuse_unsupported, scheduler_options
from vllm_kangaroo.integration.laps_sd.step_capacity import Room
from vllm_kangaroo.integration.laps_sd.step_log import StepLog
from vllm_kangaroo.integration.laps_sd.steps import Scheduled, StepLedger
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

    _ahead = False
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
        self._classes = self.policy == SchedulingPolicy.PRIORITY
        # The policy puts victims last in `running`, which is where the FCFS branches of vLLM look for them.
        self.policy = SchedulingPolicy.FCFS
        self.waiting = StagedRequestQueue()
        self._blocked: dict[str, Request] = {}
        self._refused: str | None = None
        self._steps: dict[int, Scheduled] = {}
        self._last_output = 0.0
        self._busy = False
        """Whether there was work left after the last results: the engine's time until the next is the next step's."""
        self._stats = StatsPacker(self.laps)
        # A front end whose configuration was built without the plugin would show our figures as vLLM's own.
        self._shows_figures = isinstance(vllm_config, PluginVllmConfig)
        log = options.step_log
        self._step_log = StepLog(Path(log).expanduser()) if log else None
        self._ledger = StepLedger(self.laps, self.requests, 1 + self.num_spec_tokens)
        self.laps.catch_up = self._ledger.settle
        self._allocate_slots = self.kv_cache_manager.allocate_slots
        self._evicts = False
        """Whether allocation is ours in this step."""
        self._room = Room(self)

    # Requests come and go

    def add_request(self, request: Request) -> None:
        """As vLLM's; the policy hears of the request once nothing keeps it from running."""
        known = request.request_id in self.requests
        super().add_request(request)
        if known:  # more input for a streaming session
            return
        if self._is_blocked_waiting_status(request.status):
            self._blocked[request.request_id] = request
        else:
            self._tell(request)

    def _tell(self, request: Request, *, runs: bool = False) -> None:
        """Let the policy know a request, or end it for a wrong hint; one that ``runs`` already has to be known."""
        params = request.sampling_params
        try:
            hint = read_hint(params.extra_args, request.max_tokens) if params else None
        except LapsSdError as error:  # the front end says so itself, if it is one of ours
            logger.error("Request %s: %s", request.request_id, error)
            self.grammar_compile_error_reqs.add(request.request_id)  # ends it alone, as an error
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
        priority = request.priority if self._classes else 0
        self.laps.add(request.request_id, facts, time.monotonic(), priority)
        if runs:
            self.laps.adopt(request.request_id)

    def _free_request(self, request: Request, delay_free_blocks: bool = False) -> Any:
        self._forget(request)
        freed = super()._free_request(request, delay_free_blocks)
        self._busy = self._busy and bool(self.requests)
        return freed

    def _forget(self, request: Request) -> None:
        name = request.request_id
        self.paused.pop(name, None)
        self._blocked.pop(name, None)
        if name in self.laps:
            self._ledger.leave(name)
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
        started = time.monotonic()
        if self._blocked:
            self._unblock()
        strangers = bool(self.kv_holding_waiting)
        staged = self._arrange(started)
        output = super().schedule(throttle_prefills)
        for request in staged:  # what vLLM could not take in after all
            if request.status != RequestStatus.RUNNING:
                self.laps.release(request.request_id)
        if strangers:
            self._adopt()
        if output.total_num_scheduled_tokens:
            self._steps[id(output)] = Scheduled(started, self._kv_tokens(output))
        return output

    def _unblock(self) -> None:
        for request in list(self._blocked.values()):
            if self._handle_blocked_waiting_request(request):
                del self._blocked[request.request_id]
                self.deferred_waiting.discard(request)
                self._tell(request)

    def _kv_tokens(self, output: Any) -> int:
        if self._step_log is None:
            return 0
        return sum(self.requests[name].num_computed_tokens for name in output.num_scheduled_tokens)

    def _arrange(self, now: float) -> list[Request]:
        """Show vLLM what the policy has chosen, and pause the rest of those that have KV.

        What goes on running is left as it is: the work is that of the changes.
        """
        capacity = min(self.max_num_active_reqs, self.max_num_running_reqs)
        capacity -= self.num_waiting_for_streaming_input
        if self.kv_holding_waiting:
            capacity -= sum(
                not self._is_blocked_waiting_status(each.status) for each in self.kv_holding_waiting
            )
        started, stopped = self.laps.choose(max(capacity, 0), now, self._admission())
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
        scarce = self._room.is_scarce(staged)
        if scarce:  # then it matters who comes first, and who is last
            self.running.sort(key=lambda each: self.laps.rank(each.request_id))
        if self._refused is not None:
            self._make_room(staged)
        self.waiting.stage(staged)
        if self.use_v2_model_runner:  # its paused requests keep a slot each
            chosen = len(self.running) + len(staged)
            while self.paused and chosen + len(self.paused) > self.max_num_running_reqs:
                self._evict_paused()
        if scarce != self._evicts:  # vLLM's own method is called faster if nothing hides it
            self._evicts = scarce
            if scarce:
                self.kv_cache_manager.allocate_slots = self._allocate_or_evict
            else:
                del self.kv_cache_manager.allocate_slots
        return staged

    def _pause(self, request: Request) -> None:
        self.paused[request.request_id] = request
        self.pauses += 1

    def _admission(self) -> Any:
        """Whether a request may join the step, beside what the policy wants; None if nothing can hinder one."""
        only_with_kv = self._pause_state != PauseState.UNPAUSED
        lora = self.lora_config
        if not (only_with_kv or lora or (self._ahead and self.paused)):
            return None
        adapters = {self._adapter(str(name)) for name in self.laps.running} - {0} if lora else set()

        def admissible(name: Any) -> bool:
            request = self.requests[name]
            if request.status == RequestStatus.RUNNING:
                # Its newest tokens are still on the device, in a batch it has left.
                if request.num_output_placeholders > 0 and name in self.paused:
                    return False
            elif only_with_kv:
                return False
            if lora and (adapter := self._adapter(name)) and adapter not in adapters:
                if len(adapters) >= lora.max_loras:
                    return False
                adapters.add(adapter)
            return True

        return admissible

    def _adapter(self, name: str) -> int:
        found = self.requests[name].lora_request
        return found.lora_int_id if found else 0

    def _adopt(self) -> None:
        """Requests that vLLM has taken in by itself: streaming sessions that go on."""
        for request in self.running:
            if request.request_id not in self.laps:
                self._tell(request, runs=True)

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Account for the step, then as vLLM's."""
        now = time.monotonic()
        step = self._steps.pop(id(scheduler_output), None)
        if step is not None:
            # A step begins when the results of that before it have come: what the engine does between them, or lets
            # overlap, is time of its requests as well.
            last, started = self._last_output, step.started
            seconds = now - (last if self._busy else max(last, started))
            self._last_output = now
            prompts = self._ledger.take(scheduler_output, model_runner_output, seconds, now)
            if self._step_log is not None:
                self._step_log.write(scheduler_output, seconds, step.kv_tokens, prompts)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        if step is not None:
            self._ledger.tell()
            self._busy = self.get_num_unfinished_requests() > 0
        return outputs

    # KV blocks run out

    def _allocate_or_evict(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """vLLM's allocation; while it finds no blocks, the paused give theirs, the least urgent first."""
        blocks = self._allocate_slots(request, *args, **kwargs)
        while blocks is None and self.paused:
            self._evict_paused()
            blocks = self._allocate_slots(request, *args, **kwargs)
        if blocks is None and request.status != RequestStatus.RUNNING:
            self._refused = request.request_id
        return blocks

    def _evict_paused(self) -> None:
        victim = max(self.paused, key=self.laps.rank)
        self._preempt_request(self.paused[victim], time.monotonic())

    def _make_room(self, staged: list[Request]) -> None:
        """A chosen request found no blocks in the step before: the least urgent one that runs makes room for it."""
        refused, self._refused = self._refused, None
        assert refused is not None
        if not self.running or not any(each.request_id == refused for each in staged):
            return
        victim = max(self.running, key=lambda each: self.laps.rank(each.request_id))
        if self.laps.outranks(refused, victim.request_id):
            self.running.remove(victim)
            self._preempt_request(victim, time.monotonic())

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
        """As vLLM's; what time passes meanwhile is nobody's."""
        self._busy = False
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
                self._stats.pack(stats, len(self.paused), self.pauses, self.evictions)
        self.laps.tally.forget()
        return stats

    def shutdown(self) -> None:
        """As vLLM's, after what has been learnt of lengths is saved."""
        self.laps.save()
        if self._step_log is not None:
            self._step_log.close()
        super().shutdown()


class AsyncLapsSdScheduler(LapsSdScheduler, AsyncScheduler):
    """The same where vLLM schedules a step before it has the results of the last."""

    _ahead = True

    def _pause(self, request: Request) -> None:
        super()._pause(request)
        # They stand for drafts that the runner keeps for the very next step only.
        request.spec_token_ids = []
