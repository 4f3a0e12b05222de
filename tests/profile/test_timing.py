"""A profile's times, of engines whose steps take what they are said to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.bench.fake_engine import FakeClock, FakeEngine
from vllm_kangaroo.bench import rounds
from vllm_kangaroo.bench.engines import EngineSettings
from vllm_kangaroo.profile import timing
from vllm_kangaroo.profile.timing import Stopwatch

PROMPTS = [[10], [20], [30], [40]]


class Drifting(FakeEngine):
    """Slower by a tenth of a second a step with every prompt."""

    def add_request(self, *given: Any) -> None:
        super().add_request(*given)
        self.seconds += 0.1


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stopwatch]:
    clock = FakeClock()
    closed: list[bool] = []

    @contextmanager
    def engine(_: EngineSettings, config: dict[str, Any] | None = None) -> Iterator[FakeEngine]:
        if config is None:
            yield FakeEngine(clock, 5, seconds=2.0)
        else:
            kind = Drifting if config.get("drifts") else FakeEngine
            yield kind(clock, 5, width=2, seconds=1.0, tiers=config["tiers"])
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
    assert (times.drafted, times.draft_steps, times.checks) == (0, 0, 0)


@pytest.mark.parametrize(("tiers", "checks"), [(2, 0), (3, 8)])
def test_drafting_beside_it(watch: Stopwatch, tiers: int, checks: int) -> None:
    times, ratio = watch.drafting({"tiers": tiers}, PROMPTS)
    assert ratio == pytest.approx(40.0 / 12.0)
    assert (times.seconds, times.first_seconds) == (12.0, 4.0)
    assert (times.tokens, times.rounds, times.drafted, times.draft_steps) == (16, 8, 8, 8)
    assert times.draft_seconds == pytest.approx(2.0)
    assert times.checks == checks  # passes of the middle tier but one a prompt


def test_times_are_scaled_to_a_reference(watch: Stopwatch) -> None:
    times, ratio = watch.drafting({"tiers": 2}, PROMPTS, reference=20.0)
    assert ratio == pytest.approx(40.0 / 12.0)
    assert (times.seconds, times.first_seconds) == (6.0, 2.0)
    assert times.draft_seconds == pytest.approx(1.0)


def test_the_round_with_the_median_ratio_counts(watch: Stopwatch) -> None:
    times, ratio = watch.drafting({"tiers": 2, "drifts": True}, PROMPTS)
    # Three prompts to warm it; the second of the three rounds has prompts 8 to 11 of three steps each.
    seconds = sum(3 * (1.0 + 0.1 * number) for number in (8, 9, 10, 11))
    assert times.seconds == pytest.approx(seconds) and ratio == pytest.approx(40.0 / seconds)
    assert times.draft_seconds == pytest.approx(seconds * 2 / 3 / 4)
