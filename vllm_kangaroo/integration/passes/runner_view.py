"""What drafting asks of a model runner. Each runner of vLLM's fills it in its own way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.config import VllmConfig
from vllm.v1.attention.backend import CommonAttentionMetadata


@dataclass(frozen=True, slots=True)
class KVGroup:
    """A KV cache group: layers that share block tables."""

    layer_names: Sequence[str]
    block_size: int
    host_blocks: NDArray[np.int32]
    """Block ids by batch row, ``[rows, blocks]``; the engine writes them before each step."""
    device_blocks: Tensor
    """The same where the model runs."""
    build: Callable[[CommonAttentionMetadata], dict[str, Any]]
    """The attention backends' metadata of a pass, by layer name."""
    fresh: bool
    """Whether metadata stays valid when :attr:`build` is called again."""


class RunnerView(Protocol):
    """A runner's batch and its paged KV."""

    vllm_config: VllmConfig
    device: torch.device
    max_requests: int

    @property
    def request_ids(self) -> Sequence[str]:
        """By batch row."""
        ...

    def prompt_tokens(self, row: int) -> int:
        """Length of the prompt of a row's request."""
        ...

    def tokens(self, row: int) -> NDArray[np.int32]:
        """All tokens of a row's request that are final, prompt and newest token included: ``[tokens]``."""
        ...

    @property
    def kv_groups(self) -> Sequence[KVGroup]:
        """In the order of vLLM's KV cache config."""
        ...
