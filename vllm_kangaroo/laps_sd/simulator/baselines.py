"""What LAPS-SD is compared with: orders by one key, with or without pre-emption."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import Protocol

from vllm_kangaroo.laps_sd.engine_time import CostAverages, RequestId, RequestProgress
from vllm_kangaroo.laps_sd.lengths import LengthPredictor, RequestFacts
from vllm_kangaroo.laps_sd.simulator.true_work import TrueWork


class SimulatedPolicy(Protocol):
    """What the simulator calls of a policy; :class:`~vllm_kangaroo.laps_sd.policy.LapsSdPolicy` is one."""

    def add(self, request_id: RequestId, facts: RequestFacts, now: float) -> None:
        """A request has arrived."""

    def remove(self, request_id: RequestId, *, output_tokens: int | None = None) -> None:
        """A request has ended."""

    def select(self, capacity: int, now: float) -> list[RequestId]:
        """The requests to run next."""

    def report(self, step: Sequence[RequestProgress], seconds: float, now: float) -> None:
        """What a step did."""


class _Job:
    __slots__ = ("attained", "facts", "key", "prompt_tokens", "request_id", "rounds")

    def __init__(self, request_id: RequestId, facts: RequestFacts) -> None:
        self.request_id = request_id
        self.facts = facts
        self.attained = 0.0
        self.prompt_tokens = 0
        """Of the prompt, those that have been run."""
        self.rounds = 0
        self.key = 0.0


class KeyPolicy:
    """Runs the requests of the smallest keys.

    Args:
        key: of a request, from what is known of it now.
        preemptive: whether a request of a smaller key takes the place of a running one.
    """

    def __init__(self, key: Callable[[_Job], float], *, preemptive: bool) -> None:
        self._key = key
        self._preemptive = preemptive
        self._jobs: dict[RequestId, _Job] = {}
        self._running: list[RequestId] = []
        self._ready: list[tuple[float, int, RequestId]] = []
        self.costs = CostAverages()

    def add(self, request_id: RequestId, facts: RequestFacts, now: float) -> None:
        """See :class:`SimulatedPolicy`."""
        job = _Job(request_id, facts)
        job.key = self._key(job)
        self._jobs[request_id] = job
        heappush(self._ready, (job.key, int(request_id), request_id))

    def remove(self, request_id: RequestId, *, output_tokens: int | None = None) -> None:
        """See :class:`SimulatedPolicy`; only running requests end."""
        self._running.remove(request_id)
        del self._jobs[request_id]

    def select(self, capacity: int, now: float) -> list[RequestId]:
        """See :class:`SimulatedPolicy`."""
        ready, running, jobs = self._ready, self._running, self._jobs
        while ready and len(running) < capacity:
            running.append(heappop(ready)[2])
        while ready and self._preemptive:
            worst = max(running, key=lambda each: jobs[each].key)
            if ready[0][0] >= jobs[worst].key:
                break
            running.remove(worst)
            heappush(ready, (jobs[worst].key, int(worst), worst))
            running.append(heappop(ready)[2])
        return running

    def report(self, step: Sequence[RequestProgress], seconds: float, now: float) -> None:
        """See :class:`SimulatedPolicy`."""
        shares = self.costs.charge(step, seconds)
        for one, share in zip(step, shares, strict=True):
            job = self._jobs.get(one.request_id)
            if job is not None:
                job.attained += share
                job.prompt_tokens += one.prompt_tokens
                job.rounds += one.rounds
                job.key = self._key(job)


def fcfs() -> KeyPolicy:
    """First come, first served: vLLM's default."""
    return KeyPolicy(lambda job: 0.0, preemptive=False)


def sjf(predictor: LengthPredictor) -> KeyPolicy:
    """The shortest predicted answer first, never interrupted."""
    return KeyPolicy(lambda job: predictor.predict(job.facts).remaining(0), preemptive=False)


def las(base_rounds: float = 4.0, growth: float = 2.0, queues: int = 8) -> KeyPolicy:
    """Least attained service in bands, first come first served within one (MLFQ)."""
    bounds = [base_rounds * growth**k for k in range(queues - 1)]
    policy: KeyPolicy

    def band(job: _Job) -> float:
        cost = policy.costs.per_round
        return float(bisect_left(bounds, job.attained / cost)) if cost else 0.0

    policy = KeyPolicy(band, preemptive=True)
    return policy


def srpt(work: TrueWork) -> KeyPolicy:
    """Shortest remaining time first, by true lengths and true acceptance, prompts included: an oracle.

    It is no bound, since steps cannot be interrupted, and in batches the order by time need not be the best. For one
    request at a time, :func:`~vllm_kangaroo.laps_sd.simulator.true_work.least_mean_latency` is one.
    """
    return KeyPolicy(
        lambda job: work.left(int(job.request_id), job.prompt_tokens, job.rounds), preemptive=True
    )
