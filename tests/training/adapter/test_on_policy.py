"""``train adapter --on-policy``: the model's own answers, written once, by a real engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tests.e2e.prompts import QUESTIONS
from vllm_kangaroo import tiny_model
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.cli.train import train_app
from vllm_kangaroo.training.adapter import on_policy
from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.train_adapter import _answer_identity, _run_identity
from vllm_kangaroo.training.data.documents import DataError, read_documents
from vllm_kangaroo.training.run.state import ResumeError

pytestmark = pytest.mark.slow

COUNT = 10


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Conversations of one question each, and a text."""
    rows: list[dict[str, Any]] = [
        {
            "conversations": [
                {"from": "human", "value": question},
                {"from": "gpt", "value": "Not what the model would say."},
            ]
        }
        for question in QUESTIONS[:COUNT]
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": "Once upon."}]))
    return path


def options(data: Path, **changes: Any) -> AdapterTrainingOptions:
    values: dict[str, Any] = {
        "model": tiny_model(),
        "data": [data],
        "exit_layer": [1],
        "out": data.parent / "out",
        "dtype": "float32",
        "on_policy": True,
        "on_policy_temperature": 0.0,
        "on_policy_tokens": 24,
    }
    return AdapterTrainingOptions.model_validate(values | changes)


@pytest.mark.e2e
def test_answers_are_the_model_s_and_are_trained_on(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = options(data, held_out_fraction=0.3, steps=4, window=16, batch_size=2)
    out, file = chosen.out, chosen.out / "on_policy.jsonl"
    # What a run left behind that was killed in its second chunk of answers.
    monkeypatch.setattr(on_policy, "CHUNK", 3)
    head = json.dumps({"made_from": _answer_identity(_run_identity(chosen))})
    earlier = [json.dumps({"token_ids": [9, 8, 7, at], "answer_start": 2}) for at in range(3)]
    out.mkdir()
    (out / "on_policy.jsonl.part").write_text("\n".join([head, *earlier, earlier[0], '{"tok']))
    arguments = (
        f"adapter --model {chosen.model} --data {data} --exit-layer 1 --out {out} --steps 4 "
        "--window 16 --batch-size 2 --dtype float32 --on-policy --on-policy-temperature 0 "
        "--on-policy-tokens 24 --held-out-fraction 0.3"
    ).split()
    result = CliRunner().invoke(train_app, arguments)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir() if "on_policy" in p.name) == ["on_policy.jsonl"]
    lines = file.read_text().splitlines()
    assert lines[:4] == [head, *earlier] and json.loads(lines[-1]) == {"text": "Once upon."}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    *answers, text = read_documents([file], tokenizer)
    assert len(answers) == COUNT and text.counted.all()
    model = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    for question, document in list(zip(QUESTIONS, answers, strict=False))[3:]:
        turn = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        asked = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        count = asked.shape[1]
        assert document.ids[:count].tolist() == asked[0].tolist()
        assert document.counted.tolist() == [False] * count + [True] * (len(document.ids) - count)
        expected = model.generate(
            asked, max_new_tokens=len(document.ids) - count, do_sample=False, pad_token_id=0
        )
        assert document.ids.tolist() == expected[0].tolist()
    config = AdapterConfig.load(out)
    assert [Path(row["file"]).name for row in config.training["data"]] == ["on_policy.jsonl"]


def test_answers_of_another_run_are_refused(data: Path) -> None:
    chosen = options(data)
    chosen.out.mkdir()
    (chosen.out / "on_policy.jsonl").write_text(json.dumps({"made_from": {"seed": 0}}) + "\n")
    assert on_policy.answer_data(chosen, {"seed": 0}, Console(quiet=True)).name == "on_policy.jsonl"
    with pytest.raises(ResumeError, match="made with seed=0, this run has 1"):
        on_policy.answer_data(chosen, {"seed": 1}, Console(quiet=True))


def test_data_without_anything_to_answer_are_refused(data: Path) -> None:
    data.write_text(json.dumps({"text": "Once upon."}))
    with pytest.raises(DataError, match="hold no conversation that leaves room"):
        on_policy.answer_data(options(data), {}, Console(quiet=True))
    data.write_text(json.dumps({"token_ids": [1, 2], "answer_start": 1}))
    with pytest.raises(DataError, match="is an answer already"):
        on_policy.answer_data(options(data), {}, Console(quiet=True))
    data.write_text(json.dumps({"messages": [{"role": "assistant", "content": "Hello"}]}))
    with pytest.raises(DataError, match="no turn of a user's"):
        on_policy.answer_data(options(data), {}, Console(quiet=True))


def test_a_process_that_fails_is_told_of(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/ls")
    with pytest.raises(on_policy.AnswerError, match=r"did not answer for --on-policy \(.*ls"):
        on_policy.answer_data(options(data), {}, Console(quiet=True))
