"""When a step without drafts is due."""

from __future__ import annotations

import pytest

from vllm_kangaroo.goodput.probes import (
    CLOSE,
    CLOSE_EVERY,
    LEAST_WORTH,
    OFF,
    PLAIN_EVERY,
    PLAIN_FIRST,
    PROBED,
    SAVED,
    ProbeBudget,
    ProbeRun,
)


def drafted_until_due(budget: ProbeBudget, requests: int) -> int:
    """Steps with drafts until one without is due; that one is then made."""
    for steps in range(1, 10 * PLAIN_EVERY):
        budget.earn(0.01, drafted=True, requests=requests)
        if budget.plain_due:
            budget.earn(0.01, drafted=False, requests=requests)
            return steps
    raise AssertionError("never due")


def test_a_step_without_drafts_is_due_soon_at_first_and_ever_more_seldom() -> None:
    budget = ProbeBudget(0.01)
    assert not budget.plain_due
    waits = [drafted_until_due(budget, 2) for _ in range(6)]
    assert waits[0] == PLAIN_FIRST and waits[1] == 2 * PLAIN_FIRST
    assert waits == sorted(waits) and waits[-2:] == [PLAIN_EVERY, PLAIN_EVERY]


def test_each_load_begins_by_itself() -> None:
    budget = ProbeBudget(0.01)
    for requests in (8, 7, 10):
        waits = [drafted_until_due(budget, requests) for _ in range(5)]
    assert waits[0] == PLAIN_EVERY, "about as many requests are no other load"
    for requests in (16, 4):
        assert drafted_until_due(budget, requests) == PLAIN_FIRST
    assert drafted_until_due(budget, 8) == PLAIN_EVERY, "what a load took was forgotten"


def test_what_hardly_pays_is_compared_more_often() -> None:
    budget = ProbeBudget(0.01)
    for _ in range(6):
        drafted_until_due(budget, 8)
    for _ in range(CLOSE_EVERY - 1):
        budget.earn(0.01, drafted=True, requests=8)
    assert not budget.is_plain_due(0.5 * CLOSE)
    budget.earn(0.01, drafted=True, requests=8)
    assert budget.is_plain_due(0.5 * CLOSE) and not budget.is_plain_due(2 * CLOSE)


def test_what_is_drafted_anew_is_compared_soon() -> None:
    budget = ProbeBudget(0.01)
    for _ in range(6):
        drafted_until_due(budget, 1)
    budget.earn(0.1, drafted=False, steps=OFF)
    for _ in range(6):  # drafts that are tried for two steps are no reason to compare more seldom
        budget.earn(0.01, drafted=True, steps=2)
        budget.earn(0.01, drafted=False)
    assert drafted_until_due(budget, 1) == PLAIN_FIRST


def test_steps_that_were_not_looked_at_count() -> None:
    budget = ProbeBudget(0.01)
    budget.earn(0.1, drafted=True, steps=PLAIN_FIRST - 1)
    assert not budget.plain_due
    budget.earn(0.01, drafted=True)
    assert budget.plain_due


def spent(budget: ProbeBudget, seconds: int, requests: int) -> int:
    """Milliseconds that probes are granted in so many seconds."""
    granted = 0
    for _ in range(100 * seconds):
        budget.earn(0.01, drafted=False, requests=requests)
        granted += budget.spend(0.001)
    return granted


def test_little_is_spent_where_drafts_can_bring_little() -> None:
    budget = ProbeBudget(0.01)
    budget.weigh(2.0)
    spent(budget, 1, 32)
    assert spent(budget, 10, 32) == pytest.approx(100, abs=2)
    budget.weigh(0.3)
    spent(budget, 1, 32)
    assert spent(budget, 10, 32) == pytest.approx(30, abs=2)
    budget.weigh(-0.5)
    spent(budget, 1, 32)
    assert spent(budget, 10, 32) == pytest.approx(100 * LEAST_WORTH, abs=2)


def test_what_was_not_worth_spending_is_there_at_another_load() -> None:
    budget = ProbeBudget(0.01)
    budget.weigh(-0.5)
    spent(budget, 10, 32)
    budget.weigh(1.0)
    assert spent(budget, 1, 2) == pytest.approx(10 + SAVED, abs=2), (
        "8 probes saved up, and its share"
    )
    assert spent(budget, 1, 2) == pytest.approx(10, abs=1)


def test_a_probe_that_pays_for_itself_is_followed_by_the_next() -> None:
    budget = ProbeBudget(0.01)
    budget.earn(100.0, drafted=False)
    for _ in range(SAVED):
        assert budget.spend(0.25)
    assert not budget.spend(0.25)
    budget.bring(0.125, 1)
    assert not budget.spend(0.25), "it brought less than it cost"
    budget.bring(0.5, 1)
    assert budget.spend(0.25)
    assert not budget.spend(0.25), "it was given back more than it cost"
    budget.bring(0.5, PROBED)
    assert not budget.spend(0.25), "of so many requests a probe shows enough"


def test_a_probe_takes_its_steps_and_no_others() -> None:
    run = ProbeRun()
    assert not run.goes_on(plain=True) and not run.step()
    run.begin(2, plain=True)
    assert run.is_under_way(plain=True) and not run.is_under_way(plain=False)
    assert not run.goes_on(plain=False)
    for _ in range(2):
        assert run.goes_on(plain=True) and run.step()
    assert not run.goes_on(plain=True)
    assert run.step(), "that behind it is cold too"
    assert not run.step()
