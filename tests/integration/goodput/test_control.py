"""What goodput control makes of a runner's steps: loads, time between steps, and requests that come and go."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.goodput import repeats
from vllm_kangaroo.goodput.acceptance import AcceptanceModel
from vllm_kangaroo.goodput.controller import GoodputController
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.cost_profile import CostProfile
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.goodput.goodput_stats import Off
from vllm_kangaroo.goodput.lookup_control import LookupControl
from vllm_kangaroo.goodput.observations import Observations
from vllm_kangaroo.goodput.reliability import Reliability
from vllm_kangaroo.integration.goodput.build import prior_of
from vllm_kangaroo.integration.goodput.control import REST, GoodputControl
from vllm_kangaroo.integration.goodput.weighed_step import WeighedStep
from vllm_kangaroo.ladder.spans import Spans


class Bench:
    """A control with a clock that stands, and all that it was given to learn.

    Args:
        lookup: whether drafts are looked up beside an exit's, or alone; None if none are.
    """

    def __init__(
        self,
        acceptance: float = 0.9,
        lookup: bool | None = None,
        probe_share: float = 0.0,
        *,
        decide: bool = True,
    ) -> None:
        self.now = 0.0
        self.shared: list[Observations] = []
        costs = CostModel(CostProfile.unknown())
        controller = GoodputController(
            costs,
            AcceptanceModel(4, (acceptance,)),
            Reliability(),
            GoodputOptions(probe_share=probe_share, decide=decide),
            most=4,
            clock=lambda: self.now,
        )
        lookups = None
        if lookup is not None:
            exits = controller.surplus if lookup else None
            lookups = LookupControl(costs, controller.rate, controller.trials.leave_plain, exits)
        self.control = GoodputControl(controller, lookups, self.share, lambda: self.now)

    def share(self, seen: Observations) -> Observations:
        self.shared.append(seen)
        return seen

    def step(
        self, names: list[str], spans: list[tuple[int, int]], drafts: list[int], new: list[int]
    ) -> WeighedStep:
        """One step: (start, length) of each request, how many of it are drafts, and tokens that it got."""
        starts, lengths = (np.array(each) for each in zip(*spans, strict=True))
        rows = np.arange(len(names))
        sampled = np.flatnonzero(new)
        return WeighedStep(
            self.control,
            names,
            Spans(rows, rows, starts, lengths),
            np.array(drafts),
            sampled,
            np.array(new)[sampled],
        )


def observe(step: WeighedStep, contexts: list[int], useful: list[int]) -> None:
    limits = np.maximum(np.array(useful), 0)
    step.observe(np.array(contexts), limits, np.array(useful))


def test_time_is_that_from_step_to_step() -> None:
    bench = Bench()
    first = bench.step(["a", "b"], [(0, 10), (0, 7)], [0, 0], [1, 1])
    observe(first, [11, 8], [9, 9])
    assert bench.shared[-1].verify is None, "nothing is known of what was before"
    first.end()
    bench.now = 0.25
    second = bench.step(["a", "b", "c"], [(10, 3), (7, 1), (0, 5)], [2, 0, 0], [3, 1, 0])
    observe(second, [13, 9], [9, 9])
    assert bench.shared[-1].verify == (0.25, Load(3, 13 + 8 + 5, 4), 5, True)
    second.end()
    bench.now = 99.0
    third = bench.step(["d"], [(0, 5)], [0], [1])
    observe(third, [6], [9])
    assert bench.shared[-1].verify is None, "the engine stood still"


def test_a_step_that_samples_nothing_is_timed_too() -> None:
    bench = Bench()
    for at in range(3):
        bench.now = 0.1 * at
        bench.step(["a"], [(16 * at, 16)], [0], [0]).end()
    assert bench.shared[-1].verify == (pytest.approx(0.1), Load(1, 48, 15), 1, False)


def test_drafts_are_chosen_and_learnt_from() -> None:
    bench = Bench()
    control, stats = bench.control, bench.control.controller.stats
    step = bench.step(["a", "b"], [(0, 10), (0, 7)], [0, 0], [1, 1])
    observe(step, [11, 8], [9, -1])
    chosen = step.choose(np.array([4, 0]))
    assert chosen.tolist() == [0]
    pace: Any = step.pace
    pace.keep([0], [0.9], [False])
    step.end()
    assert stats.lengths[1] == 1
    control.close("b")
    before = control.controller.acceptance.by_position[0]
    for _ in range(20):
        bench.now += 0.01
        following = bench.step(["a"], [(10, 2)], [1], [2])
        observe(following, [13], [9])
        following.choose(np.array([4]))
        pace = following.pace
        pace.keep([0], [0.9], [False])
        following.end()
    assert stats.accepted == 20
    assert control.controller.acceptance.by_position[0] > before


def test_requests_that_get_none_are_counted_by_reason() -> None:
    bench = Bench()
    step = bench.step(["a", "b", "c"], [(5, 1)] * 3, [0] * 3, [1] * 3)
    step.observe(np.full(3, 7), np.array([0, 0, 0]), np.array([5, 0, -1]))
    off = bench.control.controller.stats.off
    assert (off[Off.REQUEST], off[Off.ENDING]) == (1, 1)


def test_a_number_of_a_request_that_ended_is_another_s() -> None:
    bench = Bench()
    control = bench.control
    assert control.slots(["a", "b"]).tolist() == [0, 1]
    control.controller.acceptance._hits[0] = 5.0
    control.close("a")
    control.close("a")
    control.close("unknown")
    assert control.slots(["b", "c"]).tolist() == [1, 0]
    assert control.controller.acceptance._hits[0] == 0.0


def undrafted(bench: Bench, names: list[str], context: int) -> bool:
    """A step in which nobody drafts; whether it was passed over."""
    bench.now += 0.01
    if bench.control.passes_over(names):
        return True
    count = len(names)
    step = bench.step(names, [(context, 1)] * count, [0] * count, [1] * count)
    observe(step, [context + 1] * count, [9] * count)
    assert not len(step.choose(np.full(count, 4)))
    step.end()
    return False


def test_most_steps_in_which_nobody_drafts_are_passed_over() -> None:
    """They are counted, and the time of one that is looked at is its own."""
    bench = Bench(acceptance=0.02)
    stats = bench.control.controller.stats
    names = list("abcdefgh")
    assert not bench.control.passes_over(names), "nothing has been decided yet"
    passed = [undrafted(bench, names, 10 + at) for at in range(1 + 3 * REST)]
    assert passed == [False, *([True] * (REST - 1) + [False]) * 3]
    assert stats.lengths[0] == sum(stats.off.values()) == 8 * len(passed)
    assert stats.steps == 3
    assert bench.shared[-1].verify is not None
    assert bench.shared[-1].verify[0] == pytest.approx(0.01)
    assert undrafted(bench, names, 50)
    assert undrafted(bench, names[:6], 51), "two of eight have ended"
    assert not undrafted(bench, names[:5], 52), "this is another load"


def test_requests_that_come_are_looked_at_though_as_many_have_ended() -> None:
    bench = Bench(acceptance=0.02)
    names = list("abcdefgh")
    assert not undrafted(bench, names, 10)
    assert undrafted(bench, names, 11)
    assert undrafted(bench, [*names[:6], "i", "j"], 12), "two of eight are new"
    assert not undrafted(bench, [*names[:5], "i", "j", "k"], 13), "and another since"
    assert undrafted(bench, [*names[:5], "i", "j", "k"], 14)


def test_a_step_in_which_nobody_could_draft_says_nothing_of_the_next() -> None:
    """A request that ends alone is followed by another, which drafts at once."""
    bench = Bench(acceptance=0.95)
    assert drafting(bench, ["a"], [0]) == [4]
    assert drafting(bench, ["a"], [4], limit=0) == [0]
    assert not bench.control.controller.settled
    assert not bench.control.passes_over(["a"])
    assert drafting(bench, ["b"], [0]) == [4]


def test_time_that_is_passed_over_pays_for_probes_too() -> None:
    bench = Bench(acceptance=0.3, probe_share=0.05)
    controller, budget = bench.control.controller, bench.control.controller.probes
    for _ in range(200):
        controller.costs.observe_verify(0.01, Load(1, 14), 1, drafted=False)
        controller.costs.observe_verify(0.02, Load(1, 14), 2, drafted=True)
        controller.costs.observe_draft(0.01, 1, 14)
    budget.spend(budget._saved if budget._saved < 1e9 else 0.0)
    budget._saved, budget._wanted, budget._most = 0.0, 99.0, 1.0
    undrafted(bench, ["a"], 10)
    undrafted(bench, ["a"], 11)
    before = budget._saved + budget._aside
    for at in range(REST):
        undrafted(bench, ["a"], 12 + at)
    earned = budget._saved + budget._aside - before
    assert earned == pytest.approx(0.05 * REST * 0.01, rel=0.2)


def test_nothing_is_passed_over_where_nothing_is_decided() -> None:
    bench = Bench(acceptance=0.02, decide=False)
    for at in range(REST):
        assert not bench.control.passes_over(["a"])
        bench.step(["a"], [(at, 1)], [0], [0]).end()


def drafting(bench: Bench, names: list[str], before: list[int], limit: int = 4) -> list[int]:
    """A step of requests of which all drafts are accepted; how many drafts each then makes."""
    bench.now += 0.004
    ended = [at for at, count in enumerate(before) if count]
    step = bench.step(
        names, [(50, 1 + each) for each in before], before, [1 + each for each in before]
    )
    observe(step, [51] * len(names), [limit] * len(names))
    chosen = step.choose(np.full(len(names), limit))
    made = [0] * len(names)
    alive = list(range(len(chosen)))
    while alive:
        bench.now += 0.0002
        for who in alive:
            made[chosen[who]] += 1
        may = [made[chosen[who]] < limit for who in alive]
        pace: Any = step.pace
        going = pace.keep(alive, [0.9] * len(alive), may)
        alive = [who for who, on in zip(alive, going, strict=True) if on]
    step.end()
    assert not ended or len(names)
    return made


def test_drafting_is_repeated_unseen_between_two_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is drafted is counted; what is learnt from is what was looked at."""
    monkeypatch.setattr(repeats, "LEARNING", 50)
    bench = Bench(acceptance=0.9)
    controller = bench.control.controller
    names, made, drafted = ["a", "b"], [0, 0], 0
    for _ in range(60):
        made = drafting(bench, names, made)
    looks, accepted = len(bench.shared), controller.stats.accepted
    assert 51 <= looks < 60
    for _ in range(100):
        made = drafting(bench, names, made)
        drafted += sum(map(bool, made))
    assert drafted > 190
    assert 5 < len(bench.shared) - looks < 40
    assert sum(controller.stats.lengths[1:]) >= drafted + 100
    assert 0 < controller.stats.accepted - accepted < 300, "of what was looked at alone"
    looks = len(bench.shared)
    for number in range(4):  # a batch that is another each time is looked at each time
        made = drafting(bench, ["a", f"c{number}"], made)
    assert len(bench.shared) >= looks + 4


