"""What steps did for each request, kept in arrays until the policy needs to look at one."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.service import Progress, RequestId

SECONDS, ROUNDS, TOKENS, SQUARES = range(4)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A step on its way through the engine."""

    started: float
    """Seconds of the monotonic clock."""
    kv_tokens: int


class StepLedger:
    """Adds up the rounds of requests, and tells the policy of one when that may change its place.

    The policy says after how many rounds, or seconds charged, it wants to look at a request again. Prompts, and all of
    a step of up to :data:`LOOKS` requests that are due, are told at once; where more are due, the rest are in the steps
    that follow, so that a large batch costs each step about the same.
    """

    LOOKS = 8
    """Most decoding requests told of after one step."""

    def __init__(self, policy: LapsSdPolicy, most_positions: int) -> None:
        self._policy = policy
        self._most = most_positions
        """Positions that one decoding round of a request can have."""
        self._slots: dict[RequestId, int] = {}
        self._free: list[int] = []
        self._pending = np.zeros((1, 4))
        """By slot: seconds, rounds, tokens of rounds, their squares. Slot 0 is that of requests that have ended."""
        self._answering = np.zeros(1, dtype=bool)
        """Whether the prompt is through, by slot."""
        self._look = np.full(1, inf)
        self._sink = np.full(1, inf)
        self._ended = np.zeros(1)
        self._names: list[RequestId] = []
        self._at = np.zeros(0, dtype=np.int64)
        self._steady = False
        """Whether all of the last step were decoding, and the requests have been the same since."""
        self._turn = 0

    def take(self, output: Any, results: Any, seconds: float, now: float) -> int:
        """Account for a step.

        Args:
            output: vLLM's ``SchedulerOutput``.
            results: the ``ModelRunnerOutput`` that belongs to it, not yet taken in by the scheduler.
            seconds: that it took.
            now: when its results came.

        Returns:
            How many prompt tokens were in it.
        """
        scheduled = output.num_scheduled_tokens
        names, sampled = results.req_ids, results.sampled_token_ids
        if len(names) != len(scheduled):
            index, found = results.req_id_to_index, sampled
            names = list(scheduled)
            sampled = [found[index[name]] if found and name in index else () for name in names]
        size = len(names)
        at = self._places(names)
        new = np.fromiter(map(len, sampled), np.int64, size) if sampled else np.zeros(size, int)
        total = output.total_num_scheduled_tokens
        rate, chosen, answer, prompt = seconds / max(total, 1), None, new, 0
        if self._steady and total == size * self._most and int(new.min()) > 0:
            # All decode with all their drafts.
            spent: NDArray[np.float64] | float = rate * self._most
            self._policy.costs.observe(rate, seconds, size, int(new.sum()), 0)
            self._policy.follow_costs()
        else:
            positions = np.fromiter(map(scheduled.__getitem__, names), np.int64, size)
            rounds = self._answering[at] & (new > 0) & (positions <= self._most)
            chosen, prompts = np.flatnonzero(rounds), np.flatnonzero(~rounds).tolist()
            self._steady = not prompts
            at, answer, decoding = at[chosen], new[chosen], positions[chosen]
            spent = rate * decoding
            decode_s, prompt = rate * int(decoding.sum()), int(positions[prompts].sum())
            costs = self._policy.costs
            costs.observe(rate, decode_s, len(answer), int(answer.sum()), prompt)
            self._policy.follow_costs()
            for each in prompts:
                one = Progress(names[each], int(positions[each]), new_tokens=int(new[each]))
                self._tell_prompt(one, rate * one.prompt_tokens, now - seconds, now)
            if not len(answer):
                return prompt
        done = np.empty((len(answer), 4))
        done[:, SECONDS] = spent
        done[:, ROUNDS] = 1
        done[:, TOKENS] = answer
        done[:, SQUARES] = answer * answer
        done += self._pending[at]
        self._pending[at] = done
        self._ended[at] = now
        due = (done[:, ROUNDS] >= self._look[at]) | (done[:, SECONDS] > self._sink[at])
        for each in self._next(np.flatnonzero(due).tolist()):
            self.settle(names[each if chosen is None else int(chosen[each])])
        return prompt

    def _next(self, due: list[int]) -> list[int]:
        """Those whose turn it is."""
        if len(due) <= self.LOOKS:
            return due
        first = next((at for at, each in enumerate(due) if each > self._turn), 0)
        turn = (due[first:] + due[:first])[: self.LOOKS]
        self._turn = turn[-1]
        return turn

    def _places(self, names: list[RequestId]) -> NDArray[np.int64]:
        if names != self._names:
            slots = self._slots
            try:
                found = np.fromiter(map(slots.__getitem__, names), np.int64, len(names))
            except KeyError:  # some have ended while the step was on its way
                for name in names:
                    if name not in slots and name in self._policy:
                        self._enter(name)
                found = np.array([slots.get(name, 0) for name in names], dtype=np.int64)
            self._names, self._steady, self._at = list(names), False, found
        return self._at

    def _enter(self, name: RequestId) -> int:
        if not self._free:
            size = len(self._look)
            self._free = list(range(2 * size - 1, size - 1, -1))
            self._pending = np.vstack((self._pending, np.zeros((size, 4))))
            self._answering = np.concatenate((self._answering, np.zeros(size, dtype=bool)))
            self._look = np.concatenate((self._look, np.full(size, inf)))
            self._sink = np.concatenate((self._sink, np.full(size, inf)))
            self._ended = np.concatenate((self._ended, np.zeros(size)))
        slot = self._slots[name] = self._free.pop()
        return slot

    def _tell_prompt(self, one: Progress, seconds: float, began: float, ended: float) -> None:
        self._policy.account(one, seconds, began, ended)
        if slot := self._slots.get(one.request_id):
            self._answering[slot] |= one.new_tokens > 0
            self.watch(one.request_id)

    def settle(self, name: RequestId) -> None:
        """Tell the policy what it has not been told of a request."""
        slot = self._slots.get(name)
        if slot is None:
            return
        seconds, rounds, tokens, squares = self._pending[slot].tolist()
        if rounds:
            self._pending[slot] = 0.0
            ended = float(self._ended[slot])
            one = Progress(name, 0, int(rounds), 0, int(tokens), int(squares))
            self._policy.account(one, seconds, ended, ended)
        self.watch(name)

    def watch(self, name: RequestId) -> None:
        """Note when the policy wants to look at a request again."""
        slot = self._slots.get(name) or self._enter(name)
        entry = self._policy.entry(name)
        self._look[slot] = entry.look_again - entry.rounds if entry.running else 0
        self._sink[slot] = entry.sinks_at - entry.attained

    def evicted(self, name: RequestId) -> None:
        """A request has lost its KV: what it runs next is prompt."""
        self.settle(name)
        if slot := self._slots.get(name):
            self._answering[slot] = self._steady = False

    def leave(self, name: RequestId) -> None:
        """A request has ended, or is about to."""
        self.settle(name)
        slot = self._slots.pop(name, None)
        if slot is not None:
            self._answering[slot] = False
            self._look[slot] = self._sink[slot] = inf
            self._free.append(slot)
            self._names, self._steady = [], False
