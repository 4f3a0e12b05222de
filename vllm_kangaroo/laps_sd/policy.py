"""The scheduling policy of LAPS-SD, without an engine: events in, requests to run out.

Every request starts non-perceptible in the highest queue and sinks as the service it has attained grows. Once its
acceptance rate is known well enough it is perceptible, and its place is that of the time it still needs. A request of
a higher queue pre-empts those of lower ones. Within a queue the non-perceptible come first, in order of arrival, then
the perceptible by remaining time.

**Starvation bound.** Of the requests of one priority class, one that has waited ``max_wait_s`` since it last ran goes
before all that have not, behind those that have waited longer, and stays in front for ``front_s``. With ``c`` requests
running at a time, ``n`` in the class and none in a higher one, and steps of at most ``s`` seconds, nobody waits longer
than ``max_wait_s + ceil(n / c) * (front_s + s) + s``, whatever the others are or claim to be.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from operator import attrgetter

from vllm_kangaroo.laps_sd.acceptance import FLOOR, Z95, AcceptancePrior
from vllm_kangaroo.laps_sd.engine_time import CostAverages, Progress, RequestId
from vllm_kangaroo.laps_sd.lengths import LengthPredictor, RequestFacts
from vllm_kangaroo.laps_sd.policy_options import LapsSdOptions
from vllm_kangaroo.laps_sd.queues import ReadyQueue, RunningSet
from vllm_kangaroo.laps_sd.request_state import Entry, Key
from vllm_kangaroo.laps_sd.tally import Tally

_key = attrgetter("key")


class LapsSdPolicy:
    """Which requests to run. Deterministic: the same events in the same order give the same answers.

    Times are in seconds of one clock of the host's, which never goes back.
    """

    PATIENCE = 0.5
    """Share of the rounds that are left, after which a running perceptible request is looked at again."""

    def __init__(self, options: LapsSdOptions, predictor: LengthPredictor) -> None:
        self.options = options
        self.predictor = predictor
        self.costs = CostAverages()
        self.prior = AcceptancePrior()
        self.tally = Tally(options.queues)
        self._entries: dict[RequestId, Entry] = {}
        self._running = RunningSet()
        self._ready = ReadyQueue()
        self._fronts: deque[tuple[float, Entry]] = deque()
        """Until when a request that had waited long stays at the front, in order of that time."""
        self._arrivals = 0
        self._bounds: list[float] = []
        self._base = 0.0
        self.catch_up: Callable[[RequestId], None] | None = None
        """For a host that tells of steps late: called with a running request that may have to stop, to hear of it."""

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: RequestId) -> bool:
        return request_id in self._entries

    def entry(self, request_id: RequestId) -> Entry:
        """What is known of a request; to be read only."""
        return self._entries[request_id]

    @property
    def running(self) -> list[RequestId]:
        """The requests chosen last, in no order."""
        return [entry.request_id for entry in self._running]

    def add(
        self, request_id: RequestId, facts: RequestFacts, now: float, priority: int = 0
    ) -> None:
        """A request is ready to run; the lower ``priority``, the sooner, as in vLLM."""
        assert request_id not in self._entries
        entry = Entry(
            request_id, facts, self.predictor.predict(facts), priority, self._arrivals, now
        )
        self._arrivals += 1
        self._entries[request_id] = entry
        self.tally.enter(entry)
        self._place(entry)
        self._ready.push(entry)

    def remove(self, request_id: RequestId, *, output_tokens: int | None = None) -> None:
        """A request has ended.

        Args:
            output_tokens: its length, if it ended by itself; None for an abort, from which no length is learnt.
        """
        entry = self._entries.pop(request_id)
        if entry.running:
            self._leave(entry)
        else:
            self._ready.discard(entry)
        self.tally.leave(entry)
        acceptance = entry.acceptance
        if acceptance.pieces >= 2:
            self.prior.learn(acceptance.seen, acceptance.mean, acceptance.variance)
        if output_tokens is not None:
            self.predictor.learn(entry.facts, output_tokens)
            self.tally.finished(entry)

    def select(
        self, capacity: int, now: float, admissible: Callable[[RequestId], bool] | None = None
    ) -> list[RequestId]:
        """The requests to run next, the most urgent first; see :meth:`choose`."""
        self.choose(capacity, now, admissible)
        return [entry.request_id for entry in sorted(self._running, key=_key)]

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
        self._wake_starved(now)
        running, ready = self._running, self._ready
        refused: list[Entry] = []
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
                worst = self._weaker(candidate)
                if worst is None:
                    break
            ready.discard(candidate)
            if admissible is not None and not admissible(candidate.request_id):
                refused.append(candidate)
                continue
            if worst is not None:
                self._leave(worst)
                ready.push(worst)
                self.tally.preemptions += 1
                _moves(worst.request_id, stopped, started)
            self._start(candidate, now)
            _moves(candidate.request_id, started, stopped)
        for entry in refused:
            ready.push(entry)
        return started, stopped

    def release(self, request_id: RequestId) -> None:
        """A request chosen by :meth:`select` could not run after all; it goes back to where it was."""
        entry = self._entries[request_id]
        if entry.running:
            self._stop(entry)

    def adopt(self, request_id: RequestId) -> None:
        """The host runs a request that was not chosen; it counts among those that run."""
        entry = self._entries[request_id]
        if not entry.running:
            self._ready.discard(entry)
            self._join(entry)

    def rank(self, request_id: RequestId) -> Key:
        """Where a request stands; the larger, the less urgent."""
        return self._entries[request_id].key

    def outranks(self, request_id: RequestId, other: RequestId) -> bool:
        """Whether a request may take the place of another that runs."""
        return self._preempts(self._entries[request_id], self._entries[other])

    def save(self) -> None:
        """Keep what has been learnt of lengths, where the options say."""
        self.predictor.save()

    def evicted(self, request_id: RequestId, tokens: int) -> None:
        """A request has lost its KV: it waits, and must run that many tokens again before it goes on."""
        entry = self._entries[request_id]
        entry.prompt_left = tokens
        if entry.running:
            self._stop(entry)
        else:
            self._place_again(entry)

    def report(self, step: Sequence[Progress], seconds: float, now: float) -> None:
        """What a step did, how long it took, and when it ended. Requests that have been removed are skipped."""
        shares = self.costs.charge(step, seconds)
        self.follow_costs()
        for one, share in zip(step, shares, strict=True):
            self.account(one, share, now - seconds, now)

    def account(self, one: Progress, seconds: float, began: float, ended: float) -> None:
        """What one request did in a step, or in several together: a host may tell of them later.

        Args:
            seconds: of engine time, its share.
            began: when the first of these steps began.
            ended: when the last of them ended.
        """
        options = self.options
        entry = self._entries.get(one.request_id)
        if entry is None:
            return
        if not entry.started:
            entry.started = True
            self.tally.waits.append(max(began - entry.arrived, 0.0))
        entry.attained += seconds
        entry.last_ran = ended
        entry.prompt_left = max(entry.prompt_left - one.prompt_tokens, 0)
        if one.new_tokens and entry.running:
            entry.prompt_left = 0  # what had not to be run was in the prefix cache
        entry.done += one.new_tokens
        if one.rounds:
            entry.rounds += one.rounds
            entry.tokens += one.new_tokens
            least = max(self.prior.within, FLOOR)
            entry.acceptance.add(
                one.new_tokens, options.window, options.drift_sigmas, one.rounds, least
            )
        if entry.running and entry.rounds < entry.look_again and entry.attained <= entry.sinks_at:
            return  # it can hardly have moved
        self._place_again(entry)

    def _place_again(self, entry: Entry) -> None:
        if entry.running:
            before = entry.key
            self._place(entry)
            if entry.key != before:
                self._running.moved(entry)
        else:
            self._ready.discard(entry)
            self._place(entry)
            self._ready.push(entry)

    def _wake_starved(self, now: float) -> None:
        limit = now - self.options.max_wait_s
        while True:
            entry = self._ready.longest_waiting()
            if entry is None or entry.last_ran > limit:
                return
            entry.starved = True
            self.tally.starved += 1
            self._place_again(entry)

    def _end_fronts(self, now: float) -> None:
        fronts = self._fronts
        while fronts and fronts[0][0] <= now:
            until, entry = fronts.popleft()
            if entry.running and entry.front_until == until:
                entry.starved = False
                self._place_again(entry)

    def _preempts(self, candidate: Entry, running: Entry) -> bool:
        if candidate.priority != running.priority:
            return candidate.priority < running.priority
        if candidate.starved or running.starved:
            return candidate.starved and not running.starved
        if candidate.queue >= running.queue:
            return False
        gap = self.options.preemption_gap_s
        return gap == 0.0 or running.remaining - candidate.remaining > gap

    def _weaker(self, candidate: Entry) -> Entry | None:
        """The running request that makes room for another, by what is known now; None if there is none."""
        running = self._running
        while (worst := running.least()) is not None and self._preempts(candidate, worst):
            self._refresh(worst)
            if worst is running.least() and self._preempts(candidate, worst):
                return worst
        return None

    def _refresh(self, entry: Entry) -> None:
        """Place a running request by what is known now."""
        if self.catch_up is not None:
            self.catch_up(entry.request_id)
        self._place_again(entry)

    def _start(self, entry: Entry, now: float) -> None:
        self._join(entry)
        if entry.starved:
            entry.front_until = now + self.options.front_s
            self._fronts.append((entry.front_until, entry))

    def _join(self, entry: Entry) -> None:
        entry.running = True
        self._running.add(entry)

    def _leave(self, entry: Entry) -> None:
        entry.running = False
        self._running.discard(entry)

    def _stop(self, entry: Entry) -> None:
        self._refresh(entry)
        self._leave(entry)
        self._ready.push(entry)

    def follow_costs(self) -> None:
        """Follow the measured cost of a round, in jumps: a request's place should not move with every step."""
        options = self.options
        base = options.base_threshold_s or options.base_rounds * self.costs.per_round
        if base > 0.0 and not 0.8 < self._base / base < 1.25:
            self._base = base
            self._bounds = [base * options.growth**k for k in range(options.queues - 1)]

    def _place(self, entry: Entry) -> None:
        """Work out state, remaining time, queue and key from what is known now."""
        options, prior, acceptance = self.options, self.prior, entry.acceptance
        was, before = entry.perceptible, entry.queue
        known = prior.worth_rounds + entry.rounds
        if known > 0.0:
            per_round = (prior.worth_rounds * prior.mean + entry.tokens) / known
        else:
            per_round = prior.mean
        per_round = max(per_round, 1.0)
        wanted = (Z95 / (options.epsilon * per_round)) ** 2
        entry.perceptible = acceptance.precision(prior, options.window) > wanted
        left = min(entry.law.remaining(entry.done), max(entry.facts.max_tokens - entry.done, 1))
        rounds_left = max(left / per_round, 1.0)
        entry.remaining = (
            entry.prompt_left * self.costs.per_prompt_token + rounds_left * self.costs.per_round
        )
        bounds = self._bounds
        if entry.perceptible:
            queue = bisect_left(bounds, entry.remaining)
            entry.look_again = entry.rounds + max(1, int(rounds_left * self.PATIENCE))
            entry.sinks_at = inf
        else:
            queue = bisect_left(bounds, entry.attained)
            missing = acceptance.rounds_to(wanted, prior, options.window)
            entry.look_again = entry.rounds + max(1, int(min(missing / 2, 2 * options.window)))
            entry.sinks_at = bounds[queue] if queue < len(bounds) else inf
            if not bounds:  # no cost has been measured yet
                entry.look_again = entry.rounds
        entry.queue = queue
        if was != entry.perceptible or before != queue:
            self.tally.shift(entry, before, was)
        if entry.perceptible and entry.estimate is None and entry.rounds:
            entry.estimate = (entry.remaining, entry.attained)
        if entry.starved:
            entry.key = (entry.priority, -1.0, entry.last_ran, 0.0, entry.number)
        elif entry.perceptible:
            entry.key = (entry.priority, queue, 1.0, entry.remaining, entry.number)
        else:
            entry.key = (entry.priority, queue, 0.0, 0.0, entry.number)


def _moves(request_id: RequestId, to: list[RequestId], back: list[RequestId]) -> None:
    """Note a change, or that one has been undone."""
    if request_id in back:
        back.remove(request_id)
    else:
        to.append(request_id)
