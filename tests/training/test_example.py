"""``examples/train_demo_adapter``: its two scripts feed training."""

from __future__ import annotations

import json
import lzma
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from vllm_kangaroo.demo import demo_model_path
from vllm_kangaroo.training.documents import read_documents

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_demo_adapter"


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
    run("prepare.py", data, out)
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


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
    assert "Anarchism is a philosophy." in texts


def test_answers_can_be_trained_on(prepared: Path) -> None:
    out = prepared / "own.jsonl"
    options = ("--temperature", 0, "--max-new-tokens", 12)
    prompts = prepared / "prompts_held_out.jsonl"
    run("answer.py", "--model", demo_model_path(), "--prompts", prompts, "--out", out, *options)
    texts = [row["text"] for row in rows(out)]
    assert len(texts) == len(rows(prompts)) > 0
    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    for text, document in zip(texts, read_documents([out], tokenizer), strict=True):
        asked, mark, answer = text.partition("<|assistant|>\n")
        assert asked.startswith("<|bos|><|user|>\n") and mark and answer
        assert tokenizer.decode(document.ids).removesuffix("<|end|>") == text.removesuffix(
            "<|end|>"
        )
