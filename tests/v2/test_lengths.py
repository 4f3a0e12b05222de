"""Draft lengths that change from step to step: tokens stay vLLM's own, and goodput control chooses and learns."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from tests.e2e.engines import Engines, sampling, tokens_of
from tests.e2e.prompts import QUESTIONS, chat
from tests.v2.engines import DRAFTS, OPTIONS, SMALL, V2Engine
from vllm_kangaroo import tiny_adapter
from vllm_kangaroo.integration.runner_v2.step_lengths import StepLengthControl

pytestmark = pytest.mark.core
LENGTHS = (DRAFTS, 0, 2, 1, 0, 0, 3, DRAFTS, DRAFTS, 1, 3)
PROMPTS = [chat(question) for question in QUESTIONS[:6]]
PARAMS = [sampling(max_tokens=12 + 2 * at, ignore_eos=True) for at in range(len(PROMPTS))]
DRAFTERS: dict[str, dict[str, Any]] = {
    "kangaroo": {"method": "kangaroo", "model": tiny_adapter(), **OPTIONS},
    "hispec": {
        "method": "hispec",
        "draft_exit_layer": 2,
        "verify_exit_layer": 4,
        "num_speculative_tokens": DRAFTS,
    },
}


class Lengths:
    """In the place of what the scheduler looks up in: the next of a sequence, whatever the load."""

    def __init__(self, lengths: tuple[int, ...]) -> None:
        self._next = cycle(lengths)
        self.chosen: list[int] = []

    def __getitem__(self, requests: int) -> int:
        self.chosen.append(next(self._next))
        return self.chosen[-1]


def started(engines: Engines, method: str) -> V2Engine:
    engine = engines.get(speculative_config=DRAFTERS[method] | {"goodput": True}, **SMALL)
    assert isinstance(engine, V2Engine)
    return engine


@pytest.fixture(scope="module")
def expected(engines: Engines) -> list[list[list[int]]]:
    return tokens_of(engines.plain(**SMALL).generate(PROMPTS, PARAMS))


def test_control_chooses_learns_and_tells(engines: Engines, expected: Any) -> None:
    """Metrics are those of the engine that was started last."""
    engine = started(engines, "kangaroo")
    control = engine.core.scheduler.dynamic_sd_lookup
    assert isinstance(control, StepLengthControl)
    stats = control.lengths.stats
    before = stats.steps, stats.accepted, sum(stats.lengths)
    with engine.drafting():
        assert tokens_of(engine.generate(PROMPTS, PARAMS)) == expected
    assert stats.steps > before[0] + 10
    assert stats.accepted > before[1]
    assert sum(stats.lengths) > before[2] + 30
    assert control.lengths.costs is not None
    told = {
        (each.name, each.labels.get("length")): each.value
        for each in engine.llm.get_metrics()
        if each.name.startswith("vllm:goodput") and hasattr(each, "value")
    }
    assert told["vllm:goodput_steps", None] > 0
    assert sum(value for (name, _), value in told.items() if name == "vllm:goodput_requests") > 30


@pytest.mark.parametrize("method", DRAFTERS)
def test_every_step_has_another_length(
    engines: Engines, expected: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(engines, method)
    lengths = Lengths(LENGTHS)
    monkeypatch.setattr(engine.core.scheduler, "dynamic_sd_lookup", lengths)
    with engine.drafting() as gain:
        assert tokens_of(engine.generate(PROMPTS, PARAMS)) == expected
    counters = gain.counters
    assert {0, 1, 2, 3, DRAFTS} == set(lengths.chosen[:-1])
    assert counters["skipped"] > 3
    assert counters["whole_steps"] > counters["skipped"], "after none was drafted all layers run"
    most = counters["drafters"] * DRAFTS
    assert counters["proposed"] < 0.8 * most, "as many were drafted as if the length stood still"
    if method == "kangaroo":
        made = sum(length + 1 for length in lengths.chosen if length)
        ran = counters["passes"][0] - counters["whole_steps"]
        assert abs(made - ran) <= 2 * (DRAFTS + 1), "passes that were not wanted"


def test_tiers_are_told_of(engines: Engines) -> None:
    """HiSpec's engine was started last."""
    engine = started(engines, "hispec")
    engine.generate(PROMPTS[:2], max_tokens=8, ignore_eos=True)
    engine.flush()
    counters = engine.runner.early_exit_counters()
    told = {
        (each.name, each.labels.get("tier", each.labels.get("source"))): each.value
        for each in engine.llm.get_metrics()
        if each.name.startswith("vllm:early_exit") and hasattr(each, "value")
    }
    for tier in (1, 2, 3):
        assert 0 < told["vllm:early_exit_positions", str(tier)] <= counters["positions"][tier - 1]
        assert 0 < told["vllm:early_exit_passes", str(tier)] <= counters["passes"][tier - 1]
    offered = told["vllm:early_exit_offered_drafts", "2"]
    assert 0 < told["vllm:early_exit_accepted_drafts", "2"] < offered <= counters["checked"]
    assert 0 < told["vllm:early_exit_drafted_tokens", "exit"] <= counters["proposed"]
    assert told["vllm:early_exit_store_bytes", None] == engine.speculator.kept.nbytes
