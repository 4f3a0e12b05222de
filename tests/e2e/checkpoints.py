"""Tiny models of several architectures with random weights, and adapters for them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vllm_kangaroo import tiny_model
from vllm_kangaroo.adapters.checkpoint import norm_fingerprint, save_adapter
from vllm_kangaroo.adapters.config import AdapterConfig, TargetInfo
from vllm_kangaroo.adapters.reference import KangarooAdapter

LAYERS = 6
SHAPE: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _llama(**changes: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SHAPE | {"tie_word_embeddings": False} | changes))


def _qwen3(**changes: Any) -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**SHAPE | {"tie_word_embeddings": True} | changes))


def _gemma2(**changes: Any) -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    # Every other layer sees a window of 32 tokens only, so that there are two groups of KV blocks.
    window = {"sliding_window": 32, "query_pre_attn_scalar": 32}
    return Gemma2ForCausalLM(Gemma2Config(**SHAPE | window | changes))


def _gemma3(**changes: Any) -> Any:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention"] * (LAYERS // 2)
    window = {"sliding_window": 32, "query_pre_attn_scalar": 32, "layer_types": kinds}
    return Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE | window | changes))


MODELS: dict[str, Callable[..., Any]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
}


def make_model(name: str, folder: Path, *, spread: float = 0.12, **changes: Any) -> str:
    """Save a model of random weights, with the demo model's tokenizer; returns its path.

    Later layers add less than the first ones do, so that an early exit has a chance to agree with the end.
    """
    torch.manual_seed(0)
    model = MODELS[name](**changes)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key:
                parameter.normal_(0.0 if name.startswith("gemma") else 1.0, 0.1)
            elif "embed" in key and name.startswith("gemma"):
                parameter.normal_(0.0, spread * 0.4)  # which the model multiplies by 8
            else:
                parameter.normal_(0.0, spread)
        for number, layer in enumerate(model.model.layers):
            for key, parameter in layer.named_parameters():
                if "o_proj" in key or "down_proj" in key:
                    parameter.mul_(1.0 if number < 2 else 0.5)
    model.float().eval().save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(Path(tiny_model()) / file, folder / file)
    return str(folder)


def make_adapter(
    model: str, exit_layer: int, folder: Path, *, spread: float = 0.05, **kind: Any
) -> str:
    """Save an adapter that starts as the target's own final norm, the rest being random; returns its path.

    ``kind`` are keys of its config; a reduced vocabulary leaves out every third token.
    """
    from transformers import AutoModelForCausalLM

    target = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    shape = target.config
    norm = target.model.norm.weight.detach()
    torch.manual_seed(1)
    config = AdapterConfig(
        exit_layer=exit_layer,
        hidden_size=shape.hidden_size,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim,
        rms_norm_eps=shape.rms_norm_eps,
        rope_theta=10000.0,
        vocab_size=shape.vocab_size,
        torch_dtype="float32",
        target=TargetInfo(
            name_or_path=model,
            architecture=shape.architectures[0],
            model_type=shape.model_type,
            num_hidden_layers=shape.num_hidden_layers,
            norm_fingerprint=norm_fingerprint(norm),
        ),
        **kind,
    )
    adapter = KangarooAdapter(config)
    with torch.no_grad():
        for parameter in adapter.layers.parameters():
            parameter.normal_(0.0, spread)
        # Gemma's norm multiplies by one more than its weight.
        adapter.norm.weight.copy_(norm + 1.0 if shape.model_type.startswith("gemma") else norm)
        adapter.layers[0].input_layernorm.weight.fill_(1.0)
        if config.kind.feed_forward:
            adapter.layers[0].post_attention_layernorm.weight.fill_(1.0)
        if adapter.memory is not None:
            adapter.memory.proj.weight.normal_(0.0, spread)
        if adapter.draft_vocab is not None:
            kept = [token for token in range(shape.vocab_size) if token % 3]
            adapter.draft_vocab.copy_(torch.tensor(kept[: len(adapter.draft_vocab)]))
    save_adapter(adapter, config, folder)
    return str(folder)


def make_memory_adapter(model: str, exit_layer: int, folder: Path, **changes: Any) -> str:
    """Save an adapter with a feed-forward part, a memory and two thirds of the vocabulary; returns its path."""
    from transformers import AutoConfig

    size = AutoConfig.from_pretrained(model).vocab_size
    kind = {
        "model_type": "kangaroo_memory_adapter",
        "intermediate_size": 80,
        "draft_vocab_size": size - -(-size // 3),
    }
    return make_adapter(model, exit_layer, folder, **kind | changes)
