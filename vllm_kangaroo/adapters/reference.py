"""The Kangaroo adapter in plain torch: the readable reference, and what training trains.

One pre-norm attention block without a feed-forward part (arXiv 2404.18911, section 3):
``f' = f + MHA(RMSNorm_in(f))`` and ``logits = W_head · RMSNorm_out(f')``, where ``f`` is the
target's residual stream at the exit layer and ``W_head`` the target's own, frozen, LM head.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vllm_kangaroo.adapters.config import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterConfig,
    AdapterError,
)


def norm_fingerprint(weight: Tensor) -> str:
    """First 16 hex digits of the SHA-256 of a final norm weight, as bfloat16 bytes.

    It tells whether an adapter meets the target that it was trained for.
    """
    data = weight.detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
    return hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


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

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        batch, length, _ = x.shape
        shape = (batch, length, -1, self.head_dim)
        cos, sin = self.rope(positions, x.dtype)
        q = rotate(self.q_proj(x).view(shape).transpose(1, 2), cos, sin)
        k = rotate(self.k_proj(x).view(shape).transpose(1, 2), cos, sin)
        v = self.v_proj(x).view(shape).transpose(1, 2)
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


class AdapterLayer(nn.Module):
    """``f + MHA(RMSNorm_in(f))``."""

    def __init__(self, config: AdapterConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = AdapterAttention(config, dtype)

    def forward(self, f: Tensor, positions: Tensor) -> Tensor:
        out: Tensor = f + self.self_attn(self.input_layernorm(f), positions)
        return out


class KangarooAdapter(nn.Module):
    """The adapter of one exit layer; parameters carry the checkpoint's tensor names."""

    def __init__(self, config: AdapterConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        dtype = dtype or getattr(torch, config.torch_dtype)
        self.layers = nn.ModuleList([AdapterLayer(config, dtype)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)

    def forward(self, f: Tensor, positions: Tensor | None = None) -> Tensor:
        """Map exit states to what the target's LM head takes.

        Args:
            f: residual stream after the exit layer, ``[B, T, N]``, whole prefixes.
            positions: ``[B, T]``; 0 to T-1 when None. Attention is causal in order of T.

        Returns:
            ``RMSNorm_out(f')``, ``[B, T, N]``.
        """
        if positions is None:
            positions = torch.arange(f.shape[1], device=f.device).expand(f.shape[0], -1)
        out: Tensor = self.norm(self.layers[0](f, positions))
        return out


def load_adapter(
    directory: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> KangarooAdapter:
    """Load a checkpoint, in its own dtype or in ``dtype``.

    Raises:
        AdapterError: see `AdapterConfig.load`.
    """
    config = AdapterConfig.load(directory)
    adapter = KangarooAdapter(config, dtype)
    adapter.load_state_dict(load_file(Path(directory) / WEIGHTS_FILE))
    return adapter


def save_adapter(
    adapter: KangarooAdapter, config: AdapterConfig, directory: str | os.PathLike[str]
) -> None:
    """Write a checkpoint, stored as ``config.torch_dtype``, into ``directory``.

    An adapter already there is replaced. ``config.json`` goes first and comes last, so that a
    crash in between leaves a directory that `AdapterConfig.load` refuses, never a mixture.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, config.torch_dtype)
    state = {
        name: tensor.detach().to(device="cpu", dtype=dtype).contiguous()
        for name, tensor in adapter.state_dict().items()
    }
    temporary = folder / f".{WEIGHTS_FILE}.{os.getpid()}"
    save_file(state, temporary, metadata={"format": "pt"})
    try:
        config.check_weights(temporary)
    except AdapterError:
        temporary.unlink()
        raise
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    temporary.replace(folder / WEIGHTS_FILE)
    config.save(folder)
