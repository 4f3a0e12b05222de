"""vLLM serves what ``convert gguf`` writes, and an adapter of the original fits it."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.e2e.engines import Engines, tokens_of
from tests.e2e.prompts import tokenizer
from tests.training.gguf_files import random_model, write_gguf
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.training.checkpoints.gguf_convert import convert_gguf

TEXTS = ("Can you find me a bus to San Francisco?", "What is 7 times 8?", "The sea was calm.")


def prompts() -> list[list[int]]:
    return [list(tokenizer()(text).input_ids) for text in TEXTS]


def test_a_model_that_went_through_gguf_serves_as_before(tmp_path: Path, engines: Engines) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(), dtype=torch.float32)
    write_gguf(tmp_path / "model.gguf", model, "BF16")
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    before = engines.plain().generate(prompts(), ignore_eos=True)
    options = {"model": tiny_adapter(), "exit_layer": None}
    after = engines.kangaroo(options=options, model=str(tmp_path / "out"))
    with after.drafting():
        assert tokens_of(after.generate(prompts(), ignore_eos=True)) == tokens_of(before)


def test_a_quantised_qwen_generates_what_transformers_generates(
    tmp_path: Path, engines: Engines
) -> None:
    write_gguf(tmp_path / "model.gguf", random_model("qwen3", head_dim=32), "Q8_0")
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out", dtype="float32")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    found = engines.plain(model=str(tmp_path / "out")).generate(prompts(), max_tokens=12)
    for prompt, output in zip(prompts(), found, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0
        )
        assert list(output.outputs[0].token_ids) == expected[0, len(prompt) :].tolist()
