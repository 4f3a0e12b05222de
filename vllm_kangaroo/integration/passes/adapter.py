"""The Kangaroo adapter as a vLLM module, its keys and values in the target's own block tables."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.attention.attention import _encode_layer_name
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.models.utils import extract_layer_index

from vllm_kangaroo.adapters.checkpoint import read_weights
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.integration.passes.adapter_parts import FeedForward, Memory
from vllm_kangaroo.integration.passes.cutting import Cut, residual_stream
from vllm_kangaroo.integration.passes.draft_vocabulary import DraftVocabulary
from vllm_kangaroo.integration.passes.exit_head import ExitHead
from vllm_kangaroo.ladder.store import State

PREFIX = "kangaroo_adapter"


class AdapterLayer(nn.Module):
    """One pre-norm block, then a norm of its own (arXiv 2404.18911, section 3.2).

    As published it is attention alone. A feed-forward part and a memory are there if the kind has them: see
    :class:`vllm_kangaroo.adapters.reference.KangarooAdapter`.

    The attention layer registers itself with vLLM under its own name, so the KV cache manager gives it blocks as it
    does the target's layers: same block ids, same prefix cache.
    """

    def __init__(
        self,
        config: AdapterConfig,
        vllm_config: VllmConfig,
        layer_index: int,
        window: int | None = None,
    ) -> None:
        super().__init__()
        prefix = f"{PREFIX}.layers.{layer_index}.self_attn"
        self.head_dim = config.head_dim
        self.input_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.qkv_proj = QKVParallelLinear(
            config.hidden_size,
            config.head_dim,
            config.num_attention_heads,
            config.num_key_value_heads,
            bias=False,
            prefix=f"{prefix}.qkv_proj",
        )
        self.o_proj = RowParallelLinear(
            config.num_attention_heads * config.head_dim,
            config.hidden_size,
            bias=False,
            prefix=f"{prefix}.o_proj",
        )
        self.rotary_emb = get_rope(
            config.head_dim,
            max_position=vllm_config.model_config.max_model_len,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )
        cache_config = copy.copy(vllm_config.cache_config)
        cache_config.sliding_window = window
        self.attn = Attention(
            self.qkv_proj.num_heads,
            config.head_dim,
            config.head_dim**-0.5,
            num_kv_heads=self.qkv_proj.num_kv_heads,
            cache_config=cache_config,
            prefix=f"{prefix}.attn",
        )
        self.q_size = self.qkv_proj.num_heads * config.head_dim
        self.kv_size = self.qkv_proj.num_kv_heads * config.head_dim
        self.mlp: FeedForward | None = None
        if config.kind.feed_forward:
            self.post_attention_layernorm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.mlp = FeedForward(config, f"{PREFIX}.layers.{layer_index}.mlp")
        self.memory: Memory | None = None
        if config.kind.memory:
            self.memory = Memory(config, f"{PREFIX}.layers.{layer_index}.memory")

    def _qkv(
        self, positions: Tensor, f: Tensor, asking: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of ``asking`` (``f`` if None), keys and values of ``f``."""
        sizes = [self.q_size, self.kv_size, self.kv_size]
        if asking is None:
            qkv, _ = self.qkv_proj(self.input_layernorm(f))
            q, k, v = qkv.split(sizes, dim=-1)
        else:
            # One product over both inputs reads the weights once; a part of each result is left unused.
            both, _ = self.qkv_proj(self.input_layernorm(torch.cat((asking, f))))
            of_asking, of_f = both.chunk(2)
            q = of_asking.split(sizes, dim=-1)[0].contiguous()
            _, k, v = (part.contiguous() for part in of_f.split(sizes, dim=-1))
        q, k = self.rotary_emb(positions, q, k)
        return q, k, v

    def forward(self, positions: Tensor, f: Tensor, remembered: Tensor | None = None) -> Tensor:
        """Exit states ``f`` ``[tokens, N]`` -> what the LM head takes, ``[tokens, N]``; writes keys and values.

        Args:
            remembered: what :attr:`memory` made for each token, ``[tokens, N]``; keys and values know nothing of it.
        """
        x = f if remembered is None else f + remembered
        q, k, v = self._qkv(positions, f, None if remembered is None else x)
        attended, _ = self.o_proj(self.attn(q, k, v))
        x = x + attended
        if self.mlp is not None:
            x = x + self.mlp(self.post_attention_layernorm(x))
        return self.norm(x)

    def absorb(self, positions: Tensor, f: Tensor) -> Tensor:
        """Only write the keys and values of ``f`` ``[tokens, N]``; returns something that depends on the write."""
        q, k, v = self._qkv(positions, f)
        if self.attn.attn_backend.forward_includes_kv_cache_update or self.attn.use_direct_call:
            return self.attn(q, k, v)
        heads = (-1, self.attn.num_kv_heads, self.head_dim)
        return torch.ops.vllm.unified_kv_cache_update(
            k.reshape(heads), v.reshape(heads), _encode_layer_name(self.attn.layer_name)
        )

    def load(self, weights: dict[str, Tensor]) -> None:
        """Take a checkpoint's tensors (checked by :func:`read_weights` before)."""
        self.input_layernorm.weight.data.copy_(weights["layers.0.input_layernorm.weight"])
        self.norm.weight.data.copy_(weights["norm.weight"])
        for shard in ("q", "k", "v"):
            weight = weights[f"layers.0.self_attn.{shard}_proj.weight"]
            self.qkv_proj.weight_loader(self.qkv_proj.weight, weight, shard)
        self.o_proj.weight_loader(self.o_proj.weight, weights["layers.0.self_attn.o_proj.weight"])
        if self.mlp is not None:
            norm = weights["layers.0.post_attention_layernorm.weight"]
            self.post_attention_layernorm.weight.data.copy_(norm)
            self.mlp.load(weights, "layers.0.mlp")
        if self.memory is not None:
            self.memory.load(weights, "memory")


