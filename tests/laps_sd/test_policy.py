"""The policy's order, states and errors, case by case."""

from __future__ import annotations

import pytest

from vllm_kangaroo.laps_sd.build import build_policy
from vllm_kangaroo.laps_sd.engine_time import RequestProgress
from vllm_kangaroo.laps_sd.lengths import HintedLengths, OracleLengths, RequestFacts
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.policy_options import LapsSdError, LapsSdOptions, parse_options

ROUND = 0.01


def make(**options: object) -> LapsSdPolicy:
    return LapsSdPolicy(LapsSdOptions.model_validate(options), HintedLengths(OracleLengths()))


def facts(tokens: int, **more: object) -> RequestFacts:
    return RequestFacts(prompt_tokens=1, max_tokens=4096, true_tokens=tokens, **more)  # type: ignore[arg-type]


def run(
    policy: LapsSdPolicy, name: str, rounds: int, now: float, *, drafts: int = 0, accepted: int = 0
) -> float:
    """That many rounds of one request alone; returns the time after them."""
    for _ in range(rounds):
        now += ROUND
        policy.report([RequestProgress(name, 0, 1, drafts, accepted + 1)], ROUND, now)
    return now


def test_a_new_request_pre_empts_one_that_has_sunk():
    policy = make(window=8)
    policy.add("old", facts(1000), 0.0)
    assert policy.select(1, 0.0) == ["old"]
    now = run(policy, "old", 6, 0.0)
    assert policy.request("old").queue == 1
    policy.add("new", facts(1000), now)
    assert policy.select(1, now) == ["new"]
    assert policy.stats.preemptions == 1
    assert policy.select(2, now) == ["new", "old"]


def test_perceptible_requests_stand_in_the_queue_of_their_remaining_time():
    policy = make(window=4)
    policy.add("long", facts(1000), 0.0)
    policy.select(1, 0.0)
    now = run(policy, "long", 8, 0.0, drafts=4, accepted=2)
    state = policy.request("long")
    assert state.perceptible
    rounds_left = (1000 - 24) / 3
    assert state.remaining == pytest.approx(rounds_left * ROUND, rel=0.03)
    assert state.queue == 7
    policy.add("short", facts(30), now)
    policy.select(1, now)
    now = run(policy, "short", 8, now, drafts=4, accepted=2)
    assert policy.request("short").perceptible
    assert policy.request("short").queue == 0


def test_within_a_queue_arrival_order_then_remaining_time():
    policy = make(window=2, base_threshold_s=100.0)
    for name, tokens in (("a", 900), ("b", 300), ("c", 600)):
        policy.add(name, facts(tokens), 0.0)
    assert policy.select(1, 0.0) == ["a"]
    assert policy.select(3, 0.0) == ["a", "b", "c"]
    for name in "abc":
        run(policy, name, 4, 1.0, drafts=4, accepted=2)
    assert all(policy.request(name).perceptible for name in "abc")
    assert policy.select(3, 2.0) == ["b", "c", "a"]


def test_a_running_request_is_not_paused_for_one_of_its_own_queue():
    policy = make(base_threshold_s=100.0)
    policy.add("first", facts(500), 0.0)
    policy.select(1, 0.0)
    policy.add("second", facts(3), 0.0)
    assert policy.select(1, 0.0) == ["first"]


def test_a_host_that_tells_late_is_asked_before_a_request_stops():
    policy = make(window=2, base_rounds=1.0)
    policy.add("a", facts(20), 0.0)
    policy.select(1, 0.0)
    now = run(policy, "a", 4, 0.0)
    late = [RequestProgress("a", 0, 15, 0, 15)]

    def catch_up(name: object) -> None:
        while late:
            policy.account(late.pop(), 15 * ROUND, now, now + 15 * ROUND)

    policy.catch_up = catch_up
    policy.add("b", facts(10), now)
    assert policy.select(1, now) == ["a"], "it was judged by what was known before"
    assert not late
    assert policy.request("a").remaining == pytest.approx(ROUND, rel=0.1)


def test_gap_keeps_a_request_running_for_a_small_gain():
    def chosen(gap: float) -> list[object]:
        policy = make(window=2, base_rounds=1.0, preemption_gap_s=gap)
        policy.add("warm", facts(20), 0.0)
        policy.select(1, 0.0)
        now = run(policy, "warm", 4, 0.0)
        policy.add("new", facts(3), now)
        return list(policy.select(1, now))

    assert chosen(0.0) == ["new"]
    assert chosen(5.0) == ["warm"]


