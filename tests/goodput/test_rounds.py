"""Rounds and plans: what is decided, on what, and the same with plain numbers and with arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.goodput.simulated_engine import MOST, Machine
from vllm_kangaroo.goodput.acceptance import AcceptanceModel
from vllm_kangaroo.goodput.controller import GoodputController
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.draft_round import DraftRound, Starters, Verification
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.goodput.goodput_stats import Off
from vllm_kangaroo.goodput.length_plan import plan_lengths
from vllm_kangaroo.goodput.observations import Observations
from vllm_kangaroo.goodput.probes import PROBED, ProbeBudget
from vllm_kangaroo.goodput.reliability import Reliability
from vllm_kangaroo.goodput.small_round import SingleRound, SmallRound

COSTS = CostModel(Machine().profile())


class Ticks:
    """A clock that goes on by a millisecond whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def rounds(
    count: int, limits: list[int], chain: float, *, least: int = 1
) -> list[DraftRound | SmallRound]:
    arguments: Callable[[], tuple[Any, ...]] = lambda: (  # noqa: E731
        COSTS,
        Reliability(),
        Starters(
            Verification(Load(count + 1, 300 * count), count + 1, count + 1.0),
            np.arange(count),
            np.full(count, 300),
            np.array(limits),
            np.full((count, MOST), chain),
            least,
        ),
        Ticks(),
    )
    found = [DraftRound(*arguments()), SmallRound(*arguments())]
    return [*found, SingleRound(*arguments())] if count == 1 else found


