"""The V1 model runner as drafting sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.config import VllmConfig
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.utils import AttentionGroup

from vllm_kangaroo.integration.passes.runner_view import KVGroup

FRESH_BUILDERS = {
    "CPUAttentionMetadataBuilder",
    "FlashAttentionMetadataBuilder",
    "TritonAttentionMetadataBuilder",
}
"""Builders whose source was read: each metadata has buffers of its own. FlashInfer's, for one, plans into shared ones."""


class V1RunnerView:
    """See :class:`vllm_kangaroo.integration.passes.runner_view.RunnerView`. Made once block tables exist."""

    def __init__(self, runner: GPUModelRunner) -> None:
        self.vllm_config: VllmConfig = runner.vllm_config
        self.device: torch.device = runner.device
        self.max_requests: int = runner.max_num_reqs
        self.kv_groups = [
            _group(runner, gid, group.layer_names)
            for gid, group in enumerate(runner.kv_cache_config.kv_cache_groups)
        ]
        self._batch = runner.input_batch

    @property
    def request_ids(self) -> Sequence[str]:
        """By batch row."""
        names: list[str] = self._batch.req_ids
        return names

    def prompt_tokens(self, row: int) -> int:
        """Length of the prompt of a row's request."""
        return int(self._batch.num_prompt_tokens[row])

    def tokens(self, row: int) -> NDArray[np.int32]:
        """All tokens of a row's request that are final, prompt and newest token included: ``[tokens]``."""
        found: NDArray[np.int32] = self._batch.token_ids_cpu[row]
        return found[: self._batch.num_tokens_no_spec[row]]


def _group(runner: GPUModelRunner, gid: int, layer_names: list[str]) -> KVGroup:
    table = runner.input_batch.block_table[gid]

    def build(common: CommonAttentionMetadata) -> dict[str, Any]:
        by_layer: dict[str, Any] = {}
        for group in runner.attn_groups[gid]:
            built = group.build_metadata(common)
            by_layer.update(dict.fromkeys(group.layer_names, built))
        return by_layer

    blocks = table.block_table
    fresh = all(is_fresh(group) for group in runner.attn_groups[gid])
    return KVGroup(layer_names, table.block_size, blocks.np, blocks.gpu, build, fresh)


def is_fresh(group: AttentionGroup) -> bool:
    """Whether the group's backend builds metadata that share no buffer, without CUDA graphs as engines here run."""
    builders = {type(builder).__name__ for builder in group.metadata_builders}
    return builders <= FRESH_BUILDERS and group.kernel_block_table is None
