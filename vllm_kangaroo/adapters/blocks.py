"""What adapters are built of, in plain torch: norm, rotary embedding, attention, feed-forward, memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from vllm_kangaroo.adapters.config import AdapterConfig


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last dimension, computed in float32 or wider."""

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size, dtype=dtype))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * wide.to(x.dtype)


class Rope(nn.Module):
    """Rotary position embedding on the two halves of each head, as in Llama."""

    def __init__(self, head_dim: int, theta: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.theta = theta

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """``positions [B, T]`` -> cosines and sines, each ``[B, 1, T, head_dim]``."""
        wide = torch.promote_types(dtype, torch.float32)
        steps = torch.arange(0, self.head_dim, 2, device=positions.device).to(wide)
        angles = positions[:, None, :, None].to(wide) * self.theta ** (-steps / self.head_dim)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply `Rope` to ``x [B, heads, T, head_dim]``."""
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-right, left), dim=-1) * sin


class AdapterAttention(nn.Module):
    """Causal grouped-query attention without biases, written out.

    On CPUs the written-out form trains several times faster than torch's fused attention.
    """

    def __init__(self, config: AdapterConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.kv_heads = config.num_key_value_heads
        self.head_dim = config.head_dim
        hidden, key = config.hidden_size, self.kv_heads * self.head_dim
        query = config.num_attention_heads * self.head_dim
        self.q_proj = nn.Linear(hidden, query, bias=False, dtype=dtype)
        self.k_proj = nn.Linear(hidden, key, bias=False, dtype=dtype)
        self.v_proj = nn.Linear(hidden, key, bias=False, dtype=dtype)
        self.o_proj = nn.Linear(query, hidden, bias=False, dtype=dtype)
        self.rope = Rope(config.head_dim, config.rope_theta)

    def forward(self, x: Tensor, positions: Tensor, seen: Tensor | None = None) -> Tensor:
        """Attend from ``x [B, T, N]`` to keys and values of ``seen``, which is ``x`` unless given."""
        seen = x if seen is None else seen
        batch, length, _ = x.shape
        shape = (batch, length, -1, self.head_dim)
        cos, sin = self.rope(positions, x.dtype)
        q = rotate(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(seen).view(shape).transpose(1, 2), cos, sin)
        v = self.v_proj(seen).view(shape).transpose(1, 2)
        # The query heads of a group meet their key head as extra rows of one product.
        q = q.reshape(batch, self.kv_heads, -1, self.head_dim)  # [B, K, G*T, head_dim]
        scores = (q @ k.transpose(-1, -2)) * self.head_dim**-0.5
        scores = scores.view(batch, self.kv_heads, -1, length, length)
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        scores = scores.masked_fill(future, float("-inf"))
        wide = torch.promote_types(x.dtype, torch.float32)
        weights = scores.softmax(dim=-1, dtype=wide).to(x.dtype)
        mixed = weights.view(batch, self.kv_heads, -1, length) @ v
        mixed = mixed.view(batch, -1, length, self.head_dim).transpose(1, 2)
        out: Tensor = self.o_proj(mixed.reshape(batch, length, -1))
        return out


class FeedForward(nn.Module):
    """The gated feed-forward part of a Llama layer: ``W_down (silu(W_gate x) * W_up x)``."""

    def __init__(self, config: AdapterConfig, dtype: torch.dtype) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        hidden, inner = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(hidden, inner, bias=False, dtype=dtype)
        self.up_proj = nn.Linear(hidden, inner, bias=False, dtype=dtype)
        self.down_proj = nn.Linear(inner, hidden, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class Memory(nn.Module):
    """What the last verified position adds to the residual stream of the drafts that follow it.

    Its input is what the target's LM head took there, ``[..., N]``, which verification has computed.
    """

    def __init__(self, config: AdapterConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False, dtype=dtype)

    def forward(self, state: Tensor) -> Tensor:
        out: Tensor = self.proj(self.norm(state))
        return out
