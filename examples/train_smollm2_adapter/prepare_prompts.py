"""Turn folders of raw text data into the prompts that SmolLM2 answers for its adapter.

Usage: ``python prepare_prompts.py DATA OUT``. DATA holds the folders of ``examples/train_demo_adapter`` (its README says what
each is and where it is published); OUT receives ``prompts.jsonl`` and ``prompts_held_out.jsonl``: conversations that end with
a user's turn, ``long_prompts.jsonl`` and ``long_prompts_held_out.jsonl``: passages of up to four times the length that are
asked about, and ``wording_prompts.jsonl`` and ``wording_prompts_held_out.jsonl``: sentences to translate, correct or put in
other words. No prompt of Spec-Bench and no Natural Questions are among them. Every fiftieth prompt is held out, and what one
of ``prompts_held_out.jsonl`` quotes is asked about in neither of the others.
"""

from __future__ import annotations

import importlib.util
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

PREPARE = Path(__file__).parents[1] / "train_demo_adapter" / "prepare.py"
HOLD_OUT_EVERY = 50
PASSAGE = 600
"""Characters of a passage that is asked about."""
LONG = (1200, 3600)
"""Fewest and most characters of a long one: neighbouring passages joined."""
SENTENCES = (60, 400)
"""Fewest and most characters of what is put in other words: whole sentences."""

SUMMARISE = (
    "Summarize: {}",
    "Summarize the following text.\n\n{}",
    "{}\n\nWrite a short summary of this text.",
)
EXPLAIN = (
    "{}\n\nWhat is this passage about? Answer in detail.",
    "Read the passage and list its main facts.\n\n{}",
    "A passage: {}\n\nExplain it in simple words.",
)
TELL = ("{}\n\nWhat happens in this part of the story?", "Continue the story: {}")
PROGRAM = ("{}", "Python: {}")
WORD = (
    "Translate English to German: {}",
    "Translate English to French: {}",
    "Translate the following text into Spanish.\n\n{}",
    "Translate to Italian: {}",
    "Correct the grammar of this text: {}",
    "Rewrite the following in simpler words: {}",
    "Paraphrase: {}",
    "Repeat this text word for word.\n\n{}",
)
"""What is asked of sentences; the first half in other languages."""

Row = dict[str, object]
Read = Callable[[Path], Iterator[Row | None]]


