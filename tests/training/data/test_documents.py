"""Reading training files: formats, marks of answer tokens, refusals."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from vllm_kangaroo import tiny_model
from vllm_kangaroo.training.data.documents import Document, read_documents
from vllm_kangaroo.training.data.errors import DataError

CASES = Path(__file__).parents[2] / "cases" / "data"
TABLE = 4096  # token ids of the demo model
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
    return list(read_documents([path], tokenizer, TABLE))


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
        ("a.jsonl", "", "'.*a.jsonl' holds no row"),
        ("a.jsonl", "\n \n", "'.*a.jsonl' holds no row"),
        ("a.jsonl", '{"made_from": {}}\n', "'.*a.jsonl' holds no row"),
        ("a.txt", "", "'.*a.txt' holds no text"),
        ("a.txt.xz", "\ufeff \n", "'.*a.txt.xz' holds no text"),
        ("a.jsonl", '\n{"text": null}', "line 2 of .* has text=null"),
        ("a.jsonl", '{"messages": null}', "line 1 of .* has messages=null"),
        ("a.jsonl", '{"text": 5}', "line 1 of .* has text=5, which is no text"),
        ("a.jsonl", '{"text": ["a"]}', r"has text=\['a'\], which is no text"),
        ("a.jsonl", '{"text": "a", "messages": []}', "has 'text' and 'messages'; keep one"),
        ("a.jsonl", '{"text": "a\\ud83d"}', r"line 1 of .* holds '\\ud83d', half of a surrogate"),
        ("a.jsonl", '{"messages": []}', "line 1 of .* holds a conversation without a turn"),
        ("a.jsonl", '{"messages": "Hi."}', "has 'Hi.' for a list of turns"),
        ("a.jsonl", '{"token_ids": "5", "answer_start": 0}', "has token_ids='5', which are no"),
        ("a.jsonl", '{"token_ids": [5.0], "answer_start": 0}', r"has token_ids=\[5.0\], which"),
        ("a.jsonl", '{"token_ids": [true], "answer_start": 0}', r"has token_ids=\[True\], which"),
        ("a.jsonl", '{"token_ids": [-1], "answer_start": 0}', r"has token_ids=\[-1\], which"),
        ("a.jsonl", '{"token_ids": [5, 4096]}', "gives the token id 4096, and .* last is 4095"),
        ("a.jsonl", '{"token_ids": [99999999999]}', "gives the token id 99999999999, and"),
        ("a.jsonl", '{"token_ids": [5]}', "has answer_start=None for 1 token_ids"),
        ("a.jsonl", '{"token_ids": [5], "answer_start": 2}', "has answer_start=2 for 1 token_ids"),
        ("a.jsonl", '{"token_ids": [5], "answer_start": true}', "has answer_start=True for"),
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


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("assistant_first", ["Good day, how can I help?<|end|>\nA wren is a bird.<|end|>\n"]),
        ("byte_order_mark", []),
        ("content_parts", ["An oak is a tree.<|end|>\n"]),
        ("tool_call_null", ["It is 4 degrees in Oslo.<|end|>\n"]),
        (
            "unknown_roles",
            [
                "The Elbe is a river.<|end|>\n",
                "Lake Como is a lake.<|end|>\n",
                "Box Hill is a hill.<|end|>\n",
            ],
        ),
    ],
)
def test_rows_as_data_sets_have_them(name: str, answers: list[str], tokenizer: Any) -> None:
    """Among forty plain conversations; nothing is rendered as None, a list or a mark."""
    documents = list(read_documents([CASES / f"{name}.jsonl"], tokenizer, TABLE))
    assert len(documents) == 40 + len(answers)
    counted = [tokenizer.decode(document.ids[document.counted]) for document in documents]
    assert counted[20 : 20 + len(answers)] == answers
    fruit = [*counted[:20], *counted[20 + len(answers) :]]
    assert all(text.startswith("A pear is a fruit") for text in fruit)
    for document in documents:
        text = tokenizer.decode(document.ids)
        assert text.startswith("<|bos|>") and "None" not in text
        assert not {"\ufeff", "{", "["} & set(text)


@pytest.mark.parametrize(
    "name", ["empty_conversation", "lone_surrogate", "text_null", "token_beyond_table"]
)
def test_rows_that_are_wrong_are_named(name: str, tokenizer: Any) -> None:
    path = CASES / f"{name}.jsonl"
    with pytest.raises(DataError, match=f"^line 21 of '{path}' "):
        list(read_documents([path], tokenizer, TABLE))


def test_rows_that_a_tokenizer_makes_unknown_ids_of(tmp_path: Path, tokenizer: Any) -> None:
    """A tokenizer with more tokens than the model has rows."""
    rows = [{"text": "one"}, {"messages": MESSAGES}]
    for at, row in enumerate(rows, start=1):
        path = tmp_path / f"{at}.jsonl"
        path.write_text("\n" * at + json.dumps(row))
        with pytest.raises(
            DataError, match=f"line {at + 1} of .* gives the token id .* last is 299"
        ):
            list(read_documents([path], tokenizer, 300))
        assert list(read_documents([path], tokenizer))


def test_texts_that_a_tokenizer_refuses_are_named(tmp_path: Path, tokenizer: Any) -> None:
    """In the middle of a batch, all of which fails with it."""

    class Refusing:
        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, texts: list[str], **more: Any) -> Any:
            if any("forbidden" in text for text in texts):
                raise TypeError("no such\ntext")
            return tokenizer(texts, **more)

    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in ("one", "forbidden", "two")))
    with pytest.raises(
        DataError, match=r"^line 2 of .* is refused by the tokenizer \(no such text\)"
    ):
        list(read_documents([path], Refusing()))


def test_what_a_row_may_have_besides(tmp_path: Path, tokenizer: Any) -> None:
    """Columns of other rows are null, and others are not read."""
    rows = [
        {"text": "one", "messages": None, "score": float("nan")},
        {"text": None, "messages": MESSAGES, "id": 7},
        {"conversations": MESSAGES, "messages": None, "system": None},
    ]
    content = "".join(json.dumps(row) + "\n" for row in rows)
    text, first, second = read(tmp_path / "a.jsonl", content, tokenizer)
    assert tokenizer.decode(text.ids) == "one<|end|>"
    assert first.ids.tolist() == second.ids.tolist() and first.counted.any()
