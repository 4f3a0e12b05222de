"""``examples``: two scripts feed training, a third measures what came of it."""

from __future__ import annotations

import json
import lzma
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from vllm_kangaroo import tiny_model
from vllm_kangaroo.training.data.documents import read_documents

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"
EXAMPLE = EXAMPLES / "train_demo_adapter"


def run(script: str, *arguments: object) -> None:
    command = [sys.executable, str(EXAMPLE / script), *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True)


def packed(path: Path, content: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(lzma.compress(content.encode()))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data, out = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("out")
    turns = [
        {"speaker": "USER", "utterance": "A bus to Oakland, please."},
        {"speaker": "SYSTEM", "utterance": "Where from?"},
        {"speaker": "USER", "utterance": "Berkeley."},
    ]
    packed(data / "sgd" / "dialogues_001.json.xz", json.dumps([{"turns": turns}]))
    turns = [
        {"speaker": "assistant", "text": "Hello."},
        {"speaker": "user", "text": "A latte."},
        {"speaker": "user", "text": "To go."},
        {"speaker": "assistant", "text": "Sure."},
    ]
    packed(data / "taskmaster4" / "data_00.json.xz", json.dumps([{"utterances": turns}]))
    (data / "gsm8k").mkdir()
    row = {"question": "2 and 2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}
    (data / "gsm8k" / "train.jsonl").write_text(json.dumps(row))
    (data / "flan-cot").mkdir()
    (data / "flan-cot" / "x_train.tsv").write_text("Is it?\\nOptions:\tyes\tBecause.\n")
    packed(data / "dolly" / "a.jsonl.xz", '{"instruction": "Why?", "text": "So.", "decoded": "x"}')
    packed(data / "dolly" / "b.jsonl.xz", '{"text": "### Human: Why? ### Assistant: Copy."}')
    book = "Licence\n*** START OF THIS BOOK ***\nOnce " + "upon a time " * 400 + "\n*** END OF it"
    for folder in ("books", "books-extra"):
        packed(data / folder / "1.txt.xz", f"{folder} {book}")
    packed(data / "wiki" / "w.txt.xz", "Anarchism is a philosophy.")
    (data / "mbpp").mkdir()
    tasks = ({"text": text} for text in ("Write a function.", "Write\u2028two."))
    lines = (json.dumps(task, ensure_ascii=False) + "\n\n" for task in tasks)
    (data / "mbpp" / "mbpp.jsonl").write_text("\ufeff" + "".join(lines), encoding="utf-8")
    run("prepare.py", data, out)
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def test_prepared_rows(prepared: Path) -> None:
    found = rows(prepared / "train.jsonl") + rows(prepared / "held_out.jsonl")
    talks = [[m["content"] for m in row["messages"]] for row in found if "messages" in row]
    assert sorted(talks) == [
        ["2 and 2?", "2+2=4\nThe answer is 4"],
        ["A bus to Oakland, please.", "Where from?"],
        ["A latte.\nTo go.", "Sure."],
        ["Is it?\nOptions:", "Because.\nThe answer is yes"],
        ["Why?", "Copy."],
    ]
    texts = [row["text"] for row in found if "text" in row]
    assert all("Licence" not in text and "***" not in text for text in texts)
    assert len(texts) == 3 and all("upon a time" in text for text in texts)


def test_prompts_ask_for_an_answer(prepared: Path) -> None:
    found = rows(prepared / "prompts_train.jsonl") + rows(prepared / "prompts_held_out.jsonl")
    asked = [row["messages"][-1] for row in found]
    assert {message["role"] for message in asked} == {"user"}
    contents = [message["content"] for message in asked]
    assert "Summarize: Anarchism is a philosophy." in contents
    assert {"Write a function.", "Write\u2028two."} <= set(contents)
    assert any(text.endswith("What happens in this part of the story?") for text in contents)


def test_answers_can_be_trained_on(prepared: Path) -> None:
    out = prepared / "own.jsonl"
    options = ("--temperature", 0, "--max-new-tokens", 12)
    prompts = prepared / "some.jsonl"
    asked_for = rows(prepared / "prompts_held_out.jsonl")
    asked_for += [{"messages": [{"role": "user", "content": "One\u2028line."}]}]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in asked_for)
    prompts.write_text("".join(lines), encoding="utf-8")
    run("answer.py", "--model", tiny_model(), "--prompts", prompts, "--out", out, *options)
    found = rows(out)
    assert 1 < len(found) <= len(asked_for)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    for row, document in zip(found, read_documents([out], tokenizer), strict=True):
        asked = tokenizer.decode(row["token_ids"][: row["answer_start"]])
        assert asked.startswith("<|bos|><|user|>\n") and asked.endswith("<|assistant|>\n")
        assert document.ids.tolist() == row["token_ids"]
        assert 0 < document.counted.sum() <= 12


def test_loops() -> None:
    loops = runpy.run_path(str(EXAMPLES / "train_demo_model" / "measure.py"))["loops"]
    beginning = list(range(100, 140))
    assert loops([*beginning, *[7] * 64]) and loops([*beginning, *[1, 2, 3] * 22])
    assert loops([*beginning, *list(range(20)) * 4])
    assert not loops(list(range(200))) and not loops([7] * 63)
    assert not loops([*[7] * 64, 8]) and not loops([*beginning, *list(range(30)) * 3])
