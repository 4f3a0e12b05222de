"""The time of the engine that each request of a workload takes, which no scheduler is given."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.laps_sd.simulator.step_time import StepTime
from vllm_kangaroo.laps_sd.simulator.workload import Workload

TOKEN_BUDGET = 2048
"""Most tokens in a step of the simulated engine, if nothing else is said."""


class TrueWork:
    """Seconds of the engine that a request still needs, its prompt included, by the simulator's model of a step.

    With one request at a time these are the very seconds that the simulator takes for it, whatever runs between its
    steps. In larger batches what others do counts as well: they are taken to decode, and to have read nothing.

    Args:
        prompts: prompt tokens of each request.
        batch_size: most requests in a step.
        token_budget: most tokens in a step.
    """

    def __init__(
        self,
        workload: Workload,
        prompts: Sequence[int],
        step_time: StepTime,
        *,
        batch_size: int = 1,
        token_budget: int = TOKEN_BUDGET,
    ) -> None:
        self._rounds = workload.rounds
        self._prompts = prompts
        self._step_time = step_time
        width = workload.drafts + 1
        self._others = batch_size - 1
        self._others_tokens = self._others * width
        self._others_drafts = workload.drafts if self._others else 0
        self._chunk = max(token_budget - self._others_tokens, 1)
        self._full_chunk = self._prompt_step(self._chunk)
        self._round = step_time.seconds(batch_size, batch_size * width, 0, workload.drafts)
        self._kv_after: dict[int, list[int]] = {}

    def left(self, request: int, prompt_tokens: int = 0, rounds: int = 0) -> float:
        """Of a request that has run that many prompt tokens and rounds."""
        left = len(self._rounds[request]) - rounds
        seconds = left * self._round
        if self._step_time.per_kv:
            if left:
                seconds += self._step_time.per_kv * self._kv_of(request)[rounds]
            else:
                self._kv_after.pop(request, None)
        full, rest = divmod(self._prompts[request] - prompt_tokens, self._chunk)
        return seconds + full * self._full_chunk + (self._prompt_step(rest) if rest else 0.0)

    def totals(self) -> NDArray[np.float64]:
        """Seconds of each request from its first prompt token."""
        found = np.empty(len(self._prompts))
        for request in range(len(found)):
            found[request] = self.left(request)
            self._kv_after.pop(request, None)  # a long stream would fill the memory
        return found

    def _prompt_step(self, tokens: int) -> float:
        return self._step_time.seconds(
            self._others + 1, self._others_tokens + tokens, tokens, self._others_drafts, tokens
        )

    def _kv_of(self, request: int) -> list[int]:
        """Positions read in a round and all that follow it, by round."""
        found = self._kv_after.get(request)
        if found is None:
            there = accumulate(
                (accepted + 1 for accepted in self._rounds[request][:-1]),
                initial=self._prompts[request],
            )
            found = list(accumulate(reversed(list(there))))[::-1]
            self._kv_after[request] = found
        return found


def least_mean_latency(arrivals: NDArray[np.float64], work: NDArray[np.float64]) -> float:
    """A lower bound of the mean latency of any schedule that runs one request at a time.

    It is that of the shortest remaining time first, where a request may be interrupted at any instant. On one machine
    no schedule has a smaller one (Schrage, Operations Research 16, 1968), those included that stop between steps only.

    Args:
        arrivals: seconds, in order.
        work: seconds that each request takes alone.
    """
    waiting: list[float] = []
    now = total = 0.0
    for arrival, seconds in zip(arrivals.tolist(), work.tolist(), strict=True):
        while waiting and now + waiting[0] <= arrival:
            now += heappop(waiting)
            total += now
        if waiting:
            heappush(waiting, heappop(waiting) - (arrival - now))
        now = arrival
        heappush(waiting, seconds)
    while waiting:
        now += heappop(waiting)
        total += now
    return (total - float(arrivals.sum())) / len(arrivals)
