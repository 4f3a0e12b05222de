"""What holds whatever happens: nobody is lost, doubled or starved, and equal events give equal answers."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kangaroo.laps_sd.engine_time import RequestProgress
from vllm_kangaroo.laps_sd.lengths import EmpiricalLengths, HintedLengths, RequestFacts
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy
from vllm_kangaroo.laps_sd.policy_options import LapsSdOptions

pytestmark = pytest.mark.slow

STEP = 0.01
Event = tuple[str, int, int]
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["add", "abort", "finish", "step", "step", "step"]),
        st.integers(0, 63),
        st.integers(1, 4),
    ),
    max_size=120,
)
OPTIONS = st.fixed_dictionaries(
    {
        "queues": st.integers(1, 6),
        "growth": st.sampled_from([1.5, 2.0, 8.0]),
        "window": st.integers(2, 8),
        "max_wait_s": st.sampled_from([0.02, 0.1, 100.0]),
        "front_s": st.sampled_from([0.01, 0.05]),
        "preemption_gap_s": st.sampled_from([0.0, 0.05]),
    }
)


class Host:
    """Plays events to a policy and checks every answer."""

    def __init__(self, options: dict[str, object], capacity: int) -> None:
        self.policy = LapsSdPolicy(
            LapsSdOptions.model_validate(options), HintedLengths(EmpiricalLengths())
        )
        self.capacity = capacity
        self.alive: dict[int, int] = {}
        self.now = 0.0
        self.count = 0
        self.answers: list[list[object]] = []

    def play(self, event: Event) -> None:
        kind, which, amount = event
        if kind == "add":
            hint = None if which % 3 == 0 else 1 + which * amount  # true, false, who knows
            facts = RequestFacts(prompt_tokens=amount, max_tokens=1000, hint=hint)
            self.policy.add(self.count, facts, self.now, priority=which % 2)
            self.alive[self.count] = which % 2
            self.count += 1
        elif kind == "step":
            self.step(which, amount)
        elif self.alive:
            name = list(self.alive)[which % len(self.alive)]
            del self.alive[name]
            self.policy.remove(name, output_tokens=amount if kind == "finish" else None)

    def step(self, which: int, amount: int) -> None:
        chosen = self.policy.select(self.capacity, self.now)
        self.answers.append(list(chosen))
        assert len(set(chosen)) == len(chosen) == min(self.capacity, len(self.alive))
        assert set(chosen) <= set(self.alive)
        left_out = [self.alive[name] for name in self.alive if name not in chosen]
        if chosen and left_out:
            assert max(self.alive[int(name)] for name in chosen) <= min(left_out), (
                "a class was passed over"
            )
        self.now += STEP
        drafted = which % 4
        self.policy.report(
            [RequestProgress(name, 0, 1, drafted, 1 + min(drafted, amount)) for name in chosen],
            STEP,
            self.now,
        )
        assert len(self.policy) == len(self.alive)
        assert sum(map(sum, self.policy.stats.queued)) == len(self.alive)
        assert all(count >= 0 for pair in self.policy.stats.queued for count in pair)


@given(OPTIONS, st.integers(1, 5), EVENTS)
@settings(max_examples=150, deadline=None)
def test_no_request_is_lost_or_doubled_and_classes_come_first(
    options: dict[str, object], capacity: int, events: list[Event]
):
    host = Host(options, capacity)
    for event in events:
        host.play(event)
    for name in list(host.alive):
        host.policy.remove(name)
    assert len(host.policy) == 0
    assert host.policy.select(capacity, host.now) == []


@given(OPTIONS, st.integers(1, 5), EVENTS)
@settings(max_examples=50, deadline=None)
def test_equal_events_give_equal_answers(
    options: dict[str, object], capacity: int, events: list[Event]
):
    one, other = Host(options, capacity), Host(options, capacity)
    for event in events:
        one.play(event)
        other.play(event)
    assert one.answers == other.answers


@given(
    capacity=st.integers(1, 4),
    elders=st.integers(1, 6),
    hint=st.sampled_from([None, 1, 4000]),
    claim=st.sampled_from([None, 1]),
    max_wait_s=st.sampled_from([0.1, 0.5]),
    front_s=st.sampled_from([0.02, 0.1]),
    aborts=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_nobody_waits_past_the_bound(
    capacity: int,
    elders: int,
    hint: int | None,
    claim: int | None,
    max_wait_s: float,
    front_s: float,
    aborts: bool,
):
    """Under endless short arrivals, more than can be served, that claim to be the shortest of all."""
    options = LapsSdOptions(max_wait_s=max_wait_s, front_s=front_s)
    policy = LapsSdPolicy(options, HintedLengths(EmpiricalLengths()))
    for number in range(elders):
        policy.add(number, RequestFacts(1, 4096, hint=hint), 0.0)
    last_ran = dict.fromkeys(range(elders), 0.0)
    young: dict[int, int] = {}
    now, count, served = 0.0, elders, 0
    for tick in range(400):
        for _ in range(capacity):  # each is done after two rounds: half of what would be needed
            policy.add(count, RequestFacts(1, 4096, hint=claim), now)
            last_ran[count] = now
            young[count] = 2
            count += 1
        if aborts and tick % 7 == 0:
            name = max(young)
            policy.remove(name)
            del young[name], last_ran[name]
        size = len(policy)
        bound = max_wait_s + ceil(size / capacity) * (front_s + STEP) + STEP
        chosen = policy.select(capacity, now)
        assert len(chosen) == capacity
        for name in chosen:
            waited = now - last_ran[int(name)]
            assert waited <= bound
        assert max(now - each for each in last_ran.values()) <= bound
        now += STEP
        policy.report([RequestProgress(name, 0, 1, 0, 1) for name in chosen], STEP, now)
        for name in map(int, chosen):
            last_ran[name] = now
            served += name < elders
            if name in young:
                young[name] -= 1
                if not young[name]:
                    policy.remove(name, output_tokens=2)
                    del young[name], last_ran[name]
    assert served > 0, "the elders never ran"
    assert policy.stats.starved > 0, "nobody was starved: the test shows nothing"
