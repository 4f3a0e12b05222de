"""What the policy is told of steps: all of it, in time, and a bounded number of requests after each."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from tests.integration.laps_sd.host import STEP_S, Host
from vllm_kangaroo.integration.laps_sd.steps import StepLedger
from vllm_kangaroo.laps_sd.engine_time import RequestProgress

pytestmark = pytest.mark.slow

MANY = 6 * StepLedger.REPORTS_PER_STEP


def busy_host(requests: int, **options: Any) -> Host:
    host = Host(
        3, drafts=3, blocks=2000, max_num_seqs=requests, budget=1024, max_wait_s=100.0, **options
    )
    refill(host, requests)
    return host


def refill(host: Host, requests: int) -> None:
    """Answers end at a stop token: others take their places."""
    while len(host.alive) < requests:
        host.add([5] * (1 + host.count % 20), max_tokens=200)


def unreported_progress(host: Host, name: str) -> tuple[RequestProgress, float]:
    """What a request did, and seconds, that has not been reported yet."""
    ledger = host.scheduler._ledger
    account = ledger._accounts.get(name)
    return (
        ledger._unreported(account)
        if account and account.in_batch
        else (RequestProgress(name), 0.0)
    )


def unreported(host: Host, name: str) -> tuple[float, int]:
    """Seconds and tokens of a request that has not been reported yet."""
    one, seconds = unreported_progress(host, name)
    return seconds, one.new_tokens


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("requests", [3, MANY])
def test_every_second_and_every_token_arrives(
    requests: int, prefix_caching: bool, monkeypatch: pytest.MonkeyPatch
):
    host = busy_host(requests, prefix_caching=prefix_caching)
    ledger, spent = host.scheduler._ledger, defaultdict(float)
    record = ledger.record

    def watched(output: Any, results: Any, seconds: float, now: float) -> None:
        for name, positions in output.num_scheduled_tokens.items():
            spent[name] += seconds * positions / output.total_num_scheduled_tokens
        record(output, results, seconds, now)

    monkeypatch.setattr(ledger, "record", watched)
    for _ in range(120):
        refill(host, requests)
        host.step()
        for name, request in host.alive.items():
            seconds, tokens = unreported(host, name)
            state = host.scheduler.laps.request(name)
            assert state.done + tokens == request.num_output_tokens
            assert state.attained + seconds == pytest.approx(spent[name])
            assert state.prompt_left == 0 or not request.num_output_tokens
    assert host.runner.accepted > 100


def test_work_after_a_step_is_bounded_and_nobody_is_left_out(monkeypatch: pytest.MonkeyPatch):
    host = busy_host(MANY)
    policy, told = host.scheduler.laps, defaultdict(int)
    account = policy.account

    def watched(one: Any, *times: float) -> None:
        told[one.request_id] += 1
        account(one, *times)

    for _ in range(5):  # all prompts
        host.step()
    monkeypatch.setattr(policy, "account", watched)
    for _ in range(60):
        before, alive = sum(told.values()), len(host.alive)
        host.step()
        ended = alive - len(host.alive)  # their last rounds are told as they leave
        assert sum(told.values()) - before <= StepLedger.REPORTS_PER_STEP + ended
    assert set(host.alive) <= set(told)
    host.drain()


def test_requests_that_go_on_as_expected_are_looked_at_a_few_times_in_all(
    monkeypatch: pytest.MonkeyPatch,
):
    host = Host(0, drafts=1, blocks=4000, max_num_seqs=64, budget=1024, max_wait_s=100.0)
    policy, told, placed = host.scheduler.laps, 0, 0
    account, place = policy.account, policy._place

    def watched(*arguments: Any) -> None:
        nonlocal told
        told += 1
        account(*arguments)

    def watched_place(state: Any) -> None:
        nonlocal placed
        placed += 1
        place(state)

    monkeypatch.setattr(policy, "account", watched)
    monkeypatch.setattr(policy, "_place", watched_place)
    rounds = 0
    while host.count < 400 or host.alive:
        while len(host.alive) < 64 and host.count < 400:
            host.add([5] * 4, max_tokens=120, hint=120)
        rounds += len(host.step().num_scheduled_tokens)
    ended = len(host.ended)
    assert ended == 400
    assert told / ended < 12, "prompts, looks and the end"
    assert told < rounds / 3
    assert placed <= told + 2 * ended, "places are worked out when they can have changed"


def test_a_small_batch_is_looked_at_as_soon_as_the_policy_wants_to():
    host = busy_host(StepLedger.REPORTS_PER_STEP)
    for _ in range(60):
        refill(host, StepLedger.REPORTS_PER_STEP)
        host.step()
        for name in host.alive:
            state = host.scheduler.laps.request(name)
            one, seconds = unreported_progress(host, name)
            assert not one.rounds or state.rounds + one.rounds < state.revisit_at
            assert state.attained + seconds <= state.demoted_at + 1e-9


def test_time_between_steps_is_charged_and_idle_time_is_not():
    host = Host(0, blocks=64, max_num_seqs=1, max_wait_s=100.0)
    for number in range(2):
        name = host.add([5] * 4, max_tokens=100)
        for _ in range(3):
            host.step()
        assert charged(host, name) == pytest.approx(3 * STEP_S)  # not what passed before it came
        host.clock.now += 0.05
        host.step()
        assert charged(host, name) == pytest.approx(4 * STEP_S + 0.05)
        if number == 0:
            host.abort(name)
            host.clock.now += 0.3


def charged(host: Host, name: str) -> float:
    return host.scheduler.laps.request(name).attained + unreported(host, name)[0]
