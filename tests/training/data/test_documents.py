"""Reading training files: formats, marks of answer tokens, refusals."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from vllm_kangaroo import tiny_model
from vllm_kangaroo.training.data.documents import DataError, Document, read_documents

MESSAGES = [
    {"role": "user", "content": "A small latte, please."},
    {"role": "assistant", "content": "Anything else?"},
    {"role": "user", "content": "No, that's all."},
    {"role": "assistant", "content": "It will be ready soon."},
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny_model())


def read(path: Path, content: str, tokenizer: Any) -> list[Document]:
    if path.suffix == ".xz":
        path.write_bytes(lzma.compress(content.encode()))
    else:
        path.write_text(content)
    return list(read_documents([path], tokenizer))


def test_only_answers_of_a_conversation_count(tmp_path: Path, tokenizer: Any) -> None:
    row = json.dumps({"messages": MESSAGES})
    (document,) = read(tmp_path / "a.jsonl", row, tokenizer)
    text = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert tokenizer.decode(document.ids) == text
    assert tokenizer.decode(document.ids[document.counted]) == (
        "Anything else?<|end|>\nIt will be ready soon.<|end|>\n"
    )


def test_sharegpt_rows_mean_the_same(tmp_path: Path, tokenizer: Any) -> None:
    turns = [
        {"from": "human" if m["role"] == "user" else "gpt", "value": m["content"]} for m in MESSAGES
    ]
    rows = f"{json.dumps({'messages': MESSAGES})}\n\n{json.dumps({'conversations': turns})}\n"
    first, second = read(tmp_path / "a.jsonl.xz", rows, tokenizer)
    assert first.ids.tolist() == second.ids.tolist()
    assert first.counted.tolist() == second.counted.tolist()


def test_all_of_a_text_counts_and_it_is_ended(tmp_path: Path, tokenizer: Any) -> None:
    for name in ("a.txt", "a.txt.xz"):
        (document,) = read(tmp_path / name, "Once upon a time\nthere was", tokenizer)
        assert tokenizer.decode(document.ids) == "Once upon a time\nthere was<|end|>"
        assert document.counted.all() and len(document.counted) == len(document.ids)
    rendered = "<|bos|><|user|>\nHello<|end|>"
    (document,) = read(tmp_path / "b.jsonl", json.dumps({"text": rendered}), tokenizer)
    assert tokenizer.decode(document.ids) == rendered


def test_more_documents_than_are_tokenised_at_a_time(tmp_path: Path, tokenizer: Any) -> None:
    rows = "".join(json.dumps({"text": f"number {i}"}) + "\n" for i in range(1100))
    documents = read(tmp_path / "a.jsonl", rows, tokenizer)
    texts = [tokenizer.decode(document.ids) for document in documents]
    assert texts == [f"number {i}<|end|>" for i in range(1100)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "neither .txt nor .jsonl"),
        ("a.csv.xz", "", "neither .txt nor .jsonl"),
        ("a.jsonl", '{"text": "a"}\n{"text"', r"line 2 of .*a.jsonl.* is neither"),
        ("a.jsonl", '{"prompt": "a"}', "line 1 of"),
        ("a.jsonl", '{"messages": [{"role": "user"}]}', "line 1 of"),
        ("a.jsonl", "[]", "line 1 of"),
    ],
)
def test_refusals(tmp_path: Path, tokenizer: Any, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path / name, content, tokenizer)


def test_unreadable_files(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        list(read_documents([tmp_path / "none.txt"], tokenizer))
    (tmp_path / "torn.txt.xz").write_bytes(lzma.compress(b"text" * 99)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        list(read_documents([tmp_path / "torn.txt.xz"], tokenizer))


def test_templates_that_do_not_grow(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    row = json.dumps({"messages": MESSAGES})
    tokenizer.chat_template = "{{ messages | length }}: {{ messages[-1].content }}"
    with pytest.raises(DataError, match="rendered differently"):
        read(tmp_path / "a.jsonl", row, tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        read(tmp_path / "a.jsonl", row, tokenizer)
