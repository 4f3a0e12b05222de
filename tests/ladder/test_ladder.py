"""The ladder under any schedule: right states, nothing computed twice, frontiers in order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from tests.ladder.toy import VOCAB, ToyTiers
from tests.ladder.toy_engine import Request, Scheduled, ToyEngine
from vllm_kangaroo.ladder.ladder import LadderError
from vllm_kangaroo.ladder.spans import Spans

tokens = st.integers(0, VOCAB - 1)


class Schedules(RuleBasedStateMachine):
    """Requests come, are scheduled in any order and chunking, draft, lose drafts and blocks, and go."""

    @initialize(
        exits=st.sampled_from([(1, 3), (2, 4), (1, 2, 4)]),
        most_drafts=st.integers(1, 5),
        joined=st.booleans(),
        whole=st.booleans(),
    )
    def start(self, exits: tuple[int, ...], most_drafts: int, joined: bool, whole: bool) -> None:
        self.engine = ToyEngine(exits, most_drafts, joined=joined, whole=whole)
        self.born = 0

    @precondition(lambda self: len(self.engine.requests) < 12)
    @rule(prompts=st.lists(st.lists(tokens, min_size=1, max_size=9), min_size=1, max_size=4))
    def arrive(self, prompts: list[list[int]]) -> None:
        for prompt in prompts:
            self.engine.add(f"request {self.born}", prompt)
            self.born += 1

    @precondition(lambda self: self.engine.requests)
    @rule(
        data=st.data(),
        chunked=st.booleans(),
        threshold=st.sampled_from([0.0, 0.3, 0.6, 1.0]),
        stop_ids=st.frozensets(tokens, max_size=2),
    )
    def step(
        self, data: st.DataObject, chunked: bool, threshold: float, stop_ids: frozenset[int]
    ) -> None:
        """Verify and prefill for some requests, then draft for some of those that are at rest."""
        plan = []
        for request in self._some(data, list(self.engine.requests.values())):
            self._edit_drafts(data, request)
            pending = len(request.pending)
            length = data.draw(st.integers(1, pending)) if chunked else pending
            accepted = data.draw(st.integers(0, self.engine.most_drafts))
            plan.append(Scheduled(request, length, accepted, data.draw(tokens)))
        self.engine.step(plan)
        if resting := self.engine.at_rest():
            chosen = self._some(data, resting)
            limits = [data.draw(st.integers(1, self.engine.most_drafts)) for _ in chosen]
            self.engine.draft(chosen, limits, threshold, stop_ids)

    def _edit_drafts(self, data: st.DataObject, request: Request) -> None:
        """The scheduler may trim drafts, and a grammar replace them."""
        edit = data.draw(st.sampled_from(["none", "trim", "replace"]))
        if request.drafts and edit != "none":
            at = data.draw(st.integers(0, len(request.drafts) - 1))
            if edit == "trim":
                del request.drafts[at:]
            else:
                request.drafts[at] = data.draw(tokens)

    @precondition(lambda self: self.engine.requests)
    @rule(data=st.data(), cached=st.integers(0, 12))
    def preempt(self, data: st.DataObject, cached: int) -> None:
        self.engine.preempt(data.draw(st.sampled_from(sorted(self.engine.requests))), cached)

    @precondition(lambda self: self.engine.requests)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.engine.abort(data.draw(st.sampled_from(sorted(self.engine.requests))))

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "engine"):
            self.engine.check()

    def _some(self, data: st.DataObject, requests: list[Request]) -> list[Request]:
        order = data.draw(st.permutations(range(len(requests))))
        return [requests[at] for at in order[: data.draw(st.integers(1, len(requests)))]]


TestSchedules = Schedules.TestCase
TestSchedules.settings = settings(
    max_examples=120,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def run(engine: ToyEngine, name: str, accepted: int = 0, length: int | None = None) -> None:
    request = engine.requests[name]
    length = len(request.pending) if length is None else length
    engine.step([Scheduled(request, length, accepted, next_token=3)])


@pytest.mark.parametrize("joined", [False, True])
def test_verification_runs_only_the_upper_tier_over_drafted_positions(joined: bool) -> None:
    engine = ToyEngine((2, 4), most_drafts=4, joined=joined)
    engine.add("a", [1, 2, 3, 4, 5])
    run(engine, "a")
    engine.draft([engine.requests["a"]], [4], 0.0, ())
    counters = engine.ladder.counters
    assert counters.positions == [5 + 4, 5]
    run(engine, "a", accepted=4)
    # Only the last draft, which nothing was drafted from, still had to pass the lower tier.
    assert counters.positions == [5 + 4 + 1, 5 + 5]
    assert counters.reused == [4, 0]
    assert counters.dropped == [0, 0]
    assert engine.tiers.joined_passes == joined


def test_requests_of_different_lengths_share_a_joined_pass() -> None:
    engine = ToyEngine((1, 4), most_drafts=4, joined=True)
    names = "abc"
    for name, prompt in zip(names, ([1, 2, 3], [4], [5, 6]), strict=True):
        engine.add(name, prompt)
        run(engine, name)
    engine.draft([engine.requests[name] for name in names], [4, 1, 2], 0.0, ())
    engine.step([Scheduled(r, len(r.pending), 1, next_token=3) for r in engine.requests.values()])
    engine.check()
    assert engine.tiers.joined_passes == 1


def test_an_unscheduled_request_keeps_its_drafts_for_a_later_step() -> None:
    engine = ToyEngine((1, 3), most_drafts=3)
    for name in "ab":
        engine.add(name, [1, 2, 3])
        run(engine, name)
    engine.draft([engine.requests["a"], engine.requests["b"]], [3, 3], 0.0, ())
    run(engine, "a", accepted=1)
    run(engine, "a", accepted=0)
    before = engine.ladder.counters.positions[0]
    run(engine, "b", accepted=3)
    assert engine.ladder.counters.positions[0] == before + 1


def test_a_replaced_draft_is_computed_for_the_token_that_replaced_it() -> None:
    engine = ToyEngine((1, 3), most_drafts=4)
    engine.add("a", [1, 2, 3])
    run(engine, "a")
    request = engine.requests["a"]
    engine.draft([request], [4], 0.0, ())
    request.drafts[1] = (request.drafts[1] + 1) % VOCAB
    before = list(engine.ladder.counters.positions)
    run(engine, "a", accepted=4)
    # The newest token and the first draft stand; the second draft is another token, and what follows saw it.
    assert engine.ladder.counters.positions[0] == before[0] + 3
    assert engine.ladder.counters.dropped == [2, 0]


def test_slots_of_ended_requests_are_used_again_with_nothing_left_in_them() -> None:
    engine = ToyEngine((1, 3), most_drafts=3)
    engine.add("a", [1, 2, 3])
    run(engine, "a")
    engine.draft([engine.requests["a"]], [3], 0.0, ())
    (slot,) = engine.ladder.slots(["a"])
    first = engine.requests["a"].tokens[-1]
    engine.abort("a")
    assert engine.ladder.counters.dropped == [3, 0]
    # Same tokens at the same positions: only the frontier tells that the store's entries are another request's.
    engine.add("b", [1, 2, 3, first])
    assert engine.ladder.slots(["b"]) == [slot]
    before = engine.ladder.counters.positions[0]
    run(engine, "b")
    assert engine.ladder.counters.positions[0] == before + 4


def test_more_requests_than_slots_keep_their_stored_states() -> None:
    engine = ToyEngine((1, 3), most_drafts=3)
    engine.add("a", [1, 2, 3])
    run(engine, "a")
    engine.draft([engine.requests["a"]], [3], 0.0, ())
    held = len(engine.ladder.frontiers)
    for number in range(held):
        engine.add(f"b{number}", [4, 5])
        run(engine, f"b{number}")
    assert len(engine.ladder.frontiers) > held
    run(engine, "a", accepted=3)
    assert engine.ladder.counters.reused[0] == 3


def test_at_rest_names_frontiers_that_are_not_where_they_should_be() -> None:
    tiers = ToyTiers((1, 3), width=4)
    slots = tiers.ladder.slots(["a"])
    tiers.attention.requests = ["a"]
    spans = Spans(np.array([0]), slots, np.array([0]), np.array([3]))
    tiers.ladder.complete(spans, torch.tensor([1, 2, 3]), np.array([1, 2, 3]), tiers.attention)
    tiers.ladder.at_rest(slots, np.array([3]))
    with pytest.raises(LadderError, match=r"\[\[3, 3\]\] at rest, expected \[2\]"):
        tiers.ladder.at_rest(slots, np.array([2]))
    tiers.ladder.rewind(slots, np.array([2]))
    tiers.ladder.at_rest(slots, np.array([2]))


@pytest.mark.parametrize("broken", [[3, 3, 2], [2, 3, 3], [4, 4, 4], [0, 0, 0], [-1, -1, -1]])
def test_a_request_whose_frontiers_are_broken_drafts_nothing_and_goes_on(
    broken: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    engine = ToyEngine((1, 2, 4), most_drafts=3)
    for name in ("a", "b"):
        engine.add(name, [1, 2, 3])
        run(engine, name)
    slots, lengths = engine.ladder.slots(["a", "b"]), np.array([3, 3])
    assert engine.ladder.settle(slots, lengths).tolist() == [True, True]
    engine.ladder.frontiers[slots[0]] = broken
    assert engine.ladder.settle(slots, lengths).tolist() == [False, True]
    assert engine.ladder.counters.defects == 1
    assert "defect" in caplog.text and str(broken) in caplog.text
    caplog.clear()
    assert engine.ladder.settle(slots, lengths).tolist() == [False, True]
    assert engine.ladder.counters.defects == 2 and not caplog.text  # logged once
    engine.draft([engine.requests["b"]], [3], 0.0, ())
    run(engine, "a")  # which compares its states with those of a run from scratch
    run(engine, "b", accepted=2)
    slots, lengths = engine.ladder.slots(["a", "b"]), np.array([4, 6])
    assert engine.ladder.settle(slots, lengths).all()
    engine.draft([engine.requests["a"]], [3], 0.0, ())
    assert engine.ladder.counters.defects == 2


def test_closing_an_unknown_request_is_harmless() -> None:
    tiers = ToyTiers((1, 3), width=4)
    tiers.ladder.close("never seen")
    tiers.ladder.forget("never seen")
    assert tiers.ladder.counters.dropped == [0, 0]
