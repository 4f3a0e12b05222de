"""Tiny random models of many causal-LM classes of transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

_SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# Names differ from class to class; those that a class does not know have no effect.
_EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
}
_LATENT: dict[str, Any] = {  # multi-head latent attention
    "num_key_value_heads": 6,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
}
_CAP = {"final_logit_softcapping": 3.0}

BEYOND_THE_HEAD: dict[str, dict[str, Any]] = {
    "cohere": {"logit_scale": 0.0625},
    "cohere2": {"logit_scale": 0.0625},
    "cohere2_moe": {"logit_scale": 0.0625, **_EXPERTS},
    "gemma2": _CAP,
    "gemma3_text": _CAP,
    "gemma4_text": {
        **_CAP,
        "vocab_size_per_layer_input": 97,
        "hidden_size_per_layer_input": 8,
    },
    "granite": {"logits_scaling": 8.0, "residual_multiplier": 0.5},
    "granite_swa": {"logits_scaling": 8.0},
    "granitemoe": {"logits_scaling": 8.0},
    "granitemoe_swa": {"logits_scaling": 8.0},
    "granitemoeshared": {"logits_scaling": 8.0},
    "hyperclovax": {"logits_scaling": 0.25},
    "minicpm3": {**_LATENT, "scale_emb": 2.0, "dim_model_base": 12},
    "nanochat": _CAP,
    "vaultgemma": _CAP,
}
"""Kinds whose class does more than apply its LM head, by ``model_type``, with settings that show it."""

HEAD_ALONE: dict[str, dict[str, Any]] = {
    "afmoe": _EXPERTS,
    "apertus": {},
    "arcee": {},
    "deepseek_v3": {**_EXPERTS, **_LATENT},
    "dots1": _EXPERTS,
    "ernie4_5": {},
    "ernie4_5_moe": _EXPERTS,
    "exaone4": {},
    "exaone_moe": _EXPERTS,
    "gemma": {},
    "glm": {},
    "glm4": {},
    "glm4_moe": _EXPERTS,
    "gpt_oss": _EXPERTS,
    "helium": {},
    "hunyuan_v1_dense": {},
    "laguna": _EXPERTS,
    "llama": {},
    "minimax_m2": {},
    "ministral3": {},
    "mistral": {},
    "mixtral": {},
    "nemotron": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "olmoe": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_moe": _EXPERTS,
    "qwen3": {},
    "qwen3_moe": _EXPERTS,
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
}
"""Kinds whose class applies its LM head and nothing else."""

KINDS = {**BEYOND_THE_HEAD, **HEAD_ALONE}


def make_kind(model_type: str, **changes: Any) -> Any:
    """A tiny model with random weights, in float32."""
    config = AutoConfig.for_model(model_type, **{**_SHAPE, **KINDS.get(model_type, {}), **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model
