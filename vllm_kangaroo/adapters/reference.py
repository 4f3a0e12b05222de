"""The Kangaroo adapter in plain torch: the readable reference, and what training trains.

As published it is one pre-norm attention block without a feed-forward part (arXiv 2404.18911,
section 3): ``f' = f + MHA(RMSNorm_in(f))`` and ``logits = W_head · RMSNorm_out(f')``, where ``f`` is
the target's residual stream at the exit layer and ``W_head`` the target's own, frozen, LM head.
The other kinds add a feed-forward part, and a memory of the last verified position.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vllm_kangaroo.adapters.blocks import AdapterAttention, FeedForward, Memory, RMSNorm
from vllm_kangaroo.adapters.config import AdapterConfig


class AdapterLayer(nn.Module):
    """``x + MHA(RMSNorm_in(x))``, and a feed-forward part in the same manner if the kind has one."""

    def __init__(self, config: AdapterConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.self_attn = AdapterAttention(config, dtype)
        self.mlp: FeedForward | None = None
        if config.kind.feed_forward:
            self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
            self.mlp = FeedForward(config, dtype)

    def forward(
        self,
        f: Tensor,
        positions: Tensor,
        remembered: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """``f [B, T, N]``; ``remembered [B, T, N]`` is added to what asks, not to keys and values.

        Keys and values of a position then depend on nothing that verification has yet to compute.
        """
        seen = self.input_layernorm(f)
        x = f if remembered is None else f + remembered
        asking = seen if remembered is None else self.input_layernorm(x)
        x = x + self.self_attn(asking, positions, seen)
        if wanted is not None:
            x = x[wanted]
        if self.mlp is not None:
            x = x + self.mlp(self.post_attention_layernorm(x))
        return x


class KangarooAdapter(nn.Module):
    """The adapter of one exit layer, of any kind; parameters carry the checkpoint's tensor names."""

    draft_vocab: Tensor | None
    """The token ids that a reduced head knows, ascending, int64 ``[Vd]``; None: all."""

    def __init__(self, config: AdapterConfig, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.config = config
        dtype = dtype or getattr(torch, config.torch_dtype)
        self.layers = nn.ModuleList([AdapterLayer(config, dtype)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype)
        self.memory = Memory(config, dtype) if config.kind.memory else None
        size = config.draft_vocab_size
        self.register_buffer("draft_vocab", None if size is None else torch.arange(size))

    def forward(
        self,
        f: Tensor,
        positions: Tensor | None = None,
        memory: Tensor | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Map exit states to what the target's LM head takes.

        Args:
            f: residual stream after the exit layer, ``[B, T, N]``, whole prefixes.
            positions: ``[B, T]``; 0 to T-1 when None. Attention is causal in order of T.
            memory: for each position the final normed state of the position that was verified last
                when it drafted, ``[B, T, N]``; of adapters with a memory only, and zeros when None.
            wanted: the positions whose outputs are asked for, bool ``[B, T]``; all when None. The others
                are attended to, and have no feed-forward part computed.

        Returns:
            ``RMSNorm_out(f')``, ``[B, T, N]``, or ``[M, N]`` of the M that are wanted.
        """
        if positions is None:
            positions = torch.arange(f.shape[1], device=f.device).expand(f.shape[0], -1)
        remembered = None
        if self.memory is not None:
            remembered = self.memory(torch.zeros_like(f) if memory is None else memory)
        out: Tensor = self.norm(self.layers[0](f, positions, remembered, wanted))
        return out