def test_classes_before_queues():
    policy = make()
    policy.add("low", facts(1), 0.0, priority=1)
    policy.add("high", facts(4000), 0.0, priority=-1)
    policy.add("mid", facts(1), 0.0)
    assert policy.select(2, 0.0) == ["high", "mid"]


def test_what_the_host_cannot_run_is_passed_over_and_kept():
    policy = make()
    for name in "abc":
        policy.add(name, facts(10), 0.0)
    assert policy.select(2, 0.0, admissible=lambda name: name != "a") == ["b", "c"]
    policy.release("b")
    assert policy.select(3, 0.0) == ["a", "b", "c"]


def test_the_front_ends_in_time_though_nothing_is_told_of_its_steps():
    policy = make(max_wait_s=1.0, front_s=0.5)
    for name in "ab":
        policy.add(name, facts(1000), 0.0)
    assert policy.select(1, 0.0) == ["a"]
    assert policy.select(1, 1.5) == ["b"]
    assert policy.select(1, 1.9) == ["b"], "it lost its place too soon"
    assert policy.select(1, 2.1) == ["a"]


def test_a_lost_kv_counts_among_what_is_still_to_do():
    policy = make(window=2, base_threshold_s=100.0)
    for name, tokens in (("a", 40), ("b", 44)):
        policy.add(name, facts(tokens), 0.0)
        policy.select(2, 0.0)
        policy.report([RequestProgress(name, 1, 0, 0, 1)], ROUND, 0.0)
        run(policy, name, 4, 1.0)
    assert policy.select(2, 2.0) == ["a", "b"]
    policy.evicted("a", 30)
    assert policy.select(2, 2.0) == ["b", "a"]
    assert policy.select(0, 2.0) == []
    policy.evicted("b", 60)  # while it waits
    assert policy.select(2, 2.0) == ["a", "b"]


def test_what_was_in_the_prefix_cache_is_not_still_to_do():
    policy = make()
    policy.add("a", RequestFacts(prompt_tokens=100, max_tokens=9, true_tokens=5), 0.0)
    policy.select(1, 0.0)
    policy.report([RequestProgress("a", 10)], ROUND, 0.1)
    assert policy.request("a").prompt_left == 90
    policy.report([RequestProgress("a", 20, new_tokens=1)], ROUND, 0.2)
    assert policy.request("a").prompt_left == 0


def test_service_is_shared_by_positions_and_adds_up():
    policy = make()
    for name in "ab":
        policy.add(name, facts(10), 0.0)
    policy.select(2, 0.0)
    policy.report([RequestProgress("a", 0, 1, 5, 3), RequestProgress("b", 0, 1, 1, 1)], 0.8, 0.8)
    assert policy.request("a").attained == pytest.approx(0.6)
    assert policy.request("b").attained == pytest.approx(0.2)


def test_estimates_meet_what_happens_when_nothing_is_uncertain():
    policy = make(window=4)
    now = 0.0
    for number in range(5):
        policy.add(number, facts(61), now)
        policy.select(1, now)
        for _ in range(20):
            now += ROUND
            policy.report([RequestProgress(number, 0, 1, 4, 3)], ROUND, now)
        policy.remove(number, output_tokens=60)
    for estimated, true in policy.stats.estimates:
        assert estimated == pytest.approx(true, rel=0.1)
    assert len(policy.stats.estimates) == 5


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"queue": 3}, "no key 'queue'"),
        ({"queues": 0}, r"\['queues'\]=0 is refused"),
        ({"growth": 1.0}, r"\['growth'\]=1.0 is refused"),
        ({"predictor": "magic"}, r"\['predictor'\]='magic' is refused"),
        (
            {"predictor": "empirical", "predictor_file": "a.npz"},
            r"\['predictor_file'\]='a.npz' is refused: .*'empirical' is not saved",
        ),
        ("fast", "must be a dictionary"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(given: object, says: str):
    with pytest.raises(LapsSdError, match=says):
        parse_options(given)


def test_default_policy_runs():
    policy = build_policy(LapsSdOptions())
    policy.add("a", RequestFacts(3, 16, (1, 2, 3)), 0.0)
    assert policy.select(4, 0.0) == ["a"]
    policy.remove("a", output_tokens=3)
    assert len(policy) == 0
    assert policy.select(4, 1.0) == []