def survivals(share: float, drafts: int = 4) -> list[float]:
    return [share**length for length in range(1, drafts + 1)]


def test_drafts_that_were_looked_up_are_trimmed() -> None:
    """The likelier they are, the more; none where verifying them costs more than they bring."""
    bench = Bench(lookup=False)
    step = bench.step(["a", "b"], [(5, 1)] * 2, [0, 0], [1, 1])
    observe(step, [7, 7], [9, 9])
    both, costs = np.array([0, 1]), bench.control.controller.costs
    left = step.trim(both, [survivals(0.95), survivals(0.05)])
    assert left[0] > left[1]
    for _ in range(200):
        costs.observe_verify(0.01, Load(2, 14), 2, drafted=False)
        costs.observe_verify(0.2, Load(2, 14), 8, drafted=True)
    assert step.trim(both, [survivals(0.5)] * 2) == [0, 0]
    assert step.trim(both[:1], [survivals(0.5, 1)]) == [0]


def test_all_that_is_looked_up_stays_where_nothing_is_decided() -> None:
    bench = Bench(lookup=True, decide=False)
    step = bench.step(["a", "b"], [(5, 1)] * 2, [0, 0], [1, 1])
    observe(step, [7, 7], [9, 9])
    assert step.trim(np.array([0, 1]), [survivals(0.01), survivals(0.01, 2)]) == [4, 2]


