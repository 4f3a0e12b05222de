"""Which engines a profile times, and that a method times what it does beside drafts and verifications."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.methods.blind import BLIND
from tests.profile.test_costs import PREFILL, PROMPTS, TRUE, assert_same, checking, learnt, plain
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.profile.costs import EngineTimes
from vllm_kangaroo.profile.head_reader import Head
from vllm_kangaroo.profile.time_passes import Timings, time_passes

MOST = 6
ADAPTER = Path("adapters/one")
BARE = {"confidence_threshold": 0.0, "method": "kangaroo"}
HISPEC = {
    "method": "hispec",
    "draft_exit_layer": 1,
    "verify_exit_layer": 4,
    "draft_tokens_per_round": 2,
    "num_speculative_tokens": 4,
}


class Watch:
    """Stands for the stopwatch over engines that take what :data:`TRUE` says."""

    def __init__(self) -> None:
        self.ran: list[dict[str, Any]] = []

    def answers(self, prompts: Any, engines: int) -> int:
        return engines * len(prompts)

    def alone(self, prompts: Any, advance: Any) -> tuple[list[list[int]], EngineTimes]:
        return [[1, 2]] * len(prompts), plain()

    def learning(
        self, config: dict[str, Any], prompts: Any, reference: float, advance: Any
    ) -> EngineTimes:
        assert reference == plain().seconds
        self.ran.append(config)
        drafts = config.get("num_speculative_tokens", 4)
        if config["method"] == "hispec":
            costs = checking((1, 4), drafts)
        else:
            costs = learnt(config.get("exit_layer", 2), drafts, 0.001 * ("model" in config))
        return plain().model_copy(update={"costs": costs})


def timed(heads: list[Head]) -> tuple[Watch, Timings, str]:
    watch: Any = Watch()
    out = io.StringIO()
    prompts = [[1]] * PROMPTS
    found = time_passes(watch, heads, 12, prompts, MOST, Console(file=out, width=120))
    return watch, found, out.getvalue()


def test_engines_that_draft_as_surely_as_they_can() -> None:
    watch, found, said = timed([Head(1), Head(4), Head(2, ADAPTER)])
    assert watch.ran == [
        BARE | {"exit_layer": 1, "num_speculative_tokens": MOST},
        BARE | {"exit_layer": 4, "num_speculative_tokens": MOST},
        HISPEC,
        BARE | {"model": str(ADAPTER), "num_speculative_tokens": MOST},
    ]
    assert_same(found.costs, TRUE)
    [cost] = found.adapters.values()
    assert cost.round_extra == pytest.approx(0.001)
    assert found.answers == [[1, 2]] * PROMPTS
    first = "1 to 6 drafts, exit_layer 1"
    for line in (first, "HiSpec, exits 1 and 4", f"1 to 6 drafts, model {ADAPTER}"):
        assert f"timing {line}: " in said


def test_one_exit_leaves_no_place_for_another() -> None:
    watch, found, _ = timed([Head(3)])
    assert [config["method"] for config in watch.ran] == ["kangaroo"]
    assert found.costs.check_base is None and found.adapters == {}


def test_a_new_method_times_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, BLIND.name, BLIND)
    watch, found, said = timed([Head(3)])
    assert watch.ran[-1] == {"method": "blind", "exit_layer": 3, "per_round": 4}
    assert found.costs.check_base == pytest.approx(plain().seconds - PREFILL)
    assert "timing blind guesses: " in said
