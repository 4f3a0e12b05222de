"""Reading prompts, and choosing some of many."""

import gzip
import json
import lzma
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from vllm_kangaroo import tiny_model
from vllm_kangaroo.bench.prompts import (
    Prompt,
    PromptError,
    encode,
    evenly,
    load_prompts,
)
from vllm_kangaroo.demo.models import MODELS, DemoModel

QUESTION = '{"question_id": 81, "category": "qa", "turns": ["two"]}'
CASES = Path(__file__).parents[1] / "cases" / "prompts"
PACKERS = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress}


def many(*sizes: int) -> list[Prompt]:
    return [
        Prompt.of_text(f"{kind}-{at}", "text", str(kind))
        for kind, size in enumerate(sizes)
        for at in range(size)
    ]


@pytest.mark.parametrize("model", MODELS.values(), ids=list(MODELS))
def test_demo_prompts_are_a_dozen_chats(model: DemoModel):
    prompts = load_prompts(model.prompts)
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
        ("a.jsonl", "\n\n", "no prompt"),
        ("a.json", "", "line 1 of .* is not JSON"),
        ("a.json", '{"name": "x"}', "valid array"),
        ("a.json", '[\n{"name": "x"', "line 2 of .* is not JSON"),
        ("a.json", '[{"name": 5, "messages": []}]', "name=5 in entry 1"),
        (
            "a.json",
            '[{"name": "x", "messages": [{"role": "gpt", "content": "y"}]}]',
            r"messages\[0\].role='gpt' in entry 1",
        ),
        (
            "a.json",
            '[{"name": "x", "messages": [{"role": "user", "content": null}]}]',
            r"messages\[0\].content=None in entry 1",
        ),
        ("a.jsonl", '\n{"question_id": 1', "line 2 of .* is not JSON"),
        ("a.jsonl", f"{QUESTION}\n{{}}", "line 2 of .* has no 'question_id'"),
        ("a.jsonl", f"{QUESTION}\n[1]", "line 2 of .* is no JSON object"),
        ("a.jsonl", QUESTION.replace('"two"', "null"), r"line 1 of .* has turns\[0\]=None"),
        ("a.jsonl", QUESTION.replace('"two"', "5"), r"line 1 of .* has turns\[0\]=5"),
        ("a.jsonl", QUESTION.replace('["two"]', "[]"), r"line 1 of .* has turns=\[\]"),
        ("a.jsonl", QUESTION.replace('["two"]', '"two"'), "line 1 of .* has turns='two'"),
        ("a.jsonl", QUESTION.replace("two", "\\ud83d"), "line 1 of .* half of a surrogate pair"),
        ("a.jsonl", QUESTION.replace('"qa"', "5"), "line 1 of .* has category=5"),
        ("a.jsonl", QUESTION.replace("81", "true"), "line 1 of .* has question_id"),
    ],
)
def test_wrong_file_is_one_sentence(tmp_path: Path, name: str, text: str, said: str):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(PromptError, match=said) as caught:
        load_prompts(path)
    assert str(path) in str(caught.value)
    assert "question.jsonl" in str(caught.value)


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz"])
def test_lines_end_where_the_file_ends_them(tmp_path: Path, suffix: str):
    """A line separator of Unicode is a character of the prompt; a mark, blank lines and CRLF are nothing."""
    content = (CASES / "line_separator.jsonl").read_bytes()
    spaced = b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n\r\n")
    path = tmp_path / f"question.jsonl{suffix}"
    for given_bytes in (content, spaced):
        path.write_bytes(PACKERS[suffix](given_bytes))
        prompts = load_prompts(path)
        assert [prompt.messages[0].content for prompt in prompts] == [
            f"Name a stone.\u2028Say where it lies. ({at})" for at in range(4)
        ]
    form = tmp_path / "form.json"
    form.write_bytes(b"\xef\xbb\xbf" + MODELS["tiny"].prompts.read_bytes())
    assert [p.name for p in load_prompts(form)] == [
        p.name for p in load_prompts(MODELS["tiny"].prompts)
    ]


def test_prompts_that_a_template_refuses_are_named(tmp_path: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'stone' in m.content | lower %}{{ raise_exception('no stones') }}{% endif %}"
        "{{ m.content }}{% endfor %}"
    )
    tokenizer.save_pretrained(tmp_path / "model")
    path = tmp_path / "a.jsonl"
    path.write_text(f"\n{QUESTION}\n{QUESTION.replace('two', 'a stone')}")
    with pytest.raises(
        PromptError, match=r"^line 3 of --prompts .*a.jsonl is refused by .*no stones"
    ):
        load_prompts(path, str(tmp_path / "model"))
    assert len(load_prompts(path, "a model of a hub")) == 2
    path = tmp_path / "a.json"
    messages = [{"role": "user", "content": "A stone?"}]
    path.write_text(json.dumps([{"name": "x", "messages": messages}]))
    with pytest.raises(PromptError, match=r"^entry 1 of --prompts .*a.json is refused by"):
        load_prompts(path, str(tmp_path / "model"))


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
