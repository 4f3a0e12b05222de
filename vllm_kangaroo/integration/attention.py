"""Attention metadata for passes over part of the engine's batch.

vLLM builds metadata once a step for everything it scheduled. The ladder runs passes over other position ranges of
the same requests: the tail of a verification, and drafts. They read and write the same paged KV through the same
block tables; only query ranges, sequence lengths and slots differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm.forward_context import ForwardContext, get_forward_context, set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_kangaroo.ladder.spans import IntArray, Spans


class PagedAttention:
    """Serves the ladder's passes from the block tables of a V1 model runner."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.device: torch.device = runner.device
        self._scheduled: tuple[Spans, Tensor] | None = None

    @contextmanager
    def scheduled(self, spans: Spans, positions: Tensor) -> Iterator[None]:
        """Within the context, a pass over exactly ``spans`` uses the metadata vLLM has already built."""
        self._scheduled = (spans, positions)
        try:
            yield
        finally:
            self._scheduled = None

    @contextmanager
    def over(self, spans: Spans) -> Iterator[Tensor]:
        """See :class:`vllm_kangaroo.ladder.ladder.Attention`."""
        if self._scheduled is not None and _same(spans, self._scheduled[0]):
            yield self._scheduled[1]
            return
        positions = torch.from_numpy(spans.positions()).to(self.device)
        rows = torch.from_numpy(spans.rows).to(self.device)
        of_token = torch.from_numpy(np.repeat(spans.rows, spans.lengths)).to(self.device)
        starts = torch.from_numpy(spans.offsets()).to(torch.int32)
        common = self._common(starts, spans.ends, spans.tokens, int(spans.lengths.max()))
        metadata: dict[str, Any] = {}
        slot_mapping: dict[str, Tensor] = {}
        for gid, group in enumerate(self.runner.kv_cache_config.kv_cache_groups):
            table = self.runner.input_batch.block_table[gid]
            blocks = table.block_table.gpu
            common.block_table_tensor = blocks.index_select(0, rows)
            size = table.block_size
            common.slot_mapping = blocks[of_token, positions // size] * size + positions % size
            self._build(gid, common, metadata)
            slot_mapping.update(dict.fromkeys(group.layer_names, common.slot_mapping))
        with set_forward_context(
            metadata, self.runner.vllm_config, num_tokens=spans.tokens, slot_mapping=slot_mapping
        ):
            yield positions

    @contextmanager
    def chain(self, rows: IntArray, starts: IntArray, steps: int) -> Iterator[DraftChain]:
        """See :class:`vllm_kangaroo.drafting.kangaroo.ChainAttention`."""
        # The context is entered once a round; a chain changes what is in it from step to step.
        with set_forward_context(
            {}, self.runner.vllm_config, num_tokens=len(rows), slot_mapping={}
        ):
            yield DraftChain(self, get_forward_context(), rows, starts, steps)

    def _common(
        self, query_starts: Tensor, ends: IntArray, tokens: int, longest: int
    ) -> CommonAttentionMetadata:
        seq_lens = torch.from_numpy(ends).to(torch.int32)
        on_device = seq_lens.to(self.device)
        return CommonAttentionMetadata(
            query_start_loc=query_starts.to(self.device),
            query_start_loc_cpu=query_starts,
            seq_lens=on_device,
            seq_lens_cpu_upper_bound=seq_lens,
            num_reqs=len(ends),
            num_actual_tokens=tokens,
            max_query_len=longest,
            max_seq_len=int(ends.max()),
            block_table_tensor=on_device,  # replaced per KV cache group
            slot_mapping=on_device,
            causal=True,
        )

    def _build(self, gid: int, common: CommonAttentionMetadata, into: dict[str, Any]) -> None:
        for attention_group in self.runner.attn_groups[gid]:
            built = attention_group.build_metadata(common)
            into.update(dict.fromkeys(attention_group.layer_names, built))


class DraftChain:
    """One-token passes of the same requests, one position further each step."""

    def __init__(
        self,
        attention: PagedAttention,
        context: ForwardContext,
        rows: IntArray,
        starts: IntArray,
        steps: int,
    ) -> None:
        self._attention = attention
        self._context = context
        device = attention.device
        runner = attention.runner
        self._step = 0
        self._all_positions = torch.from_numpy(starts + np.arange(steps)[:, None]).to(
            device
        )  # [steps, requests]
        on_device = torch.from_numpy(rows).to(device)
        self._groups: list[
            tuple[int, list[str], Tensor, Tensor]
        ] = []  # gid, layers, blocks, slots [steps, requests]
        for gid, group in enumerate(runner.kv_cache_config.kv_cache_groups):
            table = runner.input_batch.block_table[gid]
            blocks = table.block_table.gpu.index_select(0, on_device)
            size = table.block_size
            at = (self._all_positions // size).t()
            slots = blocks.gather(1, at).t() * size + self._all_positions % size
            self._groups.append((gid, group.layer_names, blocks, slots.contiguous()))
        count = torch.arange(len(rows) + 1, dtype=torch.int32)
        self._common = attention._common(count, starts + 1, len(rows), 1)
        self._enter()

    def _enter(self) -> None:
        self.positions = self._all_positions[self._step]
        metadata: dict[str, Any] = {}
        slot_mapping: dict[str, Tensor] = {}
        common = self._common
        for gid, layers, blocks, slots in self._groups:
            common.block_table_tensor, common.slot_mapping = blocks, slots[self._step]
            self._attention._build(gid, common, metadata)
            slot_mapping.update(dict.fromkeys(layers, common.slot_mapping))
        self._context.attn_metadata = metadata
        self._context.slot_mapping = slot_mapping

    def advance(self) -> None:
        """See :class:`vllm_kangaroo.drafting.kangaroo.Chain`."""
        self._step += 1
        common = self._common
        # New tensors: on a GPU the last pass may still be reading the old ones.
        common.seq_lens = common.seq_lens + 1
        common.seq_lens_cpu_upper_bound = common.seq_lens_cpu_upper_bound + 1
        common.max_seq_len += 1
        self._enter()

    def retain(self, which: IntArray) -> None:
        """See :class:`vllm_kangaroo.drafting.kangaroo.Chain`."""
        keep = torch.from_numpy(which)
        on_device = keep.to(self._attention.device)
        self._all_positions = self._all_positions.index_select(1, on_device)
        self._groups = [
            (gid, layers, blocks.index_select(0, on_device), slots.index_select(1, on_device))
            for gid, layers, blocks, slots in self._groups
        ]
        common = self._common
        common.seq_lens = common.seq_lens.index_select(0, on_device)
        common.seq_lens_cpu_upper_bound = common.seq_lens_cpu_upper_bound.index_select(0, keep)
        common.query_start_loc = common.query_start_loc[: len(which) + 1]
        common.query_start_loc_cpu = common.query_start_loc_cpu[: len(which) + 1]
        common.num_reqs = common.num_actual_tokens = len(which)
        common.max_seq_len = int(common.seq_lens_cpu_upper_bound.max())


def _same(ours: Spans, scheduled: Spans) -> bool:
    if ours is scheduled:
        return True
    return len(ours.rows) == len(scheduled.rows) and bool((ours.starts == scheduled.starts).all())