def readers() -> Any:
    """The readers of the demo adapter's recipe, a script beside this one."""
    spec = importlib.util.spec_from_file_location("prepare", PREPARE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def conversations(
    prepare: Any, folder: Path, read: Read, most: int, rng: random.Random
) -> list[Row]:
    """Conversations cut before an answer."""
    rows = list({prepare.opening(row): row for row in read(folder) if row}.values())
    rng.shuffle(rows)
    cut = (prepare.cut_before_an_answer(row, rng) for row in rows[:most])
    return [row for row in cut if row]


def question(passage: str, forms: Sequence[str], rng: random.Random) -> Row:
    """A passage or task put to the model in one of some forms."""
    return {"messages": [{"role": "user", "content": rng.choice(forms).format(passage)}]}


def asked(
    folder: Path, read: Read, most: int, forms: Sequence[str], rng: random.Random
) -> list[Row]:
    """Passages and tasks put to the model."""
    texts = [str(row["text"]) for row in read(folder) if row]
    rng.shuffle(texts)
    return [question(text[:PASSAGE], forms, rng) for text in texts[:most]]


def prompts(data: Path, seed: int) -> list[Row]:
    """All prompts, in an order drawn from ``seed``."""
    prepare, rng = readers(), random.Random(seed)
    found = [
        *conversations(prepare, data / "gsm8k", prepare.arithmetic, 7400, rng),
        *conversations(prepare, data / "dolly", prepare.instructions, 8000, rng),
        *conversations(prepare, data / "flan-cot", prepare.explained, 6000, rng),
        *conversations(prepare, data / "sgd", prepare.dialogues, 1200, rng),
        *asked(data / "wiki", prepare.encyclopedia, 1146, SUMMARISE, rng),
        *asked(data / "wiki", prepare.encyclopedia, 1146, EXPLAIN, rng),
        *asked(data / "books-extra", prepare.novels, 1000, TELL, rng),
        *asked(data / "mbpp", prepare.tasks, 900, PROGRAM, rng),
    ]
    rng.shuffle(found)
    return found


def quoted(rows: Sequence[Row]) -> str:
    """The last turns of ``rows``, one below the other."""
    messages: list[Any] = [row["messages"] for row in rows]
    return "\n".join(each[-1]["content"] for each in messages)


def long_prompts(data: Path, seed: int, held_out: Sequence[Row]) -> list[Row]:
    """Long passages asked about, in an order drawn from ``seed``; none of them holds the passage of a ``held_out`` prompt."""
    prepare, rng = readers(), random.Random(seed)
    apart = quoted(held_out)
    found: list[Row] = []
    for folder, read, forms in (
        (data / "wiki", prepare.encyclopedia, SUMMARISE),
        (data / "wiki", prepare.encyclopedia, EXPLAIN),
        (data / "books", prepare.novels, SUMMARISE),
        (data / "books", prepare.novels, TELL),
    ):
        texts = [str(row["text"]) for row in read(folder) if row]
        texts = [text for text in texts if text[:PASSAGE] not in apart]
        while texts:
            wanted, passage = rng.randint(*LONG), ""
            while texts and len(passage) < wanted:
                passage += f"{texts.pop(0)} "
            found.append(question(passage[:wanted].strip(), forms, rng))
    rng.shuffle(found)
    return found


def whole_sentences(passage: str, rng: random.Random) -> str:
    """Neighbouring whole sentences from within ``passage``; empty if none are as long as wanted."""
    fewest, most = SENTENCES
    wanted, found = rng.randint(fewest, most), ""
    for sentence in re.split(r"(?<=[.!?])\s+", " ".join(passage.split()))[1:-1]:
        if len(found) >= fewest and len(found) + len(sentence) > wanted:
            break
        found = f"{found} {sentence}".strip()
    return found if fewest <= len(found) <= most else ""


def wording_prompts(data: Path, seed: int, held_out: Sequence[Row]) -> list[Row]:
    """Sentences to be put in other words, one prompt a passage, in an order drawn from ``seed``; none stand in a ``held_out`` prompt."""
    prepare, rng = readers(), random.Random(seed)
    apart = " ".join(quoted(held_out).split())
    found: list[Row] = []
    for folder, read in (
        (data / "wiki", prepare.encyclopedia),
        (data / "books", prepare.novels),
        (data / "books-extra", prepare.novels),
    ):
        for row in read(folder):
            sentences = whole_sentences(str(row["text"]), rng) if row else ""
            if sentences and sentences not in apart:
                found.append(question(sentences, WORD, rng))
    rng.shuffle(found)
    return found


def main(
    data: Annotated[Path, typer.Argument(help="directory of the raw data folders")],
    out: Annotated[Path, typer.Argument(help="directory to write")],
    seed: int = 11,
) -> None:
    """Write the prompts."""
    rows = prompts(data, seed)
    write = readers().write
    out.mkdir(parents=True, exist_ok=True)
    apart = rows[::HOLD_OUT_EVERY]
    long_rows = long_prompts(data, seed, apart)
    wording_rows = wording_prompts(data, seed, apart)
    for name, each in (
        ("prompts", rows),
        ("long_prompts", long_rows),
        ("wording_prompts", wording_rows),
    ):
        kept = [row for at, row in enumerate(each) if at % HOLD_OUT_EVERY]
        write(out / f"{name}.jsonl", kept)
        write(out / f"{name}_held_out.jsonl", each[::HOLD_OUT_EVERY])
        Console().print(f"{name}: {len(kept)}, and {len(each) - len(kept)} held out")


if __name__ == "__main__":
    typer.run(main)
