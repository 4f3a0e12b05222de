"""What steps did for each request, read off clocks when the policy needs to look at one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Any

from vllm.v1.request import Request, RequestStatus

from vllm_kangaroo.laps_sd.engine_time import Progress, RequestId
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.request_state import Entry


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A step on its way through the engine."""

    started: float
    """Seconds of the monotonic clock."""
    kv_tokens: int


class _Account:
    """One request: where the ledger's clocks stood when the policy was last told of it, and what they do not show."""

    __slots__ = (
        "answering",
        "due",
        "entry",
        "idle_rounds",
        "joined",
        "more_s",
        "prompt",
        "request",
        "rounds",
        "seconds",
        "sinks_at",
    )

    def __init__(self, request: Request, entry: Entry) -> None:
        self.request = request
        self.entry = entry
        self.joined = False
        """Whether it was in the last step."""
        self.answering = False
        """Whether the prompt is through."""
        self.due: float = inf
        """Reading of the clock of rounds at which to look at it."""
        self.sinks_at = inf
        """Reading of the clock of seconds at which it may be in a lower queue."""
        self.restart(0, 0.0)

    def restart(self, rounds: int, seconds: float) -> None:
        """All has been told, as the clocks stand."""
        self.rounds = rounds
        self.seconds = seconds
        self.more_s = 0.0
        """Seconds beyond the clock's, for steps in which it had more positions, or fewer, than a full round."""
        self.idle_rounds = 0
        """Of the clock's, those that brought no token."""
        self.prompt = 0
        """Prompt tokens run."""


