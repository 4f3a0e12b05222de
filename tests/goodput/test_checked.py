"""HiSpec under goodput control: rounds that pay, and intermediate verifications that do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from vllm_kangaroo.goodput.acceptance import AcceptanceModel
from vllm_kangaroo.goodput.checked_controller import CheckedController
from vllm_kangaroo.goodput.checked_round import CheckedRound
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.cost_profile import SIZES, CostProfile, Curve
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.goodput.observations import Observations
from vllm_kangaroo.goodput.reliability import Reliability

MOST = 6
MODEL, DRAFT, AROUND = 0.02, 0.001, 0.0002


@dataclass
class Tiers:
    """Three tiers in numbers, always with as many requests.

    Args:
        agreement: probability that the verifier chooses a draft too.
        buffered: that the full model accepts what is in a buffer.
        unchecked: that it accepts a draft which nothing has checked.
        check: seconds of an intermediate verification.
    """

    agreement: float
    buffered: float
    unchecked: float
    check: float
    per_round: int = 1
    requests: int = 2
    now: float = 0.0
    tokens: float = 0.0
    steps: dict[str, int] = field(default_factory=lambda: {"checked": 0, "unchecked": 0, "none": 0})

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(1)
        profile = CostProfile(
            verify=Curve.timed(dict.fromkeys(SIZES, MODEL)),
            draft=Curve.timed(dict.fromkeys(SIZES, DRAFT)),
            check=Curve.timed(dict.fromkeys(SIZES, self.check)),
        )
        self.control = CheckedController(
            CostModel(profile),
            AcceptanceModel(MOST),
            Reliability(),
            GoodputOptions(),
            most=MOST,
            tokens_per_round=self.per_round,
            clock=lambda: self.now,
        )
        for slot in range(self.requests):
            self.control.open(slot)

    def run(self, steps: int) -> float:
        """Tokens a second of so many steps."""
        began, had = self.now, self.tokens
        slots, contexts = np.arange(self.requests), np.full(self.requests, 100)
        load = Load(self.requests, 100 * self.requests)
        seen, lengths = Observations(), np.zeros(self.requests, dtype=np.int64)
        checked = False
        for _ in range(steps):
            self.now += MODEL
            seen.verify = (MODEL, load, self.requests + int(lengths.sum()), bool(lengths.any()))
            share = self.buffered if checked else self.unchecked
            right = self.random.random((self.requests, MOST)) < share
            right &= np.arange(MOST) < lengths[:, None]
            accepted = np.cumprod(right, axis=1).sum(axis=1)
            self.tokens += self.requests + int(accepted.sum())
            self.control.observe(seen, 1)
            self.control.verified(slots, contexts, lengths, accepted)
            chosen = self.control.choose(load, slots, contexts, np.full(self.requests, MOST))
            lengths, seen = np.zeros(self.requests, dtype=np.int64), Observations()
            if chosen.round is None:
                self.steps["none"] += 1
                continue
            self.now += AROUND
            checked = chosen.round.checks
            self.steps["checked" if checked else "unchecked"] += 1
            self._draft(chosen.round, len(chosen.requests))
            self.control.end(chosen)
            lengths[chosen.requests] = chosen.round.lengths
            seen = chosen.round.observations()
        return (self.tokens - had) / (self.now - began)

    def _draft(self, round_: Any, count: int) -> None:
        alive = list(range(count))
        if not round_.checks:
            made = 0
            while alive:
                self.now += DRAFT
                made += 1
                may = [made < MOST] * len(alive)
                going = round_.keep(alive, [0.5] * len(alive), may)
                alive = [who for who, on in zip(alive, going, strict=True) if on]
            return
        held = [0] * count
        while alive:
            drafted, agreed, gained = [], [], []
            for _ in range(self.per_round):
                self.now += DRAFT
                round_.keep(alive, [0.5] * len(alive), [True] * len(alive))
            self.now += self.check
            for who in alive:
                room = min(self.per_round, MOST - held[who])
                right = self.random.random(room) < self.agreement
                good = int(np.cumprod(right).sum())
                drafted.append(room)
                agreed.append(good)
                gained.append(good + (good < room))
                held[who] += gained[-1]
            may = [held[who] < MOST for who in alive]
            going = round_.another(alive, drafted, agreed, gained, may)
            alive = [who for who, on in zip(alive, going, strict=True) if on]


def rounds_goodput(tiers: Tiers, rounds: int) -> float:
    """Of so many checked rounds of a draft each."""
    seconds = MODEL + bool(rounds) * AROUND + rounds * (DRAFT + tiers.check)
    return tiers.requests * sum(tiers.buffered**at for at in range(rounds + 1)) / seconds


def unchecked_goodput(tiers: Tiers, length: int) -> float:
    seconds = MODEL + bool(length) * AROUND + length * DRAFT
    return tiers.requests * sum(tiers.unchecked**at for at in range(length + 1)) / seconds


def best(tiers: Tiers) -> float:
    ways = (rounds_goodput, unchecked_goodput)
    return max(way(tiers, count) for way in ways for count in range(MOST + 1))


@pytest.mark.parametrize(
    ("tiers", "way"),
    [
        (Tiers(agreement=0.5, buffered=0.9, unchecked=0.45, check=0.001), "checked"),
        (Tiers(agreement=0.95, buffered=0.85, unchecked=0.84, check=0.006), "unchecked"),
        (Tiers(agreement=0.3, buffered=0.1, unchecked=0.02, check=0.004), "none"),
    ],
    ids=["checks pay", "checks do not", "nothing does"],
)
def test_the_better_way_is_found(tiers: Tiers, way: str) -> None:
    tiers.run(150)
    before = dict(tiers.steps)
    goodput = tiers.run(700)
    gained = {name: count - before[name] for name, count in tiers.steps.items()}
    assert max(gained, key=lambda name: gained[name]) == way
    assert goodput >= 0.95 * best(tiers)
    assert goodput >= 0.97 * rounds_goodput(tiers, 0)


def test_what_a_round_brings_is_learnt() -> None:
    tiers = Tiers(agreement=0.5, buffered=0.9, unchecked=0.4, check=0.001, per_round=2)
    tiers.run(400)
    gains = tiers.control.gains
    assert gains.agreement == pytest.approx(0.5, abs=0.1)
    assert gains.per_round == pytest.approx(0.75 + (1 - 0.25), abs=0.15)
    assert tiers.control.buffered.by_position[0] == pytest.approx(0.9, abs=0.08)


def test_a_round_that_is_checked_goes_on_while_it_pays() -> None:
    tiers = Tiers(agreement=0.5, buffered=0.9, unchecked=0.4, check=0.001)
    tiers.run(100)
    control = tiers.control
    control._checking = True
    chosen = control.choose(Load(1, 100), np.arange(1), np.full(1, 100), np.array([MOST]))
    assert isinstance(chosen.round, CheckedRound)
    control.gains.per_round = 1.0
    round_ = chosen.round
    assert round_.another([0], [1], [1], [1], [True]) == [True]
    assert round_.another([0], [1], [1], [1], [False]) == [False]
    assert round_.lengths.tolist() == [2]
    assert round_.verification.tokens == 3
    seen = round_.observations()
    assert len(seen.checks) == 2
