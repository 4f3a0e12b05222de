"""Tables counted from answers, against a plain count."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from rich.console import Console
from safetensors import safe_open
from typer.testing import CliRunner

from tests.drafting.test_ngram_table import context
from vllm_kangaroo.cli.main import app
from vllm_kangaroo.drafting.ngram_file import load_ngrams
from vllm_kangaroo.drafting.ngram_table import LONGEST
from vllm_kangaroo.training.answers import shards
from vllm_kangaroo.training.answers.shards import Answer, ShardError
from vllm_kangaroo.training.ngrams.count_ngrams import train_ngrams
from vllm_kangaroo.training.ngrams.ngram_options import NgramOptions

VOCAB = 12


def write(directory: Path, texts: list[tuple[list[int], int]]) -> Path:
    """Answers without states, two a shard: tokens, and where each answer begins."""
    shards.begin(directory, {"model": "it"})
    answers = [Answer(at, tokens, start, 0.0, {}) for at, (tokens, start) in enumerate(texts)]
    for at in range(0, len(answers), 2):
        shards.write(directory, answers[at : at + 2])
    return directory


def drawn(seed: int) -> list[tuple[list[int], int]]:
    rng = random.Random(seed)
    return [
        ([min(rng.randrange(VOCAB), rng.randrange(VOCAB)) for _ in range(60)], rng.randrange(9))
        for _ in range(5)
    ]


def counted(texts: list[tuple[list[int], int]]) -> dict[int, Counter[int]]:
    found: dict[int, Counter[int]] = {}
    for tokens, start in texts:
        for at in range(max(start, 1), len(tokens)):
            for order in range(1, min(LONGEST, at) + 1):
                found.setdefault(context(*tokens[at - order : at]), Counter())[tokens[at]] += 1
    return found


def run(answers: tuple[Path, ...], out: Path, **options: float) -> dict[int, int]:
    train_ngrams(NgramOptions(answers=answers, out=out, **options), Console(quiet=True))  # type: ignore[arg-type]
    return load_ngrams(out, VOCAB)._follows


def test_the_most_frequent_follower_of_each_context_is_kept(tmp_path: Path) -> None:
    first, second = drawn(0), drawn(1)
    where = write(tmp_path / "a", first), write(tmp_path / "b", second)
    found = run(where, tmp_path / "table", least_count=2, least_probability=0.3)
    expected = {}
    for name, followers in counted([*first, *second]).items():
        count = max(followers.values())
        token = min(one for one, often in followers.items() if often == count)
        probability = (count - 0.5) / (followers.total() + 0.6)
        if count >= 2 and probability >= 0.3:
            expected[name] = token * 256 + round(255 * probability)
    assert found == expected and len(found) > 30
    with safe_open(tmp_path / "table", "np") as file:
        metadata = file.metadata()
    answered = sum(len(tokens) - max(start, 1) for tokens, start in [*first, *second])
    assert metadata["answer_tokens"] == str(answered)


def test_of_too_many_contexts_those_that_are_right_most_often_stay(tmp_path: Path) -> None:
    where = (write(tmp_path / "a", drawn(2)),)
    every = run(where, tmp_path / "all", least_probability=0.0)
    few = run(where, tmp_path / "few", least_probability=0.0, contexts=20)
    assert len(few) == 20 < len(every) and few.items() <= every.items()
    often = {name: max(each.values()) for name, each in counted(drawn(2)).items()}
    assert min(often[name] for name in few) >= max(often[name] for name in every.keys() - few)


def test_prompts_are_not_counted(tmp_path: Path) -> None:
    where = write(tmp_path / "a", [([1, 2, 3, 1, 2, 3, 4, 5], 6), ([6, 4, 5], 2)])
    found = run((where,), tmp_path / "table")
    assert found == {context(4): 5 * 256 + round(255 * 1.5 / 2.6)}


def test_answers_that_hold_nothing_are_refused(tmp_path: Path) -> None:
    for texts, why in (
        ([], "holds no answers; make some"),
        ([([1, 2, 3, 4], 1)], "nothing follows a context 2 times"),
    ):
        where = write(tmp_path / why[:5], texts)
        with pytest.raises(ShardError, match=why):
            run((where,), tmp_path / "table")
    assert not (tmp_path / "table").exists()


def test_the_command(tmp_path: Path) -> None:
    where = [str(write(tmp_path / name, drawn(3))) for name in "ab"]
    out = tmp_path / "ngrams.safetensors"
    done = CliRunner().invoke(app, ["train", "ngrams", "--answers", *where, "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert f"table written to {out}" in done.output.replace("\n", "")
    assert len(load_ngrams(out, VOCAB)) == int(done.output.split(" contexts")[0])
