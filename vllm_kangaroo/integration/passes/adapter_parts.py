"""What an adapter may have beside its attention, as vLLM modules."""

from __future__ import annotations

from torch import Tensor, nn
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import (
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)

from vllm_kangaroo.adapters.config import AdapterConfig


class FeedForward(nn.Module):
    """The gated feed-forward part of a Llama layer, split over tensor-parallel ranks as those of the target are."""

    def __init__(self, config: AdapterConfig, prefix: str) -> None:
        super().__init__()
        assert config.intermediate_size is not None
        self.gate_up_proj = MergedColumnParallelLinear(
            config.hidden_size,
            [config.intermediate_size] * 2,
            bias=False,
            prefix=f"{prefix}.gate_up_proj",
        )
        self.down_proj = RowParallelLinear(
            config.intermediate_size, config.hidden_size, bias=False, prefix=f"{prefix}.down_proj"
        )
        self.act = SiluAndMul()

    def forward(self, x: Tensor) -> Tensor:
        """``[tokens, N]`` -> ``[tokens, N]``."""
        inner, _ = self.gate_up_proj(x)
        out: Tensor = self.down_proj(self.act(inner))[0]
        return out

    def load(self, weights: dict[str, Tensor], name: str) -> None:
        """Take the checkpoint's tensors under ``name``."""
        for shard, part in enumerate(("gate_proj", "up_proj")):
            weight = self.gate_up_proj.weight
            self.gate_up_proj.weight_loader(weight, weights[f"{name}.{part}.weight"], shard)
        self.down_proj.weight_loader(self.down_proj.weight, weights[f"{name}.down_proj.weight"])


class Memory(nn.Module):
    """What a verified position adds to the residual stream of the drafts after it."""

    def __init__(self, config: AdapterConfig, prefix: str) -> None:
        super().__init__()
        self.norm = RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.proj = ReplicatedLinear(
            config.hidden_size, config.hidden_size, bias=False, prefix=f"{prefix}.proj"
        )

    def forward(self, hidden_states: Tensor) -> Tensor:
        """The target's final normed states ``[requests, N]`` -> ``[requests, N]``."""
        out: Tensor = self.proj(self.norm(hidden_states))[0]
        return out

    def load(self, weights: dict[str, Tensor], name: str) -> None:
        """Take the checkpoint's tensors under ``name``."""
        self.norm.weight.data.copy_(weights[f"{name}.norm.weight"])
        self.proj.weight_loader(self.proj.weight, weights[f"{name}.proj.weight"])
