"""The scheduler under random traffic, with every output looked at; and its single promises."""

from __future__ import annotations

import random
from typing import Any

import pytest
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import RequestStatus

from tests.integration.laps_sd.host import BLOCK, Host, answer
from vllm_kangaroo import LapsSdScheduler
from vllm_kangaroo.integration.laps_sd.scheduler import AsyncLapsSdScheduler
from vllm_kangaroo.laps_sd.policy_options import LapsSdError

pytestmark = pytest.mark.slow

TINY = {"base_threshold_s": 1e-4, "max_wait_s": 0.05, "front_s": 0.01}
STEPS = 3400
SHARED = [random.Random(1).randrange(5, 300) for _ in range(40)]


def check_answers(host: Host) -> None:
    for name, tokens in host.tokens.items():
        assert tokens == [answer(name, at) for at in range(len(tokens))], (
            "tokens lost, repeated or swapped"
        )


def traffic(host: Host, steps: int) -> None:
    """Arrivals somewhat faster than they are served, lying hints, priorities, aborts, and resets of the cache."""
    rng = host.rng
    for _ in range(steps):
        if len(host.alive) < 40 and rng.random() < 0.3:
            shared = SHARED[: rng.choice([0, 0, 8, 24, 40])]
            prompt = [*shared, *(rng.randrange(5, 300) for _ in range(rng.randint(1, 30)))]
            most = rng.choice([1, 3, 10, 40, 100])
            hint = rng.choice([None, 1, most])
            host.add(prompt, max_tokens=most, priority=rng.randint(0, 1), hint=hint)
        if host.alive and rng.random() < 0.01:
            host.abort(rng.choice(list(host.alive)))
        if rng.random() < 0.003:
            assert host.scheduler.reset_prefix_cache(reset_running_requests=True)
            assert not host.scheduler.paused
        host.step()


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("drafts", [0, 1, 5])
def test_random_traffic(drafts: int, prefix_caching: bool):
    host = Host(
        drafts, drafts=drafts, prefix_caching=prefix_caching, blocks=48, policy="priority", **TINY
    )
    traffic(host, STEPS)
    host.drain()
    check_answers(host)
    assert len(host.ended) > 200
    assert host.scheduler.pauses > 100
    assert host.scheduler.evictions > 20
    assert host.runner.resumed > 20
    assert host.scheduler.laps.stats.preemptions > 100
    if drafts:
        assert host.runner.accepted > 500
        assert host.runner.accepted < host.runner.drafted


def test_random_traffic_under_asynchronous_scheduling():
    host = Host(7, asynchronous=True, blocks=48, **TINY)
    assert type(host.scheduler) is AsyncLapsSdScheduler
    traffic(host, STEPS)
    host.drain()
    check_answers(host)
    assert host.scheduler.pauses > 100
    assert host.scheduler.evictions > 20


def quick(host: Host, *, tokens: int, prompt: int = 4, **options: Any) -> str:
    return host.add([5] * prompt, max_tokens=tokens, **options)


def test_a_short_request_pauses_a_long_one_which_goes_on_with_its_blocks():
    host = Host(0, blocks=64, max_num_seqs=1, **TINY | {"max_wait_s": 100.0})
    long = quick(host, tokens=60)
    for _ in range(30):
        host.step()
    held = host.scheduler.kv_cache_manager.get_block_ids(long)[0]
    short = quick(host, tokens=3)
    while short not in host.ended:
        host.step()
        if short not in host.ended:
            assert list(host.scheduler.paused) == [long]
            assert host.scheduler.kv_cache_manager.get_block_ids(long)[0] == held
    assert long not in host.ended
    assert host.scheduler.get_request_counts() == (1, 0)
    host.drain()
    check_answers(host)
    assert host.scheduler.evictions == 0
    assert host.runner.resumed == 0, "it was recomputed"
    assert len(host.tokens[long]) == 60


def test_paused_requests_give_their_blocks_before_running_ones():
    host = Host(0, blocks=1 + 14, max_num_seqs=1, **TINY | {"max_wait_s": 100.0})
    long = quick(host, tokens=80)
    for _ in range(70):  # it holds most of the blocks
        host.step()
    big = host.add([6] * (6 * BLOCK), max_tokens=4)
    while big not in host.ended:
        output = host.step()
        assert long not in output.num_scheduled_tokens
    assert host.scheduler.evictions == 1
    host.drain()
    check_answers(host)
    assert len(host.tokens[long]) == 80


def test_paused_requests_can_be_aborted_and_are_counted():
    host = Host(0, blocks=64, max_num_seqs=1, **TINY | {"max_wait_s": 100.0})
    long = quick(host, tokens=60)
    for _ in range(20):
        host.step()
    quick(host, tokens=5)
    host.step()
    assert long in host.scheduler.paused
    stats = host.scheduler.make_stats()
    assert (stats.num_running_reqs, stats.num_skipped_waiting_reqs) == (1, 1)
    assert host.scheduler.has_unfinished_requests()
    host.abort(long)
    assert not host.scheduler.paused
    host.drain()


def test_reset_of_the_prefix_cache_reaches_the_paused():
    host = Host(0, blocks=64, max_num_seqs=1, prefix_caching=True, **TINY | {"max_wait_s": 100.0})
    long = quick(host, tokens=60)
    for _ in range(20):
        host.step()
    short = quick(host, tokens=9)
    host.step()
    assert long in host.scheduler.paused
    assert not host.scheduler.reset_prefix_cache()
    assert host.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert host.scheduler.kv_cache_manager.usage == 0
    host.drain()
    check_answers(host)
    assert {len(host.tokens[long]), len(host.tokens[short])} == {60, 9}


