"""Turn folders of raw text data into the JSON-lines files that adapter training reads.

Usage: ``python prepare.py DATA OUT``. DATA holds the folders named in ``SOURCES`` (README.md says
what each is and where it is published); OUT receives

* ``train.jsonl`` and ``held_out.jsonl``: conversations and plain texts,
* ``prompts_train.jsonl`` and ``prompts_held_out.jsonl``: conversations cut before an answer, and
  passages and programming tasks to be answered, for ``answer.py`` to have the model continue.

Every fiftieth document of a source is held out.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from vllm_kangaroo.text_inputs import TextInput

Row = dict[str, object]
Turn = tuple[str, str]

HOLD_OUT_EVERY = 50
CHUNK = 2000  # characters of a plain-text document
PASSAGE = 900  # characters of a passage to be summarised


def conversation(turns: Iterable[Turn]) -> Row | None:
    """Turns as one row: neighbours of one speaker joined, from a user's turn to an answer."""
    messages: list[dict[str, str]] = []
    for role, text in turns:
        content = text.strip()
        if not content or (not messages and role != "user"):
            continue
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += "\n" + content
        else:
            messages.append({"role": role, "content": content})
    if messages and messages[-1]["role"] == "user":
        messages.pop()
    return {"messages": messages} if messages else None


def question(prompt: str, answer: str) -> Row | None:
    """A conversation of one question and one answer."""
    return conversation([("user", prompt), ("assistant", answer)])


def dialogues(folder: Path) -> Iterator[Row | None]:
    """Schema-Guided Dialogue."""
    for path in sorted(folder.glob("*.json.xz")):
        for dialogue in json.loads(TextInput(path).text()):
            yield conversation(
                ("user" if turn["speaker"] == "USER" else "assistant", turn["utterance"])
                for turn in dialogue["turns"]
            )


def orders(folder: Path) -> Iterator[Row | None]:
    """Taskmaster-4, coffee orders."""
    for path in sorted(folder.glob("*.json.xz")):
        for dialogue in json.loads(TextInput(path).text()):
            yield conversation((turn["speaker"], turn["text"]) for turn in dialogue["utterances"])


def arithmetic(folder: Path) -> Iterator[Row | None]:
    """GSM8K, without its calculator marks."""
    for line in TextInput(folder / "train.jsonl").lines():
        row = line.object()
        answer = re.sub(r"<<[^>]*>>", "", row["answer"])
        yield question(row["question"], answer.replace("\n#### ", "\nThe answer is "))


def explained(folder: Path) -> Iterator[Row | None]:
    """Chain-of-thought sets: question, answer, explanation in tab-separated columns."""
    for path in sorted(folder.glob("*.tsv")):
        for line in TextInput(path).lines():
            parts = [part.replace("\\n", "\n") for part in line.text.split("\t")]
            if len(parts) == 3:
                yield question(parts[0], f"{parts[2]}\nThe answer is {parts[1]}")


def instructions(folder: Path) -> Iterator[Row | None]:
    """Dolly: instruction and response only."""
    for path in sorted(folder.glob("*.jsonl.xz")):
        for line in TextInput(path).lines():
            row = line.object()
            if "instruction" in row:
                yield question(row["instruction"], row["text"])
            else:
                prompt, mark, answer = row["text"].partition("### Assistant:")
                if mark:
                    yield question(prompt.removeprefix("### Human:").strip(), answer)


def novels(folder: Path) -> Iterator[Row | None]:
    """Project Gutenberg texts without the licence that frames them."""
    for path in sorted(folder.glob("*.txt.xz")):
        text = TextInput(path).text()
        begin = re.search(r"\*\*\* ?START OF.*?\*\*\*", text, re.DOTALL)
        end = re.search(r"\*\*\* ?END OF", text)
        yield from chunks(text[begin.end() if begin else 0 : end.start() if end else None])


def encyclopedia(folder: Path) -> Iterator[Row | None]:
    """An opening of an English Wikipedia dump."""
    for path in sorted(folder.glob("*.txt.xz")):
        yield from chunks(TextInput(path).text(), PASSAGE)


