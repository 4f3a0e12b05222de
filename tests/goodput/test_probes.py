"""When a step without drafts is due."""

from __future__ import annotations

from vllm_kangaroo.goodput.probes import PLAIN_EVERY, PLAIN_FIRST, ProbeBudget, ProbeRun


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


def test_another_load_begins_anew() -> None:
    budget = ProbeBudget(0.01)
    for requests in (8, 12, 5):
        waits = [drafted_until_due(budget, requests) for _ in range(5)]
    assert waits[0] == PLAIN_EVERY, "about as many requests are no other load"
    for requests in (16, 4):
        assert drafted_until_due(budget, requests) == PLAIN_FIRST


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