@pytest.mark.parametrize("acceptance", [0.05, 0.9])
def test_an_exit_drafts_where_it_brings_more(acceptance: float) -> None:
    bench = Bench(acceptance, lookup=True)
    costs = bench.control.controller.costs
    for _ in range(200):  # a draft pass takes a tenth of a step, and a token more next to nothing
        for tokens in (1, 3, 5):
            costs.observe_verify(0.1 + 0.001 * tokens, Load(1, 14), tokens, drafted=True)
        costs.observe_verify(0.1, Load(1, 14), 1, drafted=False)
        costs.observe_draft(0.01, 1, 14)
        costs.observe_opening(0.011, 1, 14)
    step = bench.step(["a"], [(5, 1)], [0], [1])
    observe(step, [7], [9])
    only = np.array([0])
    assert step.trim(only, [survivals(0.99)])[0] > 0, "as good as an exit's, without a pass"
    assert (step.trim(only, [survivals(0.3)])[0] > 0) == (acceptance < 0.3)


def test_a_step_without_drafts_is_timed_though_some_are_looked_up_in_each() -> None:
    bench = Bench(lookup=True, probe_share=0.05)
    controller = bench.control.controller
    lengths, drafted = [], [0]
    for at in range(400):
        step = bench.step(["a"], [(5 + at, 1 + drafted[0])], drafted, [1 + drafted[0]])
        observe(step, [7 + at], [9])
        drafted = step.trim(np.array([0]), [survivals(0.9)])
        chosen = step.choose(np.array([0 if drafted[0] else 4]))
        assert not len(chosen) or not drafted[0]
        lengths.append(drafted[0] + len(chosen))
        if len(chosen):
            pace: Any = step.pace
            pace.keep([0], [0.9], [False])
        step.end()
        bench.now += 0.02 if drafted[0] else 0.01
    without = [at for at, length in enumerate(lengths) if not length]
    assert 2 <= len(without) <= 40 and without[-1] > 300
    assert controller.stats.measured > 0
    load = Load(1, 400)
    slower = controller.costs.verify(load, 1, drafted=True)
    assert slower > 1.2 * controller.costs.verify(load, 1, drafted=False)


def test_what_is_known_of_an_adapter() -> None:
    def adapter(training: dict[str, Any]) -> AdapterConfig:
        return AdapterConfig.model_construct(training=training)

    assert len(prior_of(None)) == 1
    agreement = [{"top1_agreement": 0.43}, {"top1_agreement": 0.38}]
    assert prior_of(adapter({"figures_by_draft": agreement})) == (0.43, 0.38)
    for record in ({}, {"figures_by_draft": []}, {"figures_by_draft": [{"loss": 1.0}]}):
        assert prior_of(adapter(record)) == (0.6,)


def test_what_looking_takes_counts_against_drafts() -> None:
    """Of the steps that are looked at and those that follow them unseen, each its part; not where it is only looked."""
    found = []
    for unseen, decide in ((0, True), (3, True), (0, False)):
        bench = Bench(acceptance=0.9, decide=decide)
        controller = bench.control.controller
        drafting(bench, ["a"], [0])
        controller._unseen = unseen
        controller.looked(0.4)
        chosen = controller.choose(Load(1, 50), np.array([0]), np.array([50]), np.array([4]))
        assert chosen.round is not None
        found.append(chosen.round.around)
    assert found == pytest.approx([0.4, 0.1, 0.0])