def window_at(target: nn.Module, exit_layer: int) -> int | None:
    """The sliding window of an adapter's attention: None where the target has a layer that attends to everything.

    Where it has none, that of the layers about the exit. A layer of another kind than all of the target's would make
    vLLM divide the KV cache into a group for each layer.
    """
    layers = [module for module in target.modules() if isinstance(module, Attention)]
    if not layers or any(layer.sliding_window is None for layer in layers):
        return None
    # The last layer below the exit, rather than the first above it.
    nearest = min(layers, key=lambda layer: abs(_number(layer) - exit_layer + 0.75))
    window: int = nearest.sliding_window
    return window


def _number(layer: Attention) -> int:
    return int(extract_layer_index(layer.layer_name))


class KangarooHead(ExitHead):
    """One :class:`AdapterLayer` before the target's LM head, or before a part of it.

    Args:
        layer_index: number of its attention layer; adapters are numbered after the target's layers.
    """

    def __init__(
        self, cut: Cut, config: AdapterConfig, vllm_config: VllmConfig, layer_index: int
    ) -> None:
        super().__init__(cut, vllm_config)
        self.config = config
        self.shape = config.shape
        window = window_at(cut.target, config.exit_layer)
        self.adapter = AdapterLayer(config, vllm_config, layer_index, window)
        self.memory_width = config.hidden_size if config.kind.memory else 0
        self.drafted: DraftVocabulary | None = None
        if config.draft_vocab_size is not None:
            self.drafted = DraftVocabulary(cut, config)
            self.vocabulary = self.drafted.token_ids

    def load(self, directory: Path) -> None:
        """See :meth:`ExitHead.load`."""
        weights = read_weights(directory, self.config)
        self.adapter.load(weights)
        if self.drafted is not None:
            self.drafted.load(weights, directory)

    def check(self, directory: Path) -> None:
        """See :meth:`ExitHead.check`."""
        if self.drafted is not None:
            self.drafted.check(directory)

    def attention_layers(self) -> tuple[str, ...]:
        """See :meth:`ExitHead.attention_layers`."""
        return (self.adapter.attn.layer_name,)

    def remember(self, hidden_states: Tensor) -> Tensor:
        """See :meth:`ExitHead.remember`."""
        assert self.adapter.memory is not None
        found: Tensor = self.adapter.memory(hidden_states)
        return found

    def absorb(self, positions: Tensor, state: State) -> Tensor:
        """See :meth:`ExitHead.absorb`."""
        return self.adapter.absorb(positions, residual_stream(state))

    def hidden(self, positions: Tensor, state: State, memory: Tensor | None) -> Tensor:
        """See :meth:`ExitHead.hidden`."""
        remembered = None
        if self.memory_width:
            assert memory is not None
            remembered = memory[:, self.memory_columns]
        found: Tensor = self.adapter(positions, residual_stream(state), remembered)
        return found

    def forward(self, positions: Tensor, state: State, memory: Tensor | None) -> Tensor:
        """See :meth:`ExitHead.forward`."""
        if self.drafted is None:
            return super().forward(positions, state, memory)
        found: Tensor = self.drafted(self.hidden(positions, state, memory))
        return found

    def draft(
        self, positions: Tensor, state: State, memory: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`ExitHead.draft`."""
        if self.drafted is None:
            return super().draft(positions, state, memory)
        columns, probabilities = self.drafted.likeliest(self.hidden(positions, state, memory))
        return self._token_ids(columns).to(torch.int32), probabilities
