"""Engines in turns: who runs when, what is timed, and which counters belong to which round."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from tests.bench.fake_engine import FakeClock, FakeEngine
from vllm_kangaroo.bench import rounds
from vllm_kangaroo.bench.engine_runs import run_engines, warm_up

PROMPTS = [[10, 1], [20, 1], [30, 1]]


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "SETTLE_SECONDS", 0.0)


def run(together: bool, **more: Any) -> tuple[FakeEngine, FakeEngine, Any]:
    """Three rounds of five tokens a prompt: in five steps, and in one and two of two tokens."""
    clock = FakeClock()
    plain, drafting = FakeEngine(clock, 5), FakeEngine(clock, 5, width=2, seconds=1.5)
    engines = {"plain": plain, "drafting": drafting}
    warm_up(engines, PROMPTS[:1], None, together=together)
    found = run_engines(
        engines, PROMPTS, None, 3, together=together, counted=["drafting"], clock=clock, **more
    )
    return plain, drafting, found


def test_each_prompt_by_itself_has_its_own_time() -> None:
    answered: list[int] = []
    plain, _, found = run(False, advance=answered.append)
    assert plain.prompts == [10, *[10, 20, 30] * 3]  # the first of them to warm it
    assert sum(answered) == 3 * 2 * 3
    for one in found.rounds:
        assert [speed.seconds for speed in one["plain"].speeds] == [5.0] * 3
        assert [speed.seconds for speed in one["drafting"].speeds] == [4.5] * 3
        total = one["drafting"].total
        assert (total.tokens, total.decode_tokens, total.decode_seconds) == (15, 12, 9.0)
        for output in one["drafting"].outputs:
            assert output.steps == [1, 2, 2] and output.times[0] - output.began == 1.5
        assert [output.token_ids[0] for output in one["plain"].outputs] == [10, 20, 30]


def test_engines_take_turns_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds, "PROMPTS_A_TURN", 2)
    clock, order, told = FakeClock(), [], []
    engines = {name: FakeEngine(clock, 2) for name in ("a", "b")}
    whole = rounds.run_pass

    def run_pass(llm: Any, prompts: Any, *rest: Any, **more: Any) -> Any:
        order.append((next(n for n, e in engines.items() if e is llm), [p[0] for p in prompts]))
        return whole(llm, prompts, *rest, **more)

    monkeypatch.setattr(rounds, "run_pass", run_pass)
    found = rounds.run_alternating(
        engines,
        PROMPTS,
        None,
        2,
        together=False,
        told=lambda name, at, output: told.append((name, at, output.token_ids[0])),
        clock=clock,
    )
    first, second = [10, 20], [30]
    assert order == [
        *[("a", first), ("b", first), ("b", second), ("a", second)],
        *[("b", first), ("a", first), ("a", second), ("b", second)],
    ]
    assert told == [
        ("a", 0, 10),
        ("a", 1, 20),
        ("b", 0, 10),
        ("b", 1, 20),
        ("b", 2, 30),
        ("a", 2, 30),
    ]
    for one in found:
        for name in engines:
            assert [output.token_ids[0] for output in one[name].outputs] == [10, 20, 30]
            assert one[name].speeds is not None
            assert one[name].total == sum(one[name].speeds, rounds.Speed())


def test_prompts_together_share_their_time() -> None:
    answered: list[int] = []
    _, _, found = run(True, advance=answered.append)
    assert answered == [3] * 6
    for one in found.rounds:
        assert one["plain"].speeds is None
        assert (one["plain"].total.seconds, one["drafting"].total.seconds) == (5.0, 4.5)


def test_the_one_that_begins_changes_every_round() -> None:
    seen: list[list[str]] = []
    _, _, found = run(False, done=lambda passes: seen.append(list(passes)))
    assert seen == [["plain", "drafting"], ["drafting", "plain"], ["plain", "drafting"]]
    firsts = [one.drafting_first for one in found.beside("plain", "drafting")]
    assert firsts == [False, True, False]


def test_counters_are_of_the_rounds_alone() -> None:
    _, _, found = run(False)
    assert list(found.counters) == ["drafting"]
    drafted = [each["drafted"] for each in found.counters["drafting"]]
    # Two rounds of drafting a prompt, of one draft each; those that warmed it came before.
    assert [after - before for before, after in pairwise(drafted)] == [6] * 3
    ladder = found.ladder("drafting")
    assert ladder is not None
    assert (ladder.drafted, ladder.draft_steps) == (18, 18)
    assert ladder.draft_seconds == pytest.approx(18 * 1.5 / 4)
    assert ladder.positions == (27, 27)
    assert found.ladder("plain") is None


def test_an_engine_alone_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    rested: list[float] = []
    monkeypatch.setattr(rounds, "sleep", rested.append)
    clock = FakeClock()
    run_engines({"plain": FakeEngine(clock, 2)}, PROMPTS, None, 2, together=True, clock=clock)
    assert not rested
    run(True)
    assert len(rested) == 6