class StepLedger:
    """Counts steps for all requests together, and tells the policy of one when that may change its place.

    Two clocks go on with every step: rounds, and the seconds that a round with all drafts costs. What a request did
    since it was last told of is how far they have moved, and how many tokens it has now; only requests whose round was
    not a full one need a note. A step costs what changes in it: who comes and goes, who runs prompt, and who is due.

    The policy says after how many rounds, or seconds charged, it wants to look at a request again. Prompts, and all of
    a step of up to :data:`LOOKS` requests that are due, are told at once; where more are due, the rest are in the steps
    that follow, so that a large batch costs each step about the same.

    Args:
        requests: vLLM's, by name.
        most_positions: that one decoding round of a request can have.
    """

    LOOKS = 4
    """Most decoding requests told of after one step."""

    def __init__(
        self, policy: LapsSdPolicy, requests: Mapping[str, Request], most_positions: int
    ) -> None:
        self._policy = policy
        self._requests = requests
        self._most = most_positions
        self._rounds = 0
        self._seconds = 0.0
        self._began = self._ended = 0.0
        """Of the last step."""
        self._names: list[str] = []
        """Of the last step, those among them that have ended since."""
        self._accounts: dict[RequestId, _Account] = {}
        self._joined: dict[RequestId, _Account] = {}
        self._prompts: dict[RequestId, _Account] = {}
        """Of those that were in the last step, the ones that do not answer yet."""
        self._calendar: dict[float, list[_Account]] = {}
        self._sinking: list[tuple[float, int, _Account]] = []
        self._pushed = 0
        self._due: deque[_Account] = deque()

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
        names = list(scheduled)
        if names != self._names:
            self._regroup(scheduled)
            self._names = names
        most, joined = self._most, self._joined
        total = output.total_num_scheduled_tokens
        rate = seconds / max(total, 1)
        self._began, self._ended = now - seconds, now
        self._rounds += 1
        self._seconds += rate * most
        prompt = 0
        for name, account in self._prompts.items():
            positions = scheduled[name]
            prompt += positions
            account.prompt += positions
            account.more_s += rate * (positions - most)
        decoding = total - prompt
        if len(names) > len(joined):  # some have ended while the step was on its way
            decoding -= sum(scheduled[name] for name in names if name not in joined)
        rounds = len(joined) - len(self._prompts)
        if decoding != rounds * most:
            for name, positions in scheduled.items():
                if positions != most and (found := joined.get(name)) and found.answering:
                    found.more_s += rate * (positions - most)
        sampled = results.sampled_token_ids
        if not (sampled and all(sampled)):
            at = results.req_id_to_index
            for name, account in joined.items():
                if account.answering and not (sampled and name in at and sampled[at[name]]):
                    account.idle_rounds += 1
                    rounds -= 1
        self._policy.costs.observe(rate, rate * decoding, rounds, prompt)
        self._policy.follow_costs()
        return prompt

    def tell(self) -> None:
        """Tell the policy what it should hear of the step, now that the scheduler has taken in its results."""
        for name, account in list(self._prompts.items()):
            before = account.entry.done
            self._tell(account)
            # After an eviction, tokens may come that were on their way: the prompt is not through for that.
            through = account.request.status == RequestStatus.RUNNING
            if through and account.entry.done > before:
                account.answering = True
                del self._prompts[name]
                self._watch(account)
        rounds, seconds, due = self._rounds, self._seconds, self._due
        due.extend(self._calendar.pop(rounds, ()))
        sinking = self._sinking
        while sinking and sinking[0][0] < seconds:
            due.append(heappop(sinking)[2])
        looks = self.LOOKS
        while due and looks:
            account = due.popleft()
            if account.joined and (account.due <= rounds or account.sinks_at < seconds):
                self._tell(account)
                self._watch(account)
                looks -= 1

    def settle(self, name: RequestId) -> None:
        """Tell the policy what it has not been told of a request."""
        account = self._accounts.get(name)
        if account is not None and account.joined:
            self._tell(account)

    def evicted(self, name: RequestId) -> None:
        """A request has lost its KV: what it runs next is prompt."""
        self.settle(name)
        if account := self._accounts.get(name):
            account.answering = False
            if account.joined:
                self._prompts[name] = account

    def leave(self, name: RequestId) -> None:
        """A request has ended, or is about to."""
        self.settle(name)
        if account := self._accounts.pop(name, None):
            self._part(name, account)
            self._names = []

    def _untold(self, account: _Account) -> tuple[Progress, float]:
        """What a request did, and the seconds charged for it, since the policy was last told."""
        request, prompt, rounds = account.request, account.prompt, 0
        if account.answering:
            rounds = self._rounds - account.rounds - account.idle_rounds
        tokens = request.num_output_tokens - account.entry.done
        seconds = self._seconds - account.seconds + account.more_s
        return Progress(request.request_id, prompt, rounds, 0, tokens), seconds

    def _tell(self, account: _Account) -> None:
        if account.rounds != self._rounds:
            one, seconds = self._untold(account)
            account.restart(self._rounds, self._seconds)
            self._policy.account(one, seconds, self._began, self._ended)

    def _watch(self, account: _Account) -> None:
        """Note when the policy wants to look at a request again."""
        entry = account.entry
        wait = entry.look_again - entry.rounds if entry.running else 1
        account.due = due = self._rounds + max(wait, 1)
        self._calendar.setdefault(due, []).append(account)
        account.sinks_at = inf
        if entry.sinks_at < inf:
            account.sinks_at = self._seconds + entry.sinks_at - entry.attained
            self._pushed += 1
            heappush(self._sinking, (account.sinks_at, self._pushed, account))

    def _regroup(self, scheduled: dict[str, int]) -> None:
        """Requests have come into the batch, or gone from it, or changed places."""
        joined = self._joined
        if not joined.keys() <= scheduled.keys():
            for name in [name for name in joined if name not in scheduled]:
                account = joined[name]
                self._tell(account)
                self._part(name, account)
        missing = len(scheduled) - len(joined)
        for name in reversed(scheduled):  # those who are new come last, mostly
            if not missing:
                break
            if name not in joined:
                missing -= 1
                if name in self._policy:
                    self._join(name)

    def _join(self, name: str) -> None:
        account = self._accounts.get(name)
        if account is None:
            account = _Account(self._requests[name], self._policy.entry(name))
            self._accounts[name] = account
        account.joined = True
        account.restart(self._rounds, self._seconds)
        self._joined[name] = account
        if account.answering:
            self._watch(account)
        else:
            self._prompts[name] = account

    def _part(self, name: RequestId, account: _Account) -> None:
        account.joined = False
        self._joined.pop(name, None)
        self._prompts.pop(name, None)
