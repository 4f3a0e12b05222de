"""What steps did for each request, read off running totals when the policy needs it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush
from math import inf
from typing import Any

from vllm.v1.request import Request, RequestStatus

from vllm_kangaroo.laps_sd.engine_time import RequestId, RequestProgress
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.request_state import RequestState


class _Account:
    """One request: the ledger's totals when the policy last had a report of it, and what they do not show."""

    __slots__ = (
        "decoding",
        "demoted_at",
        "due",
        "extra_s",
        "idle_rounds",
        "in_batch",
        "prompt",
        "request",
        "rounds",
        "seconds",
        "state",
    )

    def __init__(self, request: Request, state: RequestState) -> None:
        self.request = request
        self.state = state
        """The policy's; to be read only."""
        self.in_batch = False
        """Whether it was in the last step."""
        self.decoding = False
        """Whether the prompt is through."""
        self.due: float = inf
        """Total of rounds at which a report is due."""
        self.demoted_at = inf
        """Total of seconds from which on it may belong into a lower queue."""
        self.restart(0, 0.0)

    def restart(self, rounds: int, seconds: float) -> None:
        """All has been reported up to these totals."""
        self.rounds = rounds
        self.seconds = seconds
        self.extra_s = 0.0
        """Seconds beyond the total, for steps in which it had more positions, or fewer, than a full round."""
        self.idle_rounds = 0
        """Of the rounds since then, those that brought no token."""
        self.prompt = 0
        """Prompt tokens run since then."""


