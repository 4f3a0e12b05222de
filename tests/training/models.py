"""Tiny models with random weights, and adapters for them."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from vllm_kangaroo.adapters.checkpoint import norm_fingerprint, save_adapter
from vllm_kangaroo.adapters.config import AdapterConfig, TargetInfo
from vllm_kangaroo.adapters.reference import KangarooAdapter


def make_llama(
    folder: Path,
    *,
    tied: bool = False,
    bias: bool = False,
    dtype: torch.dtype = torch.float32,
    vocab_size: int = 97,
    kv_heads: int = 2,
) -> LlamaForCausalLM:
    """A Llama of 4 layers, hidden size 48, 6 query heads of 8, saved to folder."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        head_dim=8,
        rms_norm_eps=1e-4,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.2)
    model = model.to(dtype).eval()
    model.save_pretrained(folder)
    return model


def make_gemma(folder: Path) -> None:
    """A model that stores its norm weights less one and caps its logits."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=8,
    )
    model = Gemma2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "norm" in name else 0.2)
    model.save_pretrained(folder)


def make_adapter_for(model: LlamaForCausalLM, exit_layer: int, folder: Path) -> KangarooAdapter:
    """A random adapter for `make_llama`'s model, saved to folder."""
    torch.manual_seed(2)
    config = model.config
    adapter_config = AdapterConfig(
        exit_layer=exit_layer,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=10000.0,
        vocab_size=config.vocab_size,
        torch_dtype="float32",
        target=TargetInfo(
            name_or_path="tiny",
            architecture="LlamaForCausalLM",
            model_type="llama",
            num_hidden_layers=config.num_hidden_layers,
            norm_fingerprint=norm_fingerprint(model.model.norm.weight),
        ),
    )
    adapter = KangarooAdapter(adapter_config)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    save_adapter(adapter, adapter_config, folder)
    return adapter
