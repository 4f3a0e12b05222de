"""Which requests are tried when nobody is expected to draft, and what that is charged."""

from __future__ import annotations

import numpy as np
import pytest

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.cost_profile import CostProfile, Curve
from vllm_kangaroo.goodput.draft_round import Verification
from vllm_kangaroo.goodput.goodput_stats import GoodputStats
from vllm_kangaroo.goodput.length_plan import plan_lengths
from vllm_kangaroo.goodput.probes import PROBED, RUN, ProbeBudget
from vllm_kangaroo.goodput.trials import LEAST_LOSS, MOST_LOSS, NARROW, Trials

REQUESTS = 16
SECONDS = 0.1
"""Of a step without drafts, about."""


class Bench:
    """Steps of a load where drafts are not expected to pay."""

    def __init__(self, share: float = 0.01) -> None:
        profile = CostProfile(
            verify=Curve(tokens=(1, 16, 128), seconds=(0.05, SECONDS, 0.8)),
            draft=Curve(tokens=(1, 16), seconds=(0.01, 0.02)),
        )
        self.costs = CostModel(profile)
        self.budget = ProbeBudget(share)
        self.trials = Trials(self.budget, GoodputStats())

    def step(self, requests: int = REQUESTS) -> Ints:
        """Who is tried in a step of so many."""
        load = Load(requests)
        places, limits = np.arange(requests), np.full(requests, 4)
        contexts, chains = np.full(requests, 100), np.full((requests, 4), 0.1)
        plan = plan_lengths(self.costs, load, requests, requests, contexts, limits, chains)
        self.rate = plan.plain
        now = Verification(load, requests, float(requests))
        tried = self.trials.choose(
            self.costs, plan, np.arange(0), now, places + 100, contexts, np.full(requests, 0.1)
        )
        self.trials.run.step()
        return tried

    def probe(self, requests: int = REQUESTS) -> int:
        """Steps until requests are tried, in as many steps as a probe has; how many they are."""
        for _ in range(100_000):
            if len(tried := self.step(requests)):
                break
            self.budget.earn(SECONDS, drafted=False, requests=requests)
        for _ in range(RUN - 1):
            assert len(self.step(requests)) == len(tried)
        return len(tried)


def test_all_are_tried_first_and_then_now_and_then() -> None:
    bench = Bench()
    tried = [bench.probe() for _ in range(2 * (NARROW + 1))]
    assert tried == [REQUESTS, *[PROBED] * NARROW] * 2


def test_another_load_is_tried_as_a_whole_at_once() -> None:
    bench = Bench()
    assert [bench.probe(), bench.probe()] == [REQUESTS, PROBED]
    assert bench.probe(3 * REQUESTS) == 3 * REQUESTS


def test_few_requests_are_all_there_are() -> None:
    bench = Bench()
    assert [bench.probe(PROBED) for _ in range(3)] == [PROBED] * 3


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_no_share_no_trial(share: float) -> None:
    bench = Bench(share)
    assert bool(len(bench.step())) == bool(share)


def charged(lost: float) -> tuple[Bench, float, float]:
    """A step in which all were tried and that lost so much; what was paid for it, and what of that came back."""
    bench = Bench()
    bench.step()
    price = bench.trials._price
    before = bench.budget._saved
    tokens = REQUESTS + 3
    bench.trials.settle(tokens / bench.rate + lost, tokens)
    return bench, price, bench.budget._saved - before


def test_what_all_of_them_lose_is_what_is_charged() -> None:
    _, price, back = charged(0.004)
    assert price > LEAST_LOSS * SECONDS and back == pytest.approx(price - 0.004)
    _, price, back = charged(2.0 * price)
    assert back == pytest.approx(-price), "it lost more than was paid"
    _, price, back = charged(100.0)
    assert back == pytest.approx((1.0 - MOST_LOSS) * price), "that was no draft's doing"


def test_where_it_pays_it_costs_next_to_nothing() -> None:
    bench, price, back = charged(-0.01)
    seconds = (REQUESTS + 3) / bench.rate - 0.01
    assert 0.8 * price < back == pytest.approx(price - LEAST_LOSS * seconds)


def test_a_step_is_charged_once() -> None:
    bench, _, _ = charged(0.004)
    before = bench.budget._saved
    bench.trials.settle(1.0, REQUESTS)
    assert bench.budget._saved == before