def test_engine_that_takes_no_new_requests_drains_the_paused():
    host = Host(0, blocks=64, max_num_seqs=1, **TINY | {"max_wait_s": 100.0})
    long = quick(host, tokens=40)
    for _ in range(20):
        host.step()
    short = quick(host, tokens=3)
    host.step()
    late = quick(host, tokens=2)
    host.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    for _ in range(60):
        host.step()
    assert {long, short} <= set(host.ended)
    assert late not in host.ended
    assert host.scheduler.get_num_unfinished_requests() == 0
    host.scheduler.set_pause_state(PauseState.UNPAUSED)
    host.drain()


def test_classes_come_first_if_vllm_is_set_to_priorities():
    for policy, first in (("priority", "r1"), ("fcfs", "r0")):
        host = Host(0, blocks=64, max_num_seqs=1, policy=policy)
        quick(host, tokens=3, priority=1)
        quick(host, tokens=3, priority=0)
        assert list(host.step().num_scheduled_tokens) == [first]
        host.drain()


def test_a_wrong_hint_ends_that_request_alone():
    host = Host(0, blocks=64)
    wrong, right = quick(host, tokens=5, hint=-3), quick(host, tokens=5, hint=5)
    host.drain()
    assert str(host.ended[wrong]) == "error"
    assert str(host.ended[right]) == "length"
    assert host.tokens[wrong] == []


def test_no_more_adapters_run_at_a_time_than_the_engine_takes():
    host = Host(0, blocks=64, max_num_seqs=3, adapters=1, **TINY)
    adapters = {quick(host, tokens=12 + at, adapter=at % 3): at % 3 for at in range(9)}
    mixed = False
    while host.alive:
        used = {adapters[name] for name in host.step().num_scheduled_tokens}
        assert len(used - {0}) <= 1
        mixed |= len(used) > 1
    assert mixed, "nothing ran beside an adapter"
    assert host.scheduler.pauses > 0
    check_answers(host)
    host.drain()


def test_a_session_waits_for_input_without_the_policy_and_goes_on():
    host = Host(0, blocks=64, max_num_seqs=2, **TINY | {"max_wait_s": 100.0})
    session = quick(host, tokens=3, session=True)
    request, scheduler = host.alive[session], host.scheduler
    other = quick(host, tokens=60)
    while session not in host.ended:
        host.step()
    host.alive[session] = request  # it has ended its turn only
    assert request.status == RequestStatus.WAITING_FOR_STREAMING_REQ
    assert session not in scheduler.laps
    third = quick(host, tokens=2)
    assert list(host.step().num_scheduled_tokens) == [third], "a session keeps its place"
    assert other in scheduler.paused
    del host.ended[session]
    host.runner.answered[session] = 0
    first = host.tokens.pop(session)
    host.tokens[session] = []
    scheduler.add_request(host.request(session, [6] * 20, max_tokens=4, session=True))
    while session not in host.ended:
        host.step()
    host.alive[session] = request
    assert first == host.tokens[session][:3] == [answer(session, at) for at in range(3)]
    assert len(host.tokens[session]) == 4
    scheduler.add_request(host.request(session, [], max_tokens=1))  # the end of the input
    del host.alive[session]
    host.drain()
    check_answers(host)
    assert len(host.tokens[other]) == 60


def test_a_session_that_goes_on_with_a_wrong_hint_ends_alone():
    host = Host(0, blocks=64, **TINY)
    session, other = quick(host, tokens=3, session=True), quick(host, tokens=9)
    request = host.alive[session]
    while session not in host.ended:
        host.step()
    host.alive[session] = request  # it has ended its turn only
    host.runner.answered[session] = 0
    host.tokens[session] = []
    host.scheduler.add_request(host.request(session, [6] * 20, max_tokens=4, hint=9, session=True))
    host.drain()
    assert str(host.ended[session]) == "error"
    assert len(host.tokens[other]) == 9


def test_figures_travel_in_the_stats():
    from vllm_kangaroo.integration.laps_sd.metrics import PREFIX

    host = Host(0, blocks=64, max_num_seqs=1, **TINY | {"max_wait_s": 100.0})
    quick(host, tokens=40)
    for _ in range(20):
        host.step()
    host.scheduler.make_stats()
    quick(host, tokens=5)
    host.step()
    found = host.scheduler.make_stats().num_kv_fetch_reqs_by_stage
    ours = {
        key.removeprefix(PREFIX): value for key, value in found.items() if key.startswith(PREFIX)
    }
    assert ours["paused"] == 1
    assert (
        ours["count.pauses"] == 0
    )  # of the step that make_stats of update_from_output has not told yet
    assert sum(value for key, value in ours.items() if key.startswith("queue.")) == 2
    host.drain()


def test_wrong_options_are_refused():
    with pytest.raises(LapsSdError, match="no key 'speed'"):
        Host(0, blocks=64, speed=9)


def test_other_names_of_the_package_are_unknown():
    import vllm_kangaroo

    assert vllm_kangaroo.LapsSdScheduler is LapsSdScheduler
    with pytest.raises(AttributeError, match="no attribute 'FastScheduler'"):
        _ = vllm_kangaroo.FastScheduler  # type: ignore[attr-defined]
