"""The benchmark for real, in batches, on questions of which one is too long."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_kangaroo.bench.bench_results import BenchResult

pytestmark = pytest.mark.slow

QUESTIONS = [
    ("writing", "Can you find me a bus to San Francisco?"),
    ("qa", "What is the weather like in San Francisco tomorrow?"),
    ("qa", "Where would you find a book?"),
    ("rag", "word " * 4000),
]


@pytest.mark.e2e
def test_bench_counts_equal_outputs_and_positions(tmp_path: Path):
    questions, out = tmp_path / "question.jsonl", tmp_path / "bench.json"
    lines = [
        json.dumps({"question_id": at, "category": category, "turns": [text, "And then?"]})
        for at, (category, text) in enumerate(QUESTIONS)
    ]
    questions.write_text("\n".join(lines))
    flags = ["--model", "tiny", "--eager", "--dtype", "float32", "--max-tokens", "20"]
    flags += [
        "--rounds",
        "2",
        "--batch-size",
        "2",
        "--exit-layer",
        "2",
        "--num-speculative-tokens",
        "3",
    ]
    flags += ["--prompts", str(questions), "--json", str(out)]
    run = subprocess.run(
        [sys.executable, "-m", "vllm_kangaroo.cli", "bench", *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result = BenchResult.model_validate_json(out.read_text())

    assert (result.setup.prompts, result.setup.skipped_too_long) == (3, 1)
    assert [one.drafting_first for one in result.rounds] == [False, True]
    for one in result.rounds:  # end-of-sequence ignored: every output has its full length
        assert one.plain.tokens == one.drafting.tokens == 3 * 20
        # What came after each prompt's first token: in a batch of two, a request's time overlaps another's.
        for speed in (one.plain, one.drafting):
            assert speed.decode_tokens == 3 * 19
            assert 0 < speed.decode_seconds < 2 * speed.seconds
        assert one.decode_speedup is not None
    assert result.equality is not None
    assert result.equality.identical == result.equality.plain_repeats == 3
    assert 0 < result.acceptance.accepted <= result.acceptance.drafted
    assert result.acceptance.drafted <= 3 * result.acceptance.steps
    assert result.ladder.draft_steps > 0
    assert result.ladder.nothing_twice
    assert {one.name: one.prompts for one in result.categories} == {"mt_bench": 1, "qa": 2}
    assert str(tmp_path) not in out.read_text()
