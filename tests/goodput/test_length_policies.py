"""What goodput control is compared with: vLLM's table, and a bandit."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from vllm_kangaroo.goodput.length_policies import (
    BatchTable,
    LengthBandit,
    LengthPolicy,
    RandomLengths,
)


def test_a_table_holds_on_up_to_the_next_entry() -> None:
    table = BatchTable([(8, 16, 2), (1, 4, 6), (17, 32, 0)])
    found = [table.choose(batch, 0, 0.0) for batch in (1, 4, 5, 8, 16, 17, 64)]
    assert found == [6, 6, 6, 2, 2, 0, 0]
    with pytest.raises(ValueError, match="not at 1"):
        BatchTable([(2, 4, 6)])


def test_a_tuned_table_has_the_fastest_length_of_each_batch_size() -> None:
    speeds = {16: {0: 9.0, 2: 8.0}, 1: {0: 1.0, 2: 1.5}, 4: {0: 3.0, 2: 3.5}}
    table = BatchTable.tuned(speeds)
    assert table.entries == [(1, 3, 2), (4, 15, 2), (16, 16, 0)]
    assert BatchTable.tuned({8: {0: 1.0, 3: 2.0}}).entries == [(1, 8, 3)]


def run(policy: LengthPolicy, speed: dict[int, float], requests: int, steps: int) -> list[int]:
    """Steps of ten tokens at what a length brings a second, give or take a tenth."""
    noise, now, length, chosen = random.Random(0), 0.0, 0, []
    length = policy.choose(requests, 0, now)
    for _ in range(steps):
        now += 10.0 / speed[length] * noise.uniform(0.9, 1.1)
        length = policy.choose(requests, 10, now)
        chosen.append(length)
    return chosen


@pytest.mark.parametrize("best", [0, 2, 4])
def test_a_bandit_finds_the_fastest_length(best: int) -> None:
    speed = {length: 100.0 if length == best else 80.0 for length in (0, 1, 2, 4)}
    chosen = run(LengthBandit(tuple(speed)), speed, 4, 4000)
    assert set(chosen[:200]) == set(speed), "an arm was never tried"
    assert chosen[1000:].count(best) > 0.9 * 3000


def test_a_bandit_learns_each_load_by_itself_and_follows_a_change() -> None:
    bandit = LengthBandit((0, 4))
    few, many = {0: 50.0, 4: 100.0}, {0: 100.0, 4: 50.0}
    run(bandit, few, 1, 1000)
    run(bandit, many, 32, 1000)
    assert run(bandit, few, 1, 100).count(4) > 80
    assert run(bandit, many, 32, 100).count(0) > 80
    assert run(bandit, few, 32, 4000)[2000:].count(4) > 1800


def test_a_bandit_leaves_its_length_for_no_less_than_its_margin() -> None:
    speed = {0: 100.0, 4: 101.0}
    chosen = run(LengthBandit((0, 4), explore=0.0), speed, 1, 2000)
    assert sum(a != b for a, b in pairwise(chosen[100:])) == 0


def test_a_bandit_survives_steps_that_bring_nothing() -> None:
    """Long prompts, computed in pieces."""
    bandit, now = LengthBandit((0, 4)), 0.0
    for _ in range(4 * LengthBandit.HELD):
        now += 0.1
        assert bandit.choose(1, 0, now) in bandit.lengths
    assert run(bandit, {0: 50.0, 4: 100.0}, 1, 1000)[500:].count(4) > 400


def test_random_lengths_are_each_as_likely_and_the_same_everywhere() -> None:
    drawn = [
        [policy.choose(1, 1, 0.0) for _ in range(900)]
        for policy in map(RandomLengths, [(1, 2, 5)] * 2)
    ]
    assert drawn[0] == drawn[1]
    assert all(240 < drawn[0].count(length) < 360 for length in (1, 2, 5))
    assert {1, 2, 5} == set(drawn[0][::4]), (
        "those of every fourth step too, which are all that are learnt from"
    )
