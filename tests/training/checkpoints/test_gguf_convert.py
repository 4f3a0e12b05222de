"""``convert gguf``: the weights are those of the file, and nothing of a file is passed over in silence."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tests.training.gguf_files import random_model, write_gguf
from vllm_kangaroo import tiny_model
from vllm_kangaroo.cli import main as cli
from vllm_kangaroo.training.checkpoints.gguf_convert import convert_gguf, llama3_factors
from vllm_kangaroo.training.checkpoints.gguf_file import ROPE_FACTORS, GgufError

pytestmark = pytest.mark.slow

MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama untied": {"tie_word_embeddings": False, "head_dim": 32},
    "qwen2": {},
    "qwen2 untied": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 32},
}


def model_of(name: str, **changes: Any) -> Any:
    return random_model(name.split()[0], **(MODELS[name] | changes))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
@torch.no_grad()
def test_computes_what_the_model_computes(tmp_path: Path, name: str, kind: str) -> None:
    model = model_of(name)
    held = write_gguf(tmp_path / "model.gguf", model, kind)
    before = dict(os.environ)
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out", dtype="float32")
    assert dict(os.environ) == before, "children inherit it"
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == held.keys()
    for key, tensor in held.items():
        assert torch.equal(written[key], tensor), key
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(found) is type(model)
    model.load_state_dict(held, strict=False)  # as the file rounded it
    ids = torch.tensor([[7, 300, 4000, 12, 9, 81]])
    assert torch.allclose(found(ids).logits, model(ids).logits, atol=1e-5)
    assert found.config.tie_word_embeddings == model.config.tie_word_embeddings


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q6_K", "BF16", "F16"])
def test_every_kind_of_block_is_unpacked_as_the_library_unpacks_it(
    tmp_path: Path, kind: str
) -> None:
    model = random_model(
        "llama", hidden_size=256, intermediate_size=256, num_hidden_layers=1, head_dim=64
    )
    held = write_gguf(tmp_path / "model.gguf", model, kind)
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    dtype = torch.float16 if kind == "F16" else torch.bfloat16
    for key, tensor in held.items():
        assert torch.equal(written[key], tensor.to(dtype)), key
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")
    assert "quantization_config" not in config


def test_tokenizer_template_and_ends_come_along(tmp_path: Path) -> None:
    write_gguf(
        tmp_path / "model.gguf", model_of("llama"), metadata={"tokenizer.ggml.eot_token_id": 4}
    )
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    ours, theirs = (
        AutoTokenizer.from_pretrained(path) for path in (tmp_path / "out", tiny_model())
    )
    text = "I've 24 apples,\n\n  and 3.5 km to go 🦘 <|user|>x"
    assert ours(text).input_ids == theirs(text).input_ids
    chat = [{"role": "user", "content": "Hello"}]
    asked = {"add_generation_prompt": True, "tokenize": False}
    assert ours.apply_chat_template(chat, **asked) == theirs.apply_chat_template(chat, **asked)
    assert (ours.bos_token_id, ours.eos_token_id, ours.pad_token_id) == (1, 2, 0)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 4]


@pytest.mark.parametrize(
    ("pre", "split"),
    [
        ("smollm", ["a", "ĊĊ", "1", "2", ".", "ĠĠ", "3"]),
        ("gpt-2", ["a", "Ċ", "Ċ", "12", ".", "Ġ", "Ġ3"]),
        ("qwen2", ["a", "ĊĊ", "1", "2", ".", "Ġ", "Ġ", "3"]),
        ("llama-bpe", ["a", "ĊĊ", "12", ".", "Ġ", "Ġ", "3"]),
    ],
)
def test_text_is_split_as_the_file_says(tmp_path: Path, pre: str, split: list[str]) -> None:
    write_gguf(tmp_path / "model.gguf", model_of("llama"), metadata={"tokenizer.ggml.pre": pre})
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    found = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a\n\n12.  3")
    assert [piece for piece, _ in found] == split


@pytest.mark.parametrize(
    ("pre", "told", "begins"),
    [("qwen2", None, False), ("qwen2", True, True), ("llama-bpe", None, True)],
)
def test_text_begins_as_the_file_says(
    tmp_path: Path, pre: str, told: bool | None, begins: bool
) -> None:
    keys = {"tokenizer.ggml.pre": pre, "tokenizer.ggml.add_bos_token": told}
    write_gguf(tmp_path / "model.gguf", model_of("llama"), metadata=keys)
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    ids = AutoTokenizer.from_pretrained(tmp_path / "out")("Hello").input_ids
    assert (ids[0] == 1) is begins
    assert ids[-1] != 2


def test_rotary_scaling_of_llama_3(tmp_path: Path) -> None:
    factors = llama3_factors(16, 20000.0, 8.0).astype(np.float32)
    assert factors[0] == 1 and factors[-1] == 8
    write_gguf(tmp_path / "model.gguf", model_of("llama"), extra={ROPE_FACTORS: factors})
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert found.config.rope_parameters["rope_type"] == "llama3"
    inverse = 20000.0 ** -(np.arange(0, 16, 2) / 16) / factors
    assert np.allclose(found.model.rotary_emb.inv_freq.numpy(), inverse, rtol=1e-4)


def test_a_tokenizer_can_come_from_elsewhere(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.pre": "never-heard-of"}
    write_gguf(tmp_path / "model.gguf", model_of("llama"), metadata=keys)
    with pytest.raises(GgufError, match=r"tokenizer\.ggml\.pre='never-heard-of'.*--tokenizer"):
        convert_gguf(tmp_path / "model.gguf", tmp_path / "out")
    convert_gguf(tmp_path / "model.gguf", tmp_path / "out", tokenizer=Path(tiny_model()))
    ours, theirs = (
        AutoTokenizer.from_pretrained(path) for path in (tmp_path / "out", tiny_model())
    )
    assert ours.get_vocab() == theirs.get_vocab()


def _cut(share: float) -> Callable[[Path], None]:
    def cut(path: Path) -> None:
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return cut


def _garble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[24:32] = b"\xff" * 8  # the length of the first key
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.unlink(), "cannot be read (No such file"),
        (lambda path: path.write_bytes(b""), "does not begin as a GGUF file does"),
        (lambda path: path.write_bytes(b"PK\x03\x04" * 99), "does not begin as a GGUF file does"),
        (lambda path: path.write_bytes(b"GGUF"), "is torn"),
        (lambda path: path.write_bytes(b"GGUF\x63\0\0\0" + b"\0" * 32), "GGUF v99"),
        (_cut(0.001), "is torn"),
        (_cut(0.1), "is torn"),
        (_cut(0.999), "is torn"),
        (_garble, "is torn"),
    ],
)
def test_torn_and_foreign_files_are_refused(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(path, model_of("llama"))
    spoil(path)
    refused(tmp_path, said)


def refused(folder: Path, said: str) -> None:
    with pytest.raises(GgufError) as caught:
        convert_gguf(folder / "model.gguf", folder / "out")
    sentence = str(caught.value)
    assert said in sentence and f"{folder / 'model.gguf'}" in sentence
    assert "\n" not in sentence
    assert [path.name for path in folder.iterdir() if path.name != "model.gguf"] == []


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"split.count": 3, "split.no": 1}, "is part 2 of 3"),
        ({"general.type": "adapter"}, "general.type='adapter'"),
        ({"llama.rope.scaling.type": "yarn"}, "llama.rope.scaling.type='yarn'"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count=8"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre=None"),
        ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model='bert'"),
        ({"llama.embedding_length": 128}, "for model.embed_tokens.weight where its own keys"),
        ({"llama.vocab_size": 4000}, "[4096, 64] for model.embed_tokens.weight"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(
    tmp_path: Path, metadata: dict[str, Any], said: str
) -> None:
    write_gguf(tmp_path / "model.gguf", model_of("llama"), metadata=metadata)
    refused(tmp_path, said)


@pytest.mark.parametrize(
    ("left_out", "extra", "said"),
    [
        (["blk.1.ffn_up.weight"], {}, "model.layers.1.mlp.up_proj.weight"),
        ([], {"blk.0.attn_q.bias": np.ones(64, np.float32)}, "some would be lost"),
        ([], {ROPE_FACTORS: np.full(8, 3.0, np.float32)}, "other factors than Llama 3's"),
    ],
)
def test_tensors_too_few_or_too_many_are_refused(
    tmp_path: Path, left_out: list[str], extra: dict[str, np.ndarray], said: str
) -> None:
    write_gguf(tmp_path / "model.gguf", model_of("llama"), left_out=left_out, extra=extra)
    refused(tmp_path, said)


@pytest.mark.parametrize("architecture", ["whisper-of-the-future", "t5", "clip"])
def test_unsupported_architectures_are_refused(tmp_path: Path, architecture: str) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", architecture)
    for key, value in {"block_count": 1, "embedding_length": 8, "vocab_size": 4}.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c", "d"])
    writer.add_tensor("token_embd.weight", np.ones((4, 8), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(tmp_path, "")


def test_command_line(tmp_path: Path) -> None:
    write_gguf(tmp_path / "model.gguf", model_of("qwen2"))
    arguments = ["convert", "gguf", str(tmp_path / "model.gguf"), str(tmp_path / "out")]
    told = CliRunner().invoke(cli.app, arguments)
    assert told.exit_code == 0, told.output
    assert "Qwen2ForCausalLM" in told.output and "float32" in told.output
    again = CliRunner().invoke(cli.app, arguments)
    assert again.exit_code == 2
    assert again.stderr.startswith("vllm-kangaroo: ") and "is there already" in again.stderr
    shutil.rmtree(tmp_path / "out")
    wrong = CliRunner().invoke(cli.app, [*arguments, "--dtype", "int8"])
    assert wrong.exit_code == 2 and "--dtype int8" in wrong.stderr
