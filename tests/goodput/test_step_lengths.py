"""One length a step, against engines of which everything is known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from vllm_kangaroo.goodput.acceptance import AcceptanceModel
from vllm_kangaroo.goodput.cost_model import Load
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.goodput.goodput_stats import Off
from vllm_kangaroo.goodput.step_lengths import StepLengths

MOST = 5


@dataclass
class Engine:
    """Steps as they come back one step after they were scheduled.

    Attributes:
        each: seconds of a further token of a step beyond the ``free`` ones.
        draft: seconds of a draft pass.
        accepted: chance that a draft is accepted if those before it are.
    """

    each: float = 0.001
    free: int = 8
    draft: float = 0.002
    accepted: float = 0.8
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    made: int = 0
    """Drafts of each request that are verified in the next step."""

    def seconds(self, requests: int, drafts: int) -> float:
        """Of making so many drafts for each request, and of the step that verifies them."""
        width = requests * (1 + drafts)
        around = 0.02 + self.each * max(0, width - self.free)
        passes = drafts + 1 if drafts else 0
        return around + self.draft * passes

    def rate(self, requests: int, drafts: int) -> float:
        """Tokens a second if every step drafts as many."""
        gains = 1.0 + sum(self.accepted**each for each in range(1, drafts + 1))
        return requests * gains / self.seconds(requests, drafts)

    def best(self, requests: int) -> float:
        return max(self.rate(requests, drafts) for drafts in range(MOST + 1))

    def run(self, lengths: StepLengths, requests: int, steps: int) -> tuple[list[int], float]:
        """Lengths that were chosen, and tokens a second."""
        chosen, tokens, time = [], 0, 0.0
        load = Load(requests, 100 * requests)
        for _ in range(steps):
            drafts = lengths.choose(load)
            chosen.append(drafts)
            verified = self.made
            right = self.random.random((requests, MOST)) < self.accepted
            right[:, verified:] = False
            accepted = np.cumprod(right, axis=1).sum(axis=1)
            seconds = self.seconds(requests, verified) * self.random.normal(1.0, 0.05)
            gained = int(requests + accepted.sum())
            lengths.observe(seconds, load, requests * (1 + verified), verified, gained)
            lengths.verified(np.full(requests, 100), np.full(requests, verified), accepted)
            tokens, time, self.made = tokens + gained, time + seconds, drafts
        return chosen, tokens / time


def control(**options: Any) -> StepLengths:
    return StepLengths(AcceptanceModel(MOST), GoodputOptions(**options), most=MOST)


@pytest.mark.parametrize("accepted", [0.15, 0.5, 0.9])
@pytest.mark.parametrize("requests", [1, 8, 64])
def test_it_comes_near_the_best_fixed_length(requests: int, accepted: float) -> None:
    engine, lengths = Engine(accepted=accepted), control()
    engine.run(lengths, requests, 250)
    chosen, rate = engine.run(lengths, requests, 250)
    assert rate > 0.93 * engine.best(requests), (chosen[-40:], engine.best(requests))


def test_it_drafts_at_a_light_load_and_not_at_a_heavy_one() -> None:
    engine, lengths = Engine(), control()
    engine.run(lengths, 1, 300)
    few, _ = engine.run(lengths, 1, 100)
    engine.run(lengths, 128, 300)
    many, _ = engine.run(lengths, 128, 100)
    again, _ = engine.run(lengths, 1, 100)
    assert np.median(few) >= 3 and np.median(again) >= 3
    assert np.median(many) == 0
    assert lengths.stats.off[Off.LOAD] > 50 * 128


def test_drafts_that_have_become_good_are_noticed() -> None:
    engine, lengths = Engine(accepted=0.02, draft=0.004), control()
    engine.run(lengths, 4, 600)
    bad, _ = engine.run(lengths, 4, 100)
    assert np.median(bad) == 0
    assert lengths.stats.off[Off.ACCEPTANCE] > 0
    engine.accepted = 0.9
    engine.run(lengths, 4, 3000)
    good, rate = engine.run(lengths, 4, 200)
    assert rate > 0.9 * engine.best(4), good[-40:]


def test_finding_out_costs_no_more_than_its_share() -> None:
    engine, lengths = Engine(accepted=0.02, draft=0.004), control(probe_share=0.01)
    engine.run(lengths, 8, 1000)
    chosen, rate = engine.run(lengths, 8, 2000)
    assert any(chosen), "nothing was tried"
    assert rate > 0.97 * engine.rate(8, 0)
    assert lengths.stats.probes > 0


def test_before_anything_is_known_it_drafts_as_many_as_it_may() -> None:
    lengths = control()
    assert lengths.choose(Load(3)) == MOST
    assert lengths.stats.lengths[MOST] == 3


def test_it_can_only_look_on() -> None:
    engine, lengths = Engine(accepted=0.1), control(decide=False)
    chosen, _ = engine.run(lengths, 64, 50)
    assert set(chosen) == {MOST}
    assert lengths.stats.steps == 50 and lengths.stats.accepted > 0


def test_time_is_predicted() -> None:
    engine, lengths = Engine(), control()
    engine.run(lengths, 8, 500)
    stats = lengths.stats
    before = stats.seconds, stats.predicted_seconds, stats.error_seconds
    engine.run(lengths, 8, 200)
    seconds = stats.seconds - before[0]
    assert stats.predicted_seconds - before[1] == pytest.approx(seconds, rel=0.05)
    assert stats.error_seconds - before[2] < 0.1 * seconds
    assert lengths.goodput == pytest.approx(engine.best(8), rel=0.15)
