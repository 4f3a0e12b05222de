"""The cost model: what it was made from comes out of the fit, and predictions follow from it."""

from __future__ import annotations

import pytest

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
    verify_base=0.006,
    verify_layer=0.0021,
    verify_position=0.0003,
    check_base=0.003,
)
PROMPTS = 5
PREFILL = PROMPTS * TRUE.prefill


def times(exit_layer: int, rounds: int, drafts: int, extra: float = 0.0) -> EngineTimes:
    steps = rounds * drafts
    drafting = TRUE.draft(exit_layer) * steps
    rest = rounds * (TRUE.verify(exit_layer, drafts + 1) + extra)
    return EngineTimes(
        seconds=PREFILL + drafting + rest,
        first_seconds=PREFILL,
        tokens=rounds * 2,
        rounds=rounds,
        drafted=steps,
        draft_steps=steps,
        draft_seconds=drafting,
    )


def plain() -> EngineTimes:
    return EngineTimes(seconds=PREFILL + 100 * TRUE.plain, first_seconds=PREFILL, tokens=100)


def test_fit_finds_the_costs() -> None:
    found = fit(
        12, PROMPTS, plain(), (1, times(1, 80, 1)), (1, times(1, 50, 6)), (6, times(6, 40, 6))
    )
    expected = TRUE.model_copy(update={"check_base": None})
    assert found.model_dump() == pytest.approx(expected.model_dump())


def test_checks_and_adapters() -> None:
    bare = TRUE.model_copy(update={"check_base": None})
    drafting = 60 * 2 * TRUE.draft(1)
    checks = 90 * TRUE.check(3)
    verifying = 40 * TRUE.verify(4, 4)
    whole = EngineTimes(
        seconds=PREFILL + drafting + checks + verifying,
        first_seconds=PREFILL,
        tokens=100,
        rounds=40,
        drafted=120,
        draft_steps=120,
        draft_seconds=drafting,
        checks=90,
    )
    assert with_checks(bare, PREFILL, (1, 4), whole).check_base == pytest.approx(TRUE.check_base)
    own = head_cost(TRUE, PREFILL, 2, times(2, 50, 6, extra=0.001))
    assert own.draft == pytest.approx(TRUE.draft(2))
    assert own.round_extra == pytest.approx(0.001)


def test_one_exit_alone_takes_layers_from_vllm_alone() -> None:
    found = fit(12, PROMPTS, plain(), (1, times(1, 80, 1)), (1, times(1, 50, 6)), None)
    assert found.verify_layer == pytest.approx(TRUE.plain / 12)
    assert found.draft(1) == pytest.approx(TRUE.draft(1))
    assert found.verify(1, 7) == pytest.approx(TRUE.verify(1, 7))


def test_predictions_add_up() -> None:
    work = Work(tokens=30, verified=[3, 5], draft_steps=6, checks=4)
    expected = 6 * TRUE.draft(2) + TRUE.verify(2, 3) + TRUE.verify(2, 5)
    assert kangaroo_seconds(TRUE, work, 2) == pytest.approx(expected)
    head = HeadCost(draft=0.01, round_extra=0.002)
    expected += 6 * (0.01 - TRUE.draft(2)) + 2 * 0.002
    assert kangaroo_seconds(TRUE, work, 2, head) == pytest.approx(expected)
    expected = 6 * TRUE.draft(1) + 4 * TRUE.check(3) + TRUE.verify(4, 3) + TRUE.verify(4, 5)
    assert hispec_seconds(TRUE, work, (1, 4)) == pytest.approx(expected)
    assert speedup(TRUE, work, 0.3, 2) == pytest.approx((0.1 + 0.9) / (0.1 + 0.3))
    assert kangaroo_seconds(TRUE, Work(), 2) == 0