def tasks(folder: Path) -> Iterator[Row | None]:
    """MBPP: what a program is to do."""
    for path in sorted(folder.glob("*.jsonl")):
        for line in TextInput(path).lines():
            yield {"text": line.object()["text"]}


def chunks(text: str, size: int = CHUNK) -> Iterator[Row]:
    """Text cut at spaces into documents of about `size` characters."""
    start = 0
    while len(text) - start >= size:
        end = text.rfind(" ", start, start + size) + 1 or start + size
        yield {"text": text[start:end].strip()}
        start = end
    if text[start:].strip():
        yield {"text": text[start:].strip()}


# Folder, reader, most documents taken from it.
SOURCES: list[tuple[str, Callable[[Path], Iterator[Row | None]], int]] = [
    ("sgd", dialogues, 8000),
    ("taskmaster4", orders, 4000),
    ("gsm8k", arithmetic, 8000),
    ("flan-cot", explained, 12000),
    ("dolly", instructions, 8000),
    ("books", novels, 1500),
]

# Folder, reader, most of them, what the model is asked: texts it was not trained on.
ASKED: list[tuple[str, Callable[[Path], Iterator[Row | None]], int, str]] = [
    ("wiki", encyclopedia, 2000, "Summarize: {}"),
    ("books-extra", novels, 2000, "{}\n\nWhat happens in this part of the story?"),
    ("mbpp", tasks, 900, "{}"),
]


def opening(row: Row) -> str:
    """What tells a document from others: its first turn, or its text."""
    messages = row.get("messages")
    if isinstance(messages, list) and len(messages) == 2:
        return str(messages[0]["content"])
    return json.dumps(row)


def cut_before_an_answer(row: Row, rng: random.Random) -> Row | None:
    """A conversation up to one of its user turns, to be answered."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        return None
    ends = [i for i, message in enumerate(messages) if message["role"] == "user"]
    return {"messages": messages[: rng.choice(ends[:6]) + 1]}


def write(path: Path, rows: list[Row]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main(
    data: Annotated[Path, typer.Argument(help="directory of the raw data folders")],
    out: Annotated[Path, typer.Argument(help="directory to write")],
    documents: Annotated[int, typer.Option(help="most documents in train.jsonl")] = 10000,
    seed: int = 0,
) -> None:
    """Prepare the inputs of demo adapter training."""
    rng, rng_of_asked = random.Random(seed), random.Random(seed + 1)
    parts: dict[str, list[Row]] = {"train": [], "held_out": []}
    asked: dict[str, list[Row]] = {"train": [], "held_out": []}
    console = Console()
    for folder in [source[0] for source in (*SOURCES, *ASKED)]:
        if not (data / folder).is_dir():
            raise typer.BadParameter(f"{data} has no folder '{folder}'; see README.md")
    for folder, reader, most in SOURCES:
        # Keyed by the opening, for the two copies of Dolly overlap.
        rows = list({opening(row): row for row in reader(data / folder) if row}.values())
        rng.shuffle(rows)
        rows = rows[:most]
        console.print(f"{folder}: {len(rows)} documents")
        parts["held_out"] += rows[::HOLD_OUT_EVERY]
        parts["train"] += [row for i, row in enumerate(rows) if i % HOLD_OUT_EVERY]
    for folder, reader, most, form in ASKED:
        texts = [str(row["text"]) for row in reader(data / folder) if row]
        rng_of_asked.shuffle(texts)
        rows = [
            {"messages": [{"role": "user", "content": form.format(text[:PASSAGE])}]}
            for text in texts[:most]
        ]
        console.print(f"{folder}: {len(rows)} prompts")
        asked["held_out"] += rows[::HOLD_OUT_EVERY]
        asked["train"] += [row for i, row in enumerate(rows) if i % HOLD_OUT_EVERY]
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        rng.shuffle(rows)
        write(out / f"{name}.jsonl", rows[:documents])
        prompts = [prompt for row in rows if (prompt := cut_before_an_answer(row, rng))]
        prompts += asked[name]
        rng_of_asked.shuffle(prompts)
        write(out / f"prompts_{name}.jsonl", prompts)


if __name__ == "__main__":
    typer.run(main)
