"""A profile's times, of engines whose steps take what they are said to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.bench.fake_engine import FakeClock, FakeEngine
from tests.methods.blind import BLIND
from vllm_kangaroo.bench import rounds
from vllm_kangaroo.bench.engines import EngineSettings
from vllm_kangaroo.goodput.step_costs import StepCosts
from vllm_kangaroo.integration.inspect.inspection import INSPECTION
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.profile import timing
from vllm_kangaroo.profile.timing import Stopwatch

PROMPTS = [[10], [20], [30], [40]]


class Drifting(FakeEngine):
    """Slower by a tenth of a second a step with every prompt."""

    def add_request(self, *given: Any) -> None:
        super().add_request(*given)
        self.seconds += 0.1


class Learning(FakeEngine):
    """With costs that it has learnt; the second of three readings is that of a busy moment."""

    def __init__(self, clock: FakeClock, config: dict[str, Any]) -> None:
        super().__init__(clock, 5, width=2)
        self.config = config
        self.lengths: list[int] | None = None
        self.asked: list[dict[str, int]] = []

    def collective_rpc(self, what: str, kwargs: dict[str, Any] | None = None) -> list[Any]:
        assert kwargs is not None
        if what == "draw_draft_lengths":
            self.lengths = kwargs["lengths"]
            return [None]
        assert what == "step_costs"
        self.asked.append(kwargs)
        times = 10.0 if len(self.asked) == 2 else 1.0
        most = kwargs["most"]
        costs = StepCosts(
            verify=tuple(0.2 + 0.01 * at for at in range(most)),
            draft=0.1,
            around=0.01,
            check=(0.05,) * most if "draft_tokens_per_round" in self.config else (),
        )
        return [costs.scaled(times).model_dump()]


@pytest.fixture
def started() -> list[FakeEngine]:
    """Engines that draft, as they were started."""
    return []


@pytest.fixture
def configs() -> list[dict[str, Any]]:
    """What they were started with."""
    return []


@pytest.fixture
def watch(
    monkeypatch: pytest.MonkeyPatch, started: list[FakeEngine], configs: list[dict[str, Any]]
) -> Iterator[Stopwatch]:
    clock = FakeClock()
    closed: list[bool] = []

    @contextmanager
    def engine(
        _: EngineSettings, config: dict[str, Any] | None = None, extension: str = ""
    ) -> Iterator[FakeEngine]:
        if config is None:
            yield FakeEngine(clock, 5, seconds=2.0)
        else:
            configs.append(config)
            if extension == INSPECTION:
                started.append(Learning(clock, config))
            else:
                kind = Drifting if config.get("drifts") else FakeEngine
                started.append(kind(clock, 5, width=2, seconds=1.0))
            yield started[-1]
        closed.append(config is None)

    monkeypatch.setattr(timing, "engine", engine)
    monkeypatch.setattr(timing, "sampling", lambda temperature, max_tokens: None)
    monkeypatch.setattr(rounds, "SETTLE_SECONDS", 0.0)
    with Stopwatch(EngineSettings(model="none"), 5, 3, clock) as watch:
        yield watch
    assert closed[-1] and not any(closed[:-1])


def test_vllm_alone(watch: Stopwatch) -> None:
    answers, times = watch.alone(PROMPTS)
    assert answers == [[first + at for at in range(5)] for (first,) in PROMPTS]
    assert (times.seconds, times.first_seconds) == (40.0, 8.0)
    assert (times.tokens, times.rounds) == (16, 16)
    assert times.costs is None


def test_drafting_beside_it(watch: Stopwatch, configs: list[dict[str, Any]]) -> None:
    times, ratio = watch.drafting(KANGAROO, PROMPTS)
    assert configs == [KANGAROO | {"goodput": False}]
    assert ratio == pytest.approx(40.0 / 12.0)
    assert (times.seconds, times.first_seconds) == (12.0, 4.0)
    assert (times.tokens, times.rounds) == (16, 8)


KANGAROO = {"method": "kangaroo", "num_speculative_tokens": 3}


def test_costs_are_learnt_over_all_lengths_and_scaled_to_a_reference(
    watch: Stopwatch, started: list[FakeEngine]
) -> None:
    times = watch.learning(KANGAROO, PROMPTS, reference=20.0)
    assert (times.seconds, times.first_seconds) == (6.0, 2.0)
    engine = started[-1]
    assert isinstance(engine, Learning) and engine.lengths == [1, 2, 3]
    assert engine.config == KANGAROO | {"goodput": {"decide": False}}
    # A position, and half an answer of five; three readings, of which the median counts, on a machine twice as fast.
    assert engine.asked == [{"kv_tokens": 4, "most": 4}] * 3
    costs = times.learnt
    assert costs.verify == pytest.approx([0.5 * (0.2 + 0.01 * at) for at in range(4)])
    assert (costs.draft, costs.around) == pytest.approx((0.05, 0.005))
    assert costs.check == ()


def test_hispecs_lengths_stay_and_its_checks_are_learnt(
    watch: Stopwatch, started: list[FakeEngine]
) -> None:
    config = {"method": "hispec", "num_speculative_tokens": 4, "draft_tokens_per_round": 2}
    costs = watch.learning(config, PROMPTS, reference=40.0).learnt
    engine = started[-1]
    assert isinstance(engine, Learning) and engine.lengths is None
    assert costs.check == pytest.approx([0.05] * 5)


def test_a_method_without_goodput_control_is_only_timed(
    watch: Stopwatch, monkeypatch: pytest.MonkeyPatch, started: list[FakeEngine]
) -> None:
    monkeypatch.setitem(METHODS, BLIND.name, BLIND)
    times = watch.learning({"method": "blind"}, PROMPTS, reference=40.0)
    assert times.costs is None and times.seconds == 12.0
    engine = started[-1]
    assert isinstance(engine, Learning) and engine.config == {"method": "blind"}


def test_the_round_with_the_median_ratio_counts(watch: Stopwatch) -> None:
    times, ratio = watch.drafting(KANGAROO | {"drifts": True}, PROMPTS)
    # Three prompts to warm it; the second of the three rounds has prompts 8 to 11 of three steps each.
    seconds = sum(3 * (1.0 + 0.1 * number) for number in (8, 9, 10, 11))
    assert times.seconds == pytest.approx(seconds) and ratio == pytest.approx(40.0 / seconds)
