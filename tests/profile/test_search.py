"""Which settings a profile tries by method, and what it reports of them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.methods.blind import BLIND
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.profile import plot
from vllm_kangaroo.profile.costs import CostModel, HeadCost, hispec_seconds, speedup
from vllm_kangaroo.profile.draft_replay import Guesses, Record, hispec
from vllm_kangaroo.profile.head_reader import Head
from vllm_kangaroo.profile.method_search import searches
from vllm_kangaroo.profile.profile_report import print_profile
from vllm_kangaroo.profile.profile_results import ExitFigures, ProfileResult
from vllm_kangaroo.profile.search import best_of_each, predict
from vllm_kangaroo.provenance import of_measurement

COSTS = CostModel(
    layers=12,
    plain=0.030,
    prefill=0.050,
    draft_base=0.001,
    draft_layer=0.001,
    round_base=0.0005,
    verify_exit=1,
    verify_seconds=(0.026, 0.0264, 0.0266, 0.0272, 0.0276),
    verify_layer=0.002,
    check_base=0.001,
)
EXITS = (1, 4)
MOST = 4
ADAPTER = Path("adapters/one")


def record(seed: int) -> Record:
    """An answer on which exit 1 is right in two of three tokens, exit 4 and the adapter more often."""
    draws = np.random.default_rng(seed)
    target = draws.integers(0, 50, 40)
    guesses = {}
    for name, right in (("1", 0.67), ("4", 0.9), (f"1+{ADAPTER}", 0.8)):
        hits = draws.random(40) < right
        sure = np.where(hits, 0.9, 0.3) + draws.uniform(-0.2, 0.1, 40)
        guesses[name] = Guesses(np.where(hits, target, target + 1), sure)
    return Record(target, guesses, max_tokens=64)


RECORDS = [record(seed) for seed in range(3)]


def test_kangaroos_best_is_the_fastest_of_all_lengths_and_thresholds() -> None:
    found = best_of_each(COSTS, RECORDS, Head(1), None, EXITS, MOST)["kangaroo"]
    assert found is not None
    tried = [
        predict(
            COSTS,
            RECORDS,
            {
                "method": "kangaroo",
                "exit_layer": 1,
                "num_speculative_tokens": drafts,
                "confidence_threshold": threshold / 10,
            },
            Head(1),
        )
        for drafts in range(1, MOST + 1)
        for threshold in range(10)
    ]
    assert found.speedup == max(each.speedup for each in tried) > 1
    assert found.speculative_config["num_speculative_tokens"] > 1
    assert found.speculative_config["confidence_threshold"] > 0


def test_hispec_checks_at_a_deeper_exit_and_where_checks_were_timed() -> None:
    found = best_of_each(COSTS, RECORDS, Head(1), None, EXITS, MOST)["hispec"]
    assert found is not None
    config = found.speculative_config
    assert (config["draft_exit_layer"], config["verify_exit_layer"]) == EXITS
    lengths = {
        "per_round": config["draft_tokens_per_round"],
        "buffer": config["num_speculative_tokens"],
    }
    assert lengths["per_round"] <= lengths["buffer"] <= 2 * MOST
    work = hispec(RECORDS[0], "1", "4", **lengths)
    for each in RECORDS[1:]:
        work.add(hispec(each, "1", "4", **lengths))
    expected = speedup(COSTS, work, hispec_seconds(COSTS, work, EXITS), len(RECORDS))
    assert found.speedup == pytest.approx(expected)

    untimed = COSTS.model_copy(update={"check_base": None})
    for costs, head in (
        (untimed, Head(1)),
        (COSTS, Head(1, ADAPTER)),
        (COSTS, Head(4)),  # there is none deeper
    ):
        found_of = best_of_each(
            costs, RECORDS, head, HeadCost(draft=0.002, round_extra=0.0), EXITS, MOST
        )
        assert found_of["hispec"] is None and found_of["kangaroo"] is not None


def test_an_adapter_is_named_and_its_own_cost_counts() -> None:
    head = Head(1, ADAPTER)
    cheap, dear = (
        best_of_each(COSTS, RECORDS, head, HeadCost(draft=draft, round_extra=0.0), EXITS, MOST)
        for draft in (0.001, 0.02)
    )
    assert cheap["kangaroo"] is not None and dear["kangaroo"] is not None
    assert cheap["kangaroo"].speculative_config["model"] == str(ADAPTER)
    assert cheap["kangaroo"].speedup > dear["kangaroo"].speedup


def profiled() -> ProfileResult:
    """A profile of two bare exits and an adapter."""
    exits = []
    for head in (Head(1), Head(4), Head(1, ADAPTER)):
        cost = None if head.adapter is None else HeadCost(draft=0.002, round_extra=0.0)
        best: dict[str, Any] = best_of_each(COSTS, RECORDS, head, cost, EXITS, MOST)
        figures: dict[str, Any] = dict.fromkeys(("agreement", "acceptance", "own_agreement"), 0.5)
        adapter = None if head.adapter is None else head.adapter.name
        exits.append(
            ExitFigures(
                exit_layer=head.exit_layer, adapter=adapter, draft_seconds=0.002, **figures, **best
            )
        )
    found = [each for one in exits for each in one.best.values() if each is not None]
    return ProfileResult(
        model="tiny",
        layers=12,
        dtype="float32",
        mode="eager",
        prompts=3,
        tokens=120,
        costs=COSTS,
        adapter_costs={},
        exits=exits,
        finalists=[],
        best=max(found, key=lambda each: each.speedup),
        verification=None,
        provenance=of_measurement("CPU", ["x", "profile"]),
    )


def printed(result: ProfileResult) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_profile(result, "tiny", console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_figures_are_written_under_the_methods_names() -> None:
    result = profiled()
    written = json.loads(result.model_dump_json())
    assert list(written["exits"][0])[-3:] == ["draft_seconds", "kangaroo", "hispec"]
    assert written["exits"][0]["hispec"]["speculative_config"]["method"] == "hispec"
    assert written["exits"][1]["hispec"] is None
    read = ProfileResult.model_validate(written)
    assert read == result
    assert read.best_of("hispec") == result.exits[0].best["hispec"]


def test_report_has_a_column_and_a_line_for_each_method() -> None:
    text = printed(profiled())
    assert "Kangaroo" in text and "HiSpec" in text
    row = next(line for line in text.splitlines() if line.startswith("│ 1 "))
    assert "γ " in row and " η 0." in row and "Li 4 N_d " in row
    assert {"kangaroo", "hispec"} == searches().keys() == METHODS.keys() - {"lookup"}
    for method in searches():
        assert f"best {method}: predicted " in text


def test_a_new_method_is_profiled_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: dict[str, str] = {}

    class Panel:
        """Takes what is drawn in one panel."""

        def plot(self, *_: Any, label: str = "", color: str = "", **__: Any) -> None:
            drawn[label] = color

        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    monkeypatch.setattr("matplotlib.figure.Figure.subplots", lambda *_, **__: [Panel(), Panel()])
    plot.draw(profiled(), tmp_path / "without.png")
    assert {name: drawn.get(name) for name in ("kangaroo", "hispec", "blind")} == {
        "kangaroo": "C0",
        "hispec": "C3",
        "blind": None,
    }
    monkeypatch.setitem(METHODS, BLIND.name, BLIND)
    result = profiled()
    assert result.best.speculative_config["method"] == "blind"  # it counts half of its time
    text = printed(result)
    assert "Blind Guess" in text and "x  blindly " in text and "best blind: predicted " in text
    plot.draw(result, tmp_path / "with.png")
    assert drawn["blind"] == "C8"
