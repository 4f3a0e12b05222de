"""``bench compare`` and ``bench sweep`` on running engines, here in the test's own process."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.e2e.engines import Engines
from tests.e2e.prompts import QUESTIONS
from vllm_kangaroo.bench import method_comparison as comparing
from vllm_kangaroo.bench import rounds, sweep
from vllm_kangaroo.bench.bench_options import CompareOptions, SweepOptions
from vllm_kangaroo.bench.statistics import Acceptance
from vllm_kangaroo.integration.inspect.inspection import INSPECTION

SHARED: dict[str, Any] = {
    "model": "tiny",
    "dtype": "float32",
    "eager": True,
    "max_tokens": 16,
    "num_prompts": 2,
}
SINGLE = {"method": "hispec", "intermediate_verification": False, "draft_exit_layer": 1}
HISPEC = {"method": "hispec", "draft_exit_layer": 1, "verify_exit_layer": 3}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
METRICS = {"per_request_spec_decode_metrics": "summary", "worker_extension_cls": INSPECTION}


@pytest.fixture(autouse=True)
def in_this_process(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines as the commands start them, shared and without processes of their own."""

    def start(config: dict[str, Any] | None) -> Any:
        if config is None:
            return engines.plain().llm
        return engines.get(speculative_config=config, **METRICS).llm

    @contextmanager
    def several(
        settings: Any, configs: Mapping[str, Any], console: Console
    ) -> Iterator[dict[str, Any]]:
        yield {name: start(config) for name, config in configs.items()}

    @contextmanager
    def engine(settings: Any, config: Any = None, extension: str = "") -> Iterator[Any]:
        yield start(config)

    monkeypatch.setattr(comparing, "several", several)
    monkeypatch.setattr(sweep, "engine", engine)
    monkeypatch.setattr(rounds, "SETTLE_SECONDS", 0.0)


def test_hispec_beside_single_layer_speculation() -> None:
    configs = {"hispec": HISPEC, "single": SINGLE}
    given = tuple(f"{name}={json.dumps(config)}" for name, config in configs.items())
    result = comparing.compare(CompareOptions(config=given, rounds=2, **SHARED), Console())
    assert list(result.contenders) == [comparing.PLAIN, "hispec", "single"]
    for name, one in result.contenders.items():
        assert [speed.tokens for speed in one.speeds] == [2 * 16] * 2
        assert one.identical == 2
        assert (one.acceptance.accepted > 0) == (name != comparing.PLAIN)
    hispec, single = (result.contenders[name].ladder for name in configs)
    assert hispec is not None and single is not None
    assert (len(hispec.positions), len(single.positions)) == (3, 2)
    assert hispec.nothing_twice and single.nothing_twice
    assert hispec.checks > 0 and single.checks == 0
    assert 0 < hispec.replaced < result.contenders["hispec"].acceptance.drafted
    table = comparing.cost_table(result)
    assert table.row_count == 2
    assert comparing.comparison_sentences(result)[0].startswith("hispec over single: ")
    assert set(result.ratios["hispec"]) == {comparing.PLAIN, "single"}


@pytest.mark.parametrize("batch_size", [1, 2])
def test_vllms_own_method_beside_ours(batch_size: int, tmp_path: Path) -> None:
    questions = tmp_path / "question.jsonl"
    lines = [
        json.dumps({"question_id": at, "category": kind, "turns": [QUESTIONS[at]]})
        for at, kind in enumerate(("qa", "rag"))
    ]
    questions.write_text("\n".join(lines))
    configs = {"hispec": HISPEC | {"lookup": True}, "ngram": NGRAM}
    given = tuple(f"{name}={json.dumps(config)}" for name, config in configs.items())
    longer = SHARED | {"max_tokens": 64, "batch_size": batch_size, "prompts": questions}
    result = comparing.compare(CompareOptions(config=given, rounds=1, **longer), Console())
    assert list(result.contenders) == [comparing.PLAIN, *configs]
    for name in configs:
        one = result.contenders[name]
        assert one.identical == 2
        assert 0 < one.acceptance.accepted <= one.acceptance.drafted
        assert one.speculative_config == configs[name]
    ours, ngram = (result.contenders[name].ladder for name in configs)
    assert ngram is None and ours is not None
    assert 0 < ours.lookup_accepted <= ours.lookup_drafted
    assert comparing.cost_table(result).row_count == 1
    assert comparing.comparison_table(result).row_count == 3
    for one in result.contenders.values():
        assert [(kind.name, kind.prompts) for kind in one.categories] == [("qa", 1), ("rag", 1)]
        assert sum((kind.acceptance for kind in one.categories), Acceptance()) == one.acceptance
    by_category = comparing.category_table(result)
    if batch_size == 1:
        assert by_category is not None
        assert (by_category.row_count, len(by_category.columns)) == (2, 3)
    else:  # no category has a time of its own
        assert by_category is None
    assert comparing.comparison_sentences(result)[0].startswith("hispec over ngram: ")


def test_sweep_runs_every_point() -> None:
    grid: dict[str, Any] = {
        "draft_exits": (1,),
        "verify_exits": (3, sweep.SINGLE_LAYER),
        "draft_tokens": (1, 2),
        "speculative_tokens": (2, 4),
    }
    result = sweep.sweep(SweepOptions(rounds=1, **grid, **SHARED), Console())
    made = [
        (one.verify_exit, one.lengths.tokens_per_round, one.lengths.num_speculative_tokens)
        for one in result.points
    ]
    single = [(0, None, 2), (0, None, 4)]
    assert made == [*single, (3, 1, 2), (3, 1, 4), (3, 2, 2), (3, 2, 4)]
    for one in result.points:
        assert [speed.tokens for speed in one.speeds] == [2 * 16]
        assert 0 < one.acceptance.accepted <= one.acceptance.drafted
        most = one.lengths.num_speculative_tokens
        # Nearly every round has room for all of them.
        assert 0.7 * most < one.acceptance.drafted / one.acceptance.steps <= most
        assert one.ladder.nothing_twice