class StepLedger:
    """Counts steps for all requests together, and reports one to the policy when that may change its place.

    Two totals grow with every step: rounds, and the seconds that a round with all drafts costs. What a request did
    since its last report is by how much they have grown, and how many tokens it has now; only rounds that were not full
    ones are noted for a request. A step costs what changes in it: requests that come and go, prompts, due reports.

    The policy says after how many rounds, or seconds charged, the next report of a request is due. Prompts are reported
    at once, and of the due ones :data:`REPORTS_PER_STEP` after each step, the rest after the steps that follow: a large
    batch costs each step about the same.

    Args:
        requests: vLLM's, by name.
        most_positions: that one decoding round of a request can have.
    """

    REPORTS_PER_STEP = 4
    """Most decoding requests reported after one step."""

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
        self._batch: list[str] = []
        """Names of the last step, those among them that have ended since."""
        self._accounts: dict[RequestId, _Account] = {}
        self._members: dict[RequestId, _Account] = {}
        """Of the last step."""
        self._prefilling: dict[RequestId, _Account] = {}
        """Of the members, those whose prompts are not through."""
        self._due_by_round: dict[float, list[_Account]] = {}
        self._due_by_time: list[tuple[float, int, _Account]] = []
        """A heap."""
        self._pushes = 0
        self._due: deque[_Account] = deque()

    def record(self, output: Any, results: Any, seconds: float, now: float) -> int:
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
        if names != self._batch:
            self._update_batch(scheduled)
            self._batch = names
        most, members = self._most, self._members
        total = output.total_num_scheduled_tokens
        rate = seconds / max(total, 1)
        self._began, self._ended = now - seconds, now
        self._rounds += 1
        self._seconds += rate * most
        prompt = 0
        for name, account in self._prefilling.items():
            positions = scheduled[name]
            prompt += positions
            account.prompt += positions
            account.extra_s += rate * (positions - most)
        decoding = total - prompt
        if len(names) > len(members):  # some have ended while the step was on its way
            decoding -= sum(scheduled[name] for name in names if name not in members)
        rounds = len(members) - len(self._prefilling)
        if decoding != rounds * most:
            for name, positions in scheduled.items():
                if positions != most and (found := members.get(name)) and found.decoding:
                    found.extra_s += rate * (positions - most)
        sampled = results.sampled_token_ids
        if not (sampled and all(sampled)):
            at = results.req_id_to_index
            for name, account in members.items():
                if account.decoding and not (sampled and name in at and sampled[at[name]]):
                    account.idle_rounds += 1
                    rounds -= 1
        self._policy.costs.observe(rate, rate * decoding, rounds, prompt)
        self._policy.follow_costs()
        return prompt

    def report(self) -> None:
        """Report to the policy what is due, now that the scheduler has taken in the results of the step."""
        for name, account in list(self._prefilling.items()):
            before = account.state.done
            self._report(account)
            # After an eviction, tokens may come that were on their way: the prompt is not through for that.
            through = account.request.status == RequestStatus.RUNNING
            if through and account.state.done > before:
                account.decoding = True
                del self._prefilling[name]
                self._set_due(account)
        rounds, seconds, due = self._rounds, self._seconds, self._due
        due.extend(self._due_by_round.pop(rounds, ()))
        by_time = self._due_by_time
        while by_time and by_time[0][0] < seconds:
            due.append(heappop(by_time)[2])
        left = self.REPORTS_PER_STEP
        while due and left:
            account = due.popleft()
            if account.in_batch and (account.due <= rounds or account.demoted_at < seconds):
                self._report(account)
                self._set_due(account)
                left -= 1

    def settle(self, name: RequestId) -> None:
        """Report what has not been reported of a request."""
        account = self._accounts.get(name)
        if account is not None and account.in_batch:
            self._report(account)

    def evicted(self, name: RequestId) -> None:
        """A request has lost its KV: what it runs next is prompt."""
        self.settle(name)
        if account := self._accounts.get(name):
            account.decoding = False
            if account.in_batch:
                self._prefilling[name] = account

    def remove(self, name: RequestId) -> None:
        """A request has ended, or is about to."""
        self.settle(name)
        if account := self._accounts.pop(name, None):
            self._leave_batch(name, account)
            self._batch = []

    def _unreported(self, account: _Account) -> tuple[RequestProgress, float]:
        """What a request did, and the seconds charged for it, since its last report."""
        request, prompt, rounds = account.request, account.prompt, 0
        if account.decoding:
            rounds = self._rounds - account.rounds - account.idle_rounds
        tokens = request.num_output_tokens - account.state.done
        seconds = self._seconds - account.seconds + account.extra_s
        return RequestProgress(request.request_id, prompt, rounds, 0, tokens), seconds

    def _report(self, account: _Account) -> None:
        if account.rounds != self._rounds:
            one, seconds = self._unreported(account)
            account.restart(self._rounds, self._seconds)
            self._policy.account(one, seconds, self._began, self._ended)

    def _set_due(self, account: _Account) -> None:
        """Note when the next report of a request is due."""
        state = account.state
        wait = state.revisit_at - state.rounds if state.running else 1
        account.due = due = self._rounds + max(wait, 1)
        self._due_by_round.setdefault(due, []).append(account)
        account.demoted_at = inf
        if state.demoted_at < inf:
            account.demoted_at = self._seconds + state.demoted_at - state.attained
            self._pushes += 1
            heappush(self._due_by_time, (account.demoted_at, self._pushes, account))

    def _update_batch(self, scheduled: dict[str, int]) -> None:
        """Requests have come into the batch, or gone from it, or changed places."""
        members = self._members
        if not members.keys() <= scheduled.keys():
            for name in [name for name in members if name not in scheduled]:
                account = members[name]
                self._report(account)
                self._leave_batch(name, account)
        missing = len(scheduled) - len(members)
        for name in reversed(scheduled):  # new ones come last, mostly
            if not missing:
                break
            if name not in members:
                missing -= 1
                if name in self._policy:
                    self._join_batch(name)

    def _join_batch(self, name: str) -> None:
        account = self._accounts.get(name)
        if account is None:
            account = _Account(self._requests[name], self._policy.request(name))
            self._accounts[name] = account
        account.in_batch = True
        account.restart(self._rounds, self._seconds)
        self._members[name] = account
        if account.decoding:
            self._set_due(account)
        else:
            self._prefilling[name] = account

    def _leave_batch(self, name: RequestId, account: _Account) -> None:
        account.in_batch = False
        self._members.pop(name, None)
        self._prefilling.pop(name, None)