@settings(deadline=None, max_examples=80)
@given(
    count=st.integers(1, 6),
    chain=st.floats(0.05, 0.95),
    seed=st.integers(0, 10_000),
)
def test_plain_numbers_decide_as_arrays_do(count: int, chain: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    limits = random.integers(1, MOST + 1, count).tolist()
    large, *others = rounds(count, limits, chain)
    alive = list(range(count))
    while alive:
        sure = random.random(len(alive)).tolist()
        may = (random.random(len(alive)) < 0.9).tolist()
        going = list(large.keep(alive, sure, may))
        assert all(small.keep(alive, sure, may) == going for small in others)
        assert not any(on and not allowed for on, allowed in zip(going, may, strict=True))
        alive = [who for who, on in zip(alive, going, strict=True) if on]
    large.end()
    assert (large.lengths <= limits).all() and (large.lengths >= 1).all()
    one = large.observations()
    for small in others:
        small.end()
        assert large.lengths.tolist() == small.lengths.tolist()
        assert large.confidences == pytest.approx(small.confidences)
        assert large.verification.tokens == small.verification.tokens
        assert large.verification.expected == pytest.approx(small.verification.expected)
        assert large.verification.spent == pytest.approx(small.verification.spent)
        other = small.observations()
        assert np.array(one.drafts) == pytest.approx(np.array(other.drafts))
        assert one.opening == pytest.approx(other.opening)


@settings(deadline=None, max_examples=40)
@given(sure=st.floats(0.0, 1.0), less=st.floats(0.0, 1.0))
def test_the_surer_a_draft_the_sooner_another_follows(sure: float, less: float) -> None:
    sure, less = max(sure, less), min(sure, less)
    for one, other in zip(rounds(1, [MOST], 0.6), rounds(1, [MOST], 0.6), strict=True):
        assert one.keep([0], [sure], [True])[0] >= other.keep([0], [less], [True])[0]


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 6), chain=st.floats(0.05, 0.95), seed=st.integers(0, 10_000))
def test_unweighed_drafts_go_on_wherever_they_may(count: int, chain: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    limits = random.integers(1, MOST + 1, count).tolist()
    kinds = rounds(count, limits, chain, least=MOST)
    alive, step = list(range(count)), 0
    while alive:
        step += 1
        sure = random.random(len(alive)).tolist()
        may = [limits[who] > step and random.random() < 0.9 for who in alive]
        for each in kinds:
            assert list(each.keep(alive, sure, may)) == may
        alive = [who for who, on in zip(alive, may, strict=True) if on]
    for each in kinds:
        assert each.verification.spent == pytest.approx(kinds[0].verification.spent)


@pytest.mark.parametrize("count", [1, 3])
def test_a_second_pass_that_is_due_is_made_whatever_it_brings(count: int) -> None:
    who, surely = list(range(count)), [True] * count
    for least in (1, 2):
        for each in rounds(count, [MOST] * count, 0.01, least=least):
            assert list(each.keep(who, [0.01] * count, surely)) == [least == 2] * count
            if least == 2:
                assert not any(each.keep(who, [0.01] * count, surely))
            each.end()
            seen = each.observations()
            assert [width for _, width, _ in seen.drafts] == [count] * (least - 1)
            assert seen.opening is not None
            assert seen.opening[1:] == (count, 300.0 * count)


def test_a_plan_is_the_best_of_all() -> None:
    """Against every number of requests and every length, worked out one by one."""
    random = np.random.default_rng(0)
    load = Load(5, 1500)
    for _ in range(30):
        chains = random.uniform(0.05, 0.95, (4, MOST))
        limits, contexts = random.integers(1, MOST + 1, 4), random.integers(1, 500, 4)
        plan = plan_lengths(COSTS, load, 5, 5.0, contexts, limits, chains)
        best = 0.0
        order = np.argsort(-chains[:, 0])
        for count in range(1, 5):
            who = order[:count]
            for length in range(1, MOST + 1):
                expected, tokens = 5.0, 5
                for each in who:
                    own = min(length, limits[each])
                    tokens += own
                    expected += float(np.cumprod(chains[each, :own]).sum())
                seconds = COSTS.verify(load, tokens, drafted=True) + COSTS.overhead(count)
                seconds += length * COSTS.draft(count, float(contexts[who].sum()))
                best = max(best, expected / seconds)
        assert plan.goodput == pytest.approx(best)
        assert plan.plain == pytest.approx(5.0 / COSTS.verify(load, 5, drafted=False))


def test_nobody_can_draft() -> None:
    empty = np.zeros(0, dtype=np.int64)
    plan = plan_lengths(COSTS, Load(2, 10), 2, 2.0, empty, empty, np.zeros((0, MOST)))
    assert (plan.requests, plan.goodput) == (0, 0.0)
    assert plan.plain > 0.0


def controller(acceptance: float, *, decide: bool = True) -> GoodputController:
    found = GoodputController(
        CostModel(Machine().profile()),
        AcceptanceModel(MOST, (acceptance,)),
        Reliability(),
        GoodputOptions(probe_share=0.0, decide=decide),
        most=MOST,
        clock=Ticks(),
    )
    for slot in range(4):
        found.open(slot)
    return found


def test_who_may_not_draft_does_not() -> None:
    control = controller(0.9)
    limits = np.array([0, 3, 0, 6])
    chosen = control.choose(Load(4, 400), np.arange(4), np.full(4, 100), limits)
    assert chosen.requests.tolist() == [1, 3]
    assert chosen.limits.tolist() == [3, 6]
    control.leave_out(Off.REQUEST, 2)
    assert control.stats.off[Off.REQUEST] == 2
    none = control.choose(Load(4, 400), np.arange(4), np.full(4, 100), np.zeros(4, dtype=np.int64))
    assert none.round is None


def test_all_draft_where_nothing_is_decided() -> None:
    """Drafts that are never right, at a load where none pays: as many as without control, and their costs are learnt."""
    load, slots, contexts = Load(4, 400), np.arange(4), np.full(4, 100)
    limits = np.array([0, 3, 1, 6])
    weighed = controller(0.01).choose(load, slots, contexts, limits)
    assert not len(weighed.requests)
    control = controller(0.01, decide=False)
    for _ in range(20):
        chosen = control.choose(load, slots, contexts, limits)
        assert chosen.requests.tolist() == [1, 2, 3] and chosen.round is not None
        assert (
            list(chosen.round.keep([0, 1, 2], [0.01] * 3, [True, False, True]))[::2] == [True] * 2
        )
        control.end(chosen)
        assert chosen.round.observations().opening is not None
    assert control.stats.lengths[0] == 0


def test_drafts_that_were_trimmed_say_nothing() -> None:
    """The scheduler may verify fewer than were made, and none of a request that was pre-empted."""
    control = controller(0.5)
    slots, contexts = np.arange(2), np.full(2, 100)
    chosen = control.choose(Load(2, 200), slots, contexts, np.array([1, 1]))
    assert chosen.round is not None
    chosen.round.keep([0, 1], [0.9, 0.9], [True, True])
    control.end(chosen)
    assert control.stats.lengths[1] == 2
    before = control.acceptance.by_position.copy()
    control.verified(slots, contexts, np.array([0, 0]), np.array([0, 0]))
    assert (control.acceptance.by_position == before).all()
    control.verified(slots, contexts, np.array([1, 1]), np.array([1, 1]))  # of nobody's drafts
    assert control.stats.accepted == 0


def test_what_was_observed_is_learnt_at_once_and_in_that_order() -> None:
    """Ranks of an engine that are given the same observations decide the same."""
    seen = Observations(
        verify=(0.02, Load(2, 300), 4, True),
        drafts=[(0.004, 2, 300.0)] * 3,
        opening=(0.005, 2, 300.0),
    )
    one, other = controller(0.5), controller(0.5)
    for control in (one, other):
        for _ in range(20):
            control.observe(seen, 3)
    assert one.costs.verify(Load(2, 300), 4, drafted=True) == pytest.approx(0.02, rel=0.05)
    assert one.costs.draft(2, 300.0) == other.costs.draft(2, 300.0)
    assert one.stats == other.stats
    assert one.stats.relative_errors > 0.0
    assert one.stats.seconds == pytest.approx(20 * (0.02 + 0.012 + 0.005))


@settings(deadline=None, max_examples=60)
@given(
    share=st.floats(0.001, 0.1),
    costs=st.lists(st.floats(0.0001, 0.05), min_size=20, max_size=200),
)
def test_probes_stay_within_their_budget(share: float, costs: list[float]) -> None:
    """Whatever they cost: the share of the time, and what was saved up for."""
    budget, time, spent = ProbeBudget(share), 0.0, 0.0
    for cost in costs:
        budget.earn(0.01, drafted=False)
        time += 0.01
        if budget.affordable and budget.spend(cost):
            spent += cost
    assert spent <= share * time + 8 * max(costs) + 1e-9


def test_every_request_has_its_turn() -> None:
    budget = ProbeBudget(0.01)
    seen: set[int] = set()
    for _ in range(5):
        some = budget.turn(np.arange(11))
        assert len(set(some.tolist())) == PROBED
        seen |= set(some.tolist())
    assert seen == set(range(11))
    assert budget.turn(np.arange(2)).tolist() == [0, 1]
