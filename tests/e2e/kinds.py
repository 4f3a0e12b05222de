"""Tiny random models of kinds that are run in parts each in its own way."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vllm_kangaroo import tiny_model

LAYERS = 4
WITHOUT_WEIGHTS = ("dbrx", "bailing")
"""vLLM loads their weights under other names than Transformers saves them: to be started with ``load_format="dummy"``."""
VOCAB: dict[str, Any] = {
    "vocab_size": 4096,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHAPE: dict[str, Any] = VOCAB | {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
OLD: dict[str, Any] = VOCAB | {"n_embd": 64, "n_layer": LAYERS, "n_head": 2, "n_positions": 256}


def _made(architecture: str, shape: dict[str, Any]) -> Any:
    import transformers

    model = getattr(transformers, architecture)
    return model(model.config_class(**shape))


KINDS: dict[str, Callable[[], Any]] = {
    # Positions under another name, no residual between layers.
    "gpt2": lambda: _made("GPT2LMHeadModel", OLD),
    "gptj": lambda: _made("GPTJForCausalLM", OLD | {"rotary_dim": 16}),
    "bloom": lambda: _made(
        "BloomForCausalLM", VOCAB | {"hidden_size": 64, "n_layer": LAYERS, "n_head": 2}
    ),
    "falcon": lambda: _made(
        "FalconForCausalLM",
        SHAPE | {"alibi": False, "multi_query": True, "parallel_attn": True, "bias": False},
    ),
    "granite": lambda: _made(
        "GraniteForCausalLM",
        SHAPE | {"logits_scaling": 8.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5},
    ),
    # The layers are those of a module within the decoder.
    "opt": lambda: _made(
        "OPTForCausalLM",
        SHAPE | {"ffn_dim": 96, "word_embed_proj_dim": 64, "num_key_value_heads": 2},
    ),
    # vLLM's Transformers backend; the last without a plan for pipelines.
    "olmo": lambda: _made("OlmoForCausalLM", SHAPE),
    "smollm3": lambda: _made("SmolLM3ForCausalLM", SHAPE),
    "persimmon": lambda: _made("PersimmonForCausalLM", SHAPE | {"num_key_value_heads": 2}),
    # The causal-LM class divides after the decoder.
    "minicpm": lambda: _made("LlamaForCausalLM", SHAPE),
    "dbrx": lambda: _made(
        "DbrxForCausalLM",
        VOCAB
        | {
            "d_model": 64,
            "n_heads": 2,
            "n_layers": LAYERS,
            "max_seq_len": 256,
            "attn_config": {"kv_n_heads": 1, "clip_qkv": 8.0, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
        },
    ),
    "bailing": lambda: _made("LlamaForCausalLM", SHAPE),
    # Cannot be served: positions are added before every stage, states of another shape are handed on.
    "gpt_bigcode": lambda: _made("GPTBigCodeForCausalLM", OLD),
    "biogpt": lambda: _made("BioGptForCausalLM", SHAPE),
    "gemma3n": lambda: _made(
        "Gemma3nForCausalLM",
        SHAPE
        | {
            "head_dim": 32,
            "hidden_size_per_layer_input": 16,
            "vocab_size_per_layer_input": 4096,
            "laurel_rank": 8,
            "num_kv_shared_layers": 0,
            "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
            "activation_sparsity_pattern": [0.0] * LAYERS,
        },
    ),
}

FOREIGN: dict[str, dict[str, Any]] = {
    "minicpm": {
        "architectures": ["MiniCPMForCausalLM"],
        "scale_emb": 3.0,
        "dim_model_base": 16,
        "scale_depth": 1.4,
        "num_experts": 0,
    },
    "bailing": {
        "architectures": ["BailingMoeForCausalLM"],
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "num_shared_experts": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "embedding_dropout": 0.0,
        "use_bias": False,
        "use_qkv_bias": False,
        "head_dim": 32,
    },
}
"""Models that Transformers does not have: a Llama's checkpoint with these in its config."""

CONFIG_CLASS = """
from transformers import LlamaConfig


class ForeignConfig(LlamaConfig):
    model_type = "{name}"
"""


def make_kind(name: str, folder: Path) -> str:
    """Save a model of a kind, random weights and all; returns its path. Needs ``trust_remote_code``."""
    torch.manual_seed(0)
    model = KINDS[name]()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.12)
            else:
                scale = key.endswith("weight")  # of a norm; the rest are biases
                parameter.normal_(1.0 if scale else 0.0, 0.1)
    model.float().eval().save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(Path(tiny_model()) / file, folder / file)
    if name in FOREIGN:
        path = folder / "config.json"
        config = json.loads(path.read_text()) | FOREIGN[name] | {"model_type": name}
        config["auto_map"] = {"AutoConfig": "configuration_foreign.ForeignConfig"}
        path.write_text(json.dumps(config))
        (folder / "configuration_foreign.py").write_text(CONFIG_CLASS.format(name=name))
    return str(folder)
