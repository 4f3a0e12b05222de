"""The cost model: what it was made from comes out of the fit, and predictions follow from it."""

from __future__ import annotations

import pytest

from vllm_kangaroo.goodput.step_costs import StepCosts
from vllm_kangaroo.profile.costs import (
    CostModel,
    EngineTimes,
    HeadCost,
    fit,
    head_cost,
    hispec_seconds,
    kangaroo_seconds,
    speedup,
    with_checks,
)
from vllm_kangaroo.profile.draft_replay import Work

TRUE = CostModel(
    layers=12,
    plain=0.030,
    prefill=0.050,
    draft_base=0.004,
    draft_layer=0.002,
    round_base=0.0007,
    verify_exit=1,
    verify_seconds=(0.029, 0.0295, 0.0296, 0.031, 0.0311, 0.0315, 0.033),
    verify_layer=0.0021,
    check_base=0.003,
)
PROMPTS = 5
PREFILL = PROMPTS * TRUE.prefill
CHECKED = 2
"""Tokens of a check."""


def learnt(exit_layer: int, drafts: int, extra: float = 0.0) -> StepCosts:
    """By an engine that is as :data:`TRUE` says, but for ``extra`` seconds a round."""
    return StepCosts(
        verify=tuple(TRUE.verify(exit_layer, at) + extra for at in range(1, drafts + 2)),
        draft=TRUE.draft(exit_layer),
        around=TRUE.round_base,
    )


def checking(exits: tuple[int, int], drafts: int) -> StepCosts:
    """By one that checks at the second exit; a check of more tokens takes longer."""
    check = TRUE.check(exits[1] - exits[0])
    more = {"check": tuple(check + 0.001 * (at - CHECKED) for at in range(1, drafts + 2))}
    return learnt(exits[1], drafts).model_copy(update=more)


def plain() -> EngineTimes:
    return EngineTimes(seconds=PREFILL + 100 * TRUE.plain, first_seconds=PREFILL, tokens=100)


def assert_same(found: CostModel, expected: CostModel) -> None:
    apart = {"verify_seconds"}
    assert found.model_dump(exclude=apart) == pytest.approx(expected.model_dump(exclude=apart))
    assert found.verify_seconds == pytest.approx(expected.verify_seconds)


def test_fit_finds_the_costs() -> None:
    found = fit(12, PROMPTS, plain(), (1, learnt(1, 6)), (6, learnt(6, 6)))
    assert_same(found, TRUE.model_copy(update={"check_base": None}))


def test_checks_and_adapters() -> None:
    bare = TRUE.model_copy(update={"check_base": None})
    found = with_checks(bare, (1, 4), CHECKED, checking((1, 4), 4))
    assert found.check_base == pytest.approx(TRUE.check_base)
    own = head_cost(TRUE, 2, learnt(2, 6, extra=0.001))
    assert own.draft == pytest.approx(TRUE.draft(2))
    assert own.round_extra == pytest.approx(0.001)


def test_one_exit_alone_takes_layers_from_vllm_alone() -> None:
    found = fit(12, PROMPTS, plain(), (1, learnt(1, 6)), None)
    assert found.verify_layer == pytest.approx(TRUE.plain / 12)
    assert found.draft(1) == pytest.approx(TRUE.draft(1))
    assert found.verify(1, 7) == pytest.approx(TRUE.verify(1, 7))


def test_more_positions_than_were_learnt() -> None:
    known = TRUE.verify_seconds
    each = (known[-1] - known[0]) / (len(known) - 1)
    assert TRUE.verify_position == pytest.approx(each)
    assert TRUE.verify(1, len(known) + 2) == pytest.approx(known[-1] + 2 * each)
    assert TRUE.verify(4, 3) == pytest.approx(known[2] - 3 * TRUE.verify_layer)


def test_predictions_add_up() -> None:
    work = Work(tokens=30, verified=[3, 5, 1], draft_steps=6, checks=4)
    expected = 6 * TRUE.draft(2) + sum(TRUE.verify(2, at) for at in (3, 5, 1))
    expected += 2 * TRUE.round_base  # the last round drafts nothing
    assert kangaroo_seconds(TRUE, work, 2) == pytest.approx(expected)
    head = HeadCost(draft=0.01, round_extra=0.002)
    expected += 6 * (0.01 - TRUE.draft(2)) + 3 * 0.002
    assert kangaroo_seconds(TRUE, work, 2, head) == pytest.approx(expected)
    expected = 6 * TRUE.draft(1) + 4 * TRUE.check(3) + sum(TRUE.verify(4, at) for at in (3, 5, 1))
    expected += 2 * TRUE.round_base
    assert hispec_seconds(TRUE, work, (1, 4)) == pytest.approx(expected)
    assert speedup(TRUE, work, 0.3, 2) == pytest.approx((0.1 + 0.9) / (0.1 + 0.3))
    assert kangaroo_seconds(TRUE, Work(), 2) == 0
