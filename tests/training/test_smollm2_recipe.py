"""``examples/train_smollm2_adapter``: what the model is asked, and what is kept apart to measure on."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "train_smollm2_adapter" / "prepare_prompts.py"
FOLDERS = ("gsm8k", "dolly", "flan-cot", "sgd", "wiki", "books", "books-extra", "mbpp")
BEGIN, END = "*** START OF THIS BOOK ***", "*** END OF THIS BOOK ***"


def book(name: str, sentences: int) -> str:
    """A novel in which no sentence stands twice."""
    told = (f"In the {n}th year of {name} nothing of note came to pass." for n in range(sentences))
    return f"Licence\n{BEGIN}\n{' '.join(told)}\n{END}"


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What the recipe asks, by the file that it is written to."""
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    for folder in FOLDERS:
        (data / folder).mkdir()
    sum_asked = {"question": "2 and 2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}
    (data / "gsm8k" / "train.jsonl").write_text(json.dumps(sum_asked))
    for folder in ("books", "books-extra"):
        path = data / folder / "1.txt.xz"
        path.write_bytes(lzma.compress(book(folder, 4000).encode()))
    subprocess.run([sys.executable, str(SCRIPT), str(data), str(out)], check=True)
    found: dict[str, list[str]] = {}
    for path in out.iterdir():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert all(row["messages"][-1]["role"] == "user" for row in rows)
        found[path.stem] = [row["messages"][-1]["content"] for row in rows]
    return found


def test_each_kind_has_prompts_and_some_held_out(asked: dict[str, list[str]]) -> None:
    kinds = ("prompts", "long_prompts", "wording_prompts")
    assert asked.keys() == {*kinds, *(f"{kind}_held_out" for kind in kinds)}
    for kind in kinds:
        prompts, held_out = asked[kind], asked[f"{kind}_held_out"]
        assert len(held_out) == -(-(len(prompts) + len(held_out)) // 50)
        assert not set(prompts) & set(held_out)


def test_long_prompts_are_long_and_their_novels_whole(asked: dict[str, list[str]]) -> None:
    long = [len(text) for text in asked["long_prompts"]]
    assert sum(length >= 1200 for length in long) >= len(long) - 2  # the texts ran out there
    assert max(long) < 3800 and max(map(len, asked["prompts"])) < 700


def test_whole_sentences_are_put_in_other_words(asked: dict[str, list[str]]) -> None:
    for text in asked["wording_prompts"]:
        _, told = text.split("In the ", 1)
        assert told.endswith("came to pass.") and len(told) <= 400


def test_what_is_held_out_is_asked_in_no_other_way(asked: dict[str, list[str]]) -> None:
    held_out = " ".join(" ".join(asked["prompts_held_out"]).split())
    for text in (*asked["wording_prompts"], *asked["wording_prompts_held_out"]):
        assert text[text.index("In the ") :] not in held_out
