"""Reading prompts, and choosing some of many."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vllm_kangaroo import tiny_model
from vllm_kangaroo.bench.prompts import (
    DEMO_PROMPTS,
    Prompt,
    PromptError,
    encode,
    evenly,
    load_prompts,
)


def many(*sizes: int) -> list[Prompt]:
    return [
        Prompt.of_text(f"{kind}-{at}", "text", str(kind))
        for kind, size in enumerate(sizes)
        for at in range(size)
    ]


def test_demo_prompts_are_a_dozen_chats():
    prompts = load_prompts(DEMO_PROMPTS)
    assert len(prompts) >= 12
    assert len({prompt.name for prompt in prompts}) == len(prompts)
    assert all(prompt.messages[-1].role == "user" for prompt in prompts)


def test_question_form_takes_the_first_turn(tmp_path: Path):
    path = tmp_path / "question.jsonl"
    questions = [
        {"question_id": 81, "category": "writing", "turns": ["one", "two"], "reference": ["r"]},
        {"question_id": 82, "category": "coding", "turns": ["three"]},
        {"question_id": 200, "category": "rag", "turns": ["four"]},
    ]
    path.write_text("\n".join(json.dumps(question) for question in questions) + "\n")
    prompts = load_prompts(path)
    assert [prompt.messages[0].content for prompt in prompts] == ["one", "three", "four"]
    assert [prompt.category for prompt in prompts] == ["mt_bench", "mt_bench", "rag"]
    assert all(len(prompt.messages) == 1 for prompt in prompts)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", "not JSON"),
        ("a.jsonl", '{"question_id": 1}\n', "category"),
        ("a.json", '[{"name": "x", "messages": []}]', "messages"),
        ("a.json", '[{"name": "x", "prompt": "y"}]', "messages"),
        ("a.json", "[]", "no prompt"),
        ("a.jsonl", "", "no prompt"),
    ],
)
def test_wrong_file_is_one_sentence(tmp_path: Path, name: str, text: str, said: str):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(PromptError, match=said) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)
    assert "question.jsonl" in str(caught.value)


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(PromptError, match=r"nothing\.json cannot be read"):
        load_prompts(tmp_path / "nothing.json")


def test_choice_is_even_over_and_within_categories():
    chosen = evenly(many(80, 80, 80), 6)
    assert [prompt.name for prompt in chosen] == ["0-20", "0-60", "1-20", "1-60", "2-20", "2-60"]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.integers(1, 60))
def test_choice_is_as_even_as_can_be(sizes: list[int], count: int):
    prompts = many(*sizes)
    chosen = evenly(prompts, count)
    assert len(chosen) == len({prompt.name for prompt in chosen}) == min(count, len(prompts))
    assert [one for one in prompts if one in chosen] == chosen
    shares = Counter(prompt.category for prompt in chosen)
    largest = max(shares.values())
    assert all(shares[str(kind)] >= min(size, largest - 1) for kind, size in enumerate(sizes))


def test_chat_template_ends_where_the_answer_begins():
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    token_ids = encode(tokenizer, Prompt.of_text("one", "Hello there."))
    assert tokenizer.decode(token_ids) == "<|bos|><|user|>\nHello there.\n<|assistant|>\n"


def test_model_without_chat_template_is_refused():
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    tokenizer.chat_template = None
    with pytest.raises(PromptError, match="chat template"):
        encode(tokenizer, Prompt.of_text("one", "Hello there."))
