"""The scheduling policy of LAPS-SD, without an engine: events in, requests to run out.

Every request starts non-perceptible in the highest queue and is demoted as the engine time it has attained grows. Once
its acceptance rate is known well enough it is perceptible, and its place is that of the time it still needs. A request of
a higher queue pre-empts those of lower ones. Within a queue the non-perceptible come first, in order of arrival, then
the perceptible by remaining time.

**Starvation bound.** Of the requests of one priority class, one that has waited ``max_wait_s`` since it last ran goes
before all that have not, behind those that have waited longer, and stays in front for ``front_s``. With ``c`` requests
running at a time, ``n`` in the class and none in a higher one, and steps of at most ``s`` seconds, no request waits
longer than ``max_wait_s + ceil(n / c) * (front_s + s) + s``, whatever the others are or claim to be.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter

from vllm_kangaroo.laps_sd.acceptance import FLOOR, AcceptancePrior
from vllm_kangaroo.laps_sd.engine_time import CostAverages, RequestId, RequestProgress
from vllm_kangaroo.laps_sd.lengths import LengthPredictor, RequestFacts
from vllm_kangaroo.laps_sd.placement import Placement
from vllm_kangaroo.laps_sd.policy_options import LapsSdOptions
from vllm_kangaroo.laps_sd.policy_stats import PolicyStats
from vllm_kangaroo.laps_sd.queues import ReadyQueue, RunningSet
from vllm_kangaroo.laps_sd.request_state import Key, RequestState

_key = attrgetter("key")


class LapsSdPolicy:
    """Which requests to run. Deterministic: the same events in the same order give the same answers.

    Times are in seconds of one clock of the host's, which never goes back.
    """

    def __init__(self, options: LapsSdOptions, predictor: LengthPredictor) -> None:
        self.options = options
        self.predictor = predictor
        self.costs = CostAverages()
        self.prior = AcceptancePrior()
        self.stats = PolicyStats(options.queues)
        self._requests: dict[RequestId, RequestState] = {}
        self._running = RunningSet()
        self._ready = ReadyQueue()
        self._fronts: deque[tuple[float, RequestState]] = deque()
        """Until when a request that had waited long stays at the front, in order of that time."""
        self._arrivals = 0
        self._placement = Placement(options, self.costs, self.prior)
        self.catch_up: Callable[[RequestId], None] | None = None
        """Of a host that reports steps late: called with a running request before it may be stopped."""

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._requests

    def request(self, request_id: RequestId) -> RequestState:
        """What is known of a request; to be read only."""
        return self._requests[request_id]

    @property
    def running(self) -> list[RequestId]:
        """The requests chosen last, in no order."""
        return [request.request_id for request in self._running]

    def add(
        self, request_id: RequestId, facts: RequestFacts, now: float, priority: int = 0
    ) -> None:
        """A request is ready to run; the lower ``priority``, the sooner, as in vLLM."""
        assert request_id not in self._requests
        request = RequestState(
            request_id, facts, self.predictor.predict(facts), priority, self._arrivals, now
        )
        self._arrivals += 1
        self._requests[request_id] = request
        self.stats.added(request)
        self._place(request)
        self._ready.push(request)

    def remove(self, request_id: RequestId, *, output_tokens: int | None = None) -> None:
        """A request has ended.

        Args:
            output_tokens: its length, if it ended by itself; None for an abort, from which no length is learnt.
        """
        request = self._requests.pop(request_id)
        if request.running:
            self._leave(request)
        else:
            self._ready.discard(request)
        self.stats.removed(request)
        acceptance = request.acceptance
        if acceptance.reports >= 2:
            self.prior.learn(acceptance.seen, acceptance.mean, acceptance.variance)
        if output_tokens is not None:
            self.predictor.learn(request.facts, output_tokens)
            self.stats.finished(request)

    def select(
        self, capacity: int, now: float, admissible: Callable[[RequestId], bool] | None = None
    ) -> list[RequestId]:
        """The requests to run next, the most urgent first; see :meth:`choose`."""
        self.choose(capacity, now, admissible)
        return [request.request_id for request in sorted(self._running, key=_key)]

    def choose(
        self, capacity: int, now: float, admissible: Callable[[RequestId], bool] | None = None
    ) -> tuple[list[RequestId], list[RequestId]]:
        """Decide which requests run next: all that run now but for those changes that are given back.

        Costs nothing for requests that go on running or waiting.

        Args:
            capacity: how many can run.
            admissible: whether the host can run one beside those chosen so far; asked once for each that would be new.

        Returns:
            Those that start to run, the most urgent first, and those that stop.
        """
        self._end_fronts(now)
        self._promote_starved(now)
        running, ready = self._running, self._ready
        refused: list[RequestState] = []
        started: list[RequestId] = []
        stopped: list[RequestId] = []
        while len(running) > capacity and (least := running.least()) is not None:
            self._refresh(least)
            if least is running.least():
                self._leave(least)
                ready.push(least)
                stopped.append(least.request_id)
        while (candidate := ready.top()) is not None:
            worst = None
            if len(running) >= capacity:
                worst = self._victim_for(candidate)
                if worst is None:
                    break
            ready.discard(candidate)
            if admissible is not None and not admissible(candidate.request_id):
                refused.append(candidate)
                continue
            if worst is not None:
                self._leave(worst)
                ready.push(worst)
                self.stats.preemptions += 1
                _moves(worst.request_id, stopped, started)
            self._start(candidate, now)
            _moves(candidate.request_id, started, stopped)
        for request in refused:
            ready.push(request)
        return started, stopped

    def release(self, request_id: RequestId) -> None:
        """A request chosen by :meth:`select` could not run after all; it goes back to where it was."""
        request = self._requests[request_id]
        if request.running:
            self._stop(request)

    def adopt(self, request_id: RequestId) -> None:
        """The host runs a request that was not chosen; it counts among those that run."""
        request = self._requests[request_id]
        if not request.running:
            self._ready.discard(request)
            self._join(request)

    def rank(self, request_id: RequestId) -> Key:
        """Where a request stands; the larger, the less urgent."""
        return self._requests[request_id].key

    def outranks(self, request_id: RequestId, other: RequestId) -> bool:
        """Whether a request may take the place of another that runs."""
        return self._preempts(self._requests[request_id], self._requests[other])

    def save(self) -> None:
        """Keep what has been learnt of lengths, where the options say."""
        self.predictor.save()

    def evicted(self, request_id: RequestId, tokens: int) -> None:
        """A request has lost its KV: it waits, and must run that many tokens again before it goes on."""
        request = self._requests[request_id]
        request.prompt_left = tokens
        if request.running:
            self._stop(request)
        else:
            self._place_again(request)

    def report(self, step: Sequence[RequestProgress], seconds: float, now: float) -> None:
        """What a step did, how long it took, and when it ended. Requests that have been removed are skipped."""
        shares = self.costs.charge(step, seconds)
        self.follow_costs()
        for one, share in zip(step, shares, strict=True):
            self.account(one, share, now - seconds, now)

    def account(self, one: RequestProgress, seconds: float, began: float, ended: float) -> None:
        """What one request did in a step, or in several together: a host may tell of them later.

        Args:
            seconds: of engine time, its share.
            began: when the first of these steps began.
            ended: when the last of them ended.
        """
        options = self.options
        request = self._requests.get(one.request_id)
        if request is None:
            return
        if not request.started:
            request.started = True
            self.stats.waits.append(max(began - request.arrived, 0.0))
        request.attained += seconds
        request.last_ran = ended
        request.prompt_left = max(request.prompt_left - one.prompt_tokens, 0)
        if one.new_tokens and request.running:
            request.prompt_left = 0  # what had not to be run was in the prefix cache
        request.done += one.new_tokens
        if one.rounds:
            request.rounds += one.rounds
            request.tokens += one.new_tokens
            least = max(self.prior.within, FLOOR)
            request.acceptance.add(
                one.new_tokens, options.window, options.drift_sigmas, one.rounds, least
            )
        if (
            request.running
            and request.rounds < request.revisit_at
            and request.attained <= request.demoted_at
        ):
            return  # it can hardly have moved
        self._place_again(request)

    def _place_again(self, request: RequestState) -> None:
        if request.running:
            before = request.key
            self._place(request)
            if request.key != before:
                self._running.moved(request)
        else:
            self._ready.discard(request)
            self._place(request)
            self._ready.push(request)

    def _promote_starved(self, now: float) -> None:
        limit = now - self.options.max_wait_s
        while True:
            request = self._ready.longest_waiting()
            if request is None or request.last_ran > limit:
                return
            request.starved = True
            self.stats.starved += 1
            self._place_again(request)

    def _end_fronts(self, now: float) -> None:
        fronts = self._fronts
        while fronts and fronts[0][0] <= now:
            until, request = fronts.popleft()
            if request.running and request.front_until == until:
                request.starved = False
                self._place_again(request)

    def _preempts(self, candidate: RequestState, running: RequestState) -> bool:
        if candidate.priority != running.priority:
            return candidate.priority < running.priority
        if candidate.starved or running.starved:
            return candidate.starved and not running.starved
        if candidate.queue >= running.queue:
            return False
        gap = self.options.preemption_gap_s
        return gap == 0.0 or running.remaining - candidate.remaining > gap

    def _victim_for(self, candidate: RequestState) -> RequestState | None:
        """The running request whose place another may take, by what is known now; None if there is none."""
        running = self._running
        while (worst := running.least()) is not None and self._preempts(candidate, worst):
            self._refresh(worst)
            if worst is running.least() and self._preempts(candidate, worst):
                return worst
        return None

    def _refresh(self, request: RequestState) -> None:
        """Place a running request by what is known now."""
        if self.catch_up is not None:
            self.catch_up(request.request_id)
        self._place_again(request)

    def _start(self, request: RequestState, now: float) -> None:
        self._join(request)
        if request.starved:
            request.front_until = now + self.options.front_s
            self._fronts.append((request.front_until, request))

    def _join(self, request: RequestState) -> None:
        request.running = True
        self._running.add(request)

    def _leave(self, request: RequestState) -> None:
        request.running = False
        self._running.discard(request)

    def _stop(self, request: RequestState) -> None:
        self._refresh(request)
        self._leave(request)
        self._ready.push(request)

    def follow_costs(self) -> None:
        """The costs have changed: the bounds of the queues go by that of a round."""
        self._placement.follow_costs()

    def _place(self, request: RequestState) -> None:
        was, before = request.perceptible, request.queue
        self._placement.place(request)
        if was != request.perceptible or before != request.queue:
            self.stats.moved(request, before, was)


def _moves(request_id: RequestId, to: list[RequestId], back: list[RequestId]) -> None:
    """Note a change, or that one has been undone."""
    if request_id in back:
        back.remove(request_id)
    else:
        to.append(request_id)
