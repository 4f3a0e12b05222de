"""GGUF files of random models, written by the gguf library as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from vllm_kangaroo import tiny_model

TYPES = {"F32": Kind.F32, "F16": Kind.F16, "BF16": Kind.BF16} | {
    name: Kind[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K")
}
FILE_TYPE_CONTROL, FILE_TYPE_NORMAL = 3, 1


def random_model(model_type: str, **changes: Any) -> Any:
    """A causal language model of 2 layers with the vocabulary of :func:`tiny_model`, float32."""
    shape = {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 20000.0},
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(5)
    config = AutoConfig.for_model(model_type, **(shape | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model


def write_gguf(
    path: Path,
    model: Any,
    kind: str = "F32",
    *,
    metadata: Mapping[str, Any] = {},
    left_out: Collection[str] = (),
    extra: Mapping[str, np.ndarray] = {},
    head_key: str = "attention.key_length",
) -> dict[str, torch.Tensor]:
    """Write a model with the tokenizer of :func:`tiny_model`.

    Args:
        kind: of the matrices; norms and biases stay float32.
        metadata: keys to write beside or instead of the usual ones; None leaves one out.
        left_out: GGUF names of tensors not to write.
        extra: further tensors.

    Returns:
        The model's parameters as the file holds them, by their own names, float32.
    """
    config = model.config
    arch = config.model_type
    writer = gguf.GGUFWriter(path, arch)
    keys = _metadata(config, arch, head_key) | _tokenizer() | dict(metadata)
    for key, value in keys.items():
        _add(writer, key, value)
    names = gguf.get_tensor_name_map(
        {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[arch], config.num_hidden_layers
    )
    held: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        stem, _, suffix = name.rpartition(".")
        found = f"{names.get_name(stem)}.{suffix}"
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        turned = heads.get(stem.split(".")[-1]) if arch == "llama" else None
        values = parameter.detach().numpy()
        values = _permuted(values, turned) if turned else values
        data = _packed(values, Kind.F32 if values.ndim == 1 else TYPES[kind])
        if found not in left_out:
            packed_kind = Kind.F32 if values.ndim == 1 else TYPES[kind]
            writer.add_tensor(found, data, raw_dtype=packed_kind)
            back = gguf.quants.dequantize(data, packed_kind).reshape(values.shape)
            held[name] = torch.from_numpy(_unpermuted(back, turned) if turned else back.copy())
    for name, array in extra.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return held


def _metadata(config: Any, arch: str, head_key: str) -> dict[str, Any]:
    own = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.freq_base": config.rope_parameters["rope_theta"],
        head_key: getattr(config, "head_dim", config.hidden_size // config.num_attention_heads),
    }
    if arch == "llama":
        own |= {"rope.dimension_count": config.head_dim, "vocab_size": config.vocab_size}
    return {f"{arch}.{key}": value for key, value in own.items()} | {"general.name": "a model"}


def _tokenizer() -> dict[str, Any]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    import json

    merges = json.loads((Path(tiny_model()) / "tokenizer.json").read_text())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            FILE_TYPE_CONTROL if token in special else FILE_TYPE_NORMAL for token in tokens
        ],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _packed(values: np.ndarray, kind: Kind) -> np.ndarray:
    """Quantised; for kinds that the library only unpacks, random blocks with scales that are sane."""
    if kind not in (Kind.Q4_K, Kind.Q6_K):
        return gguf.quants.quantize(values.astype(np.float32), kind)
    values_a_block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = values.shape
    generator = np.random.default_rng(7)
    blocks = generator.integers(0, 256, (rows, columns // values_a_block, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.003).tobytes(), np.uint8)
    at = (0, 2) if kind is Kind.Q4_K else (size - 2,)
    for start in at:
        blocks[..., start : start + 2] = scale
    return blocks.reshape(rows, -1)


def _permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's order of the rows of a Llama's query and key projections."""
    shape = values.shape
    split = values.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return split.swapaxes(1, 2).reshape(shape)


def _unpermuted(values: np.ndarray, heads: int) -> np.ndarray:
    shape = values.shape
    split = values.reshape(heads, shape[0] // heads // 2, 2, *shape[1:])
    return split.swapaxes(1, 2).reshape(shape).copy()
