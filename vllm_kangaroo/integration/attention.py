"""Attention metadata for passes over part of the engine's batch.

vLLM builds metadata once a step for everything it scheduled. The ladder runs passes over other position ranges of
the same requests: the tail of a verification, and drafts. They read and write the same paged KV through the same
block tables; only query ranges, sequence lengths and slots differ.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
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
        flat = spans.positions()
        of_token = np.repeat(spans.rows, spans.lengths)
        positions = self.to_device(flat)
        rows = self.to_device(spans.rows)
        starts = torch.from_numpy(spans.offsets()).to(torch.int32)
        common = self.common(starts, spans.ends, spans.tokens, int(spans.lengths.max()))
        metadata: dict[str, Any] = {}
        slot_mapping: dict[str, Tensor] = {}
        for gid, group in enumerate(self.runner.kv_cache_config.kv_cache_groups):
            table = self.runner.input_batch.block_table[gid]
            size = table.block_size
            slots = (
                table.block_table.np[of_token, flat // size].astype(np.int64) * size + flat % size
            )
            common.block_table_tensor = table.block_table.gpu.index_select(0, rows)
            common.slot_mapping = self.to_device(slots)
            self.build(gid, common, metadata)
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

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """A host array as a tensor where the model runs."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def common(
        self, query_starts: Tensor, ends: IntArray, tokens: int, longest: int
    ) -> CommonAttentionMetadata:
        """Metadata of a pass, but for block table and slots, which differ per KV cache group."""
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

    def build(self, gid: int, common: CommonAttentionMetadata, into: dict[str, Any]) -> None:
        """Build the metadata of KV cache group ``gid`` from ``common`` for each of its layers."""
        for attention_group in self.runner.attn_groups[gid]:
            built = attention_group.build_metadata(common)
            into.update(dict.fromkeys(attention_group.layer_names, built))


class DraftChain:
    """One-token passes of the same requests, one position further each step.

    Everything that differs between steps is worked out for the whole chain at the start, on the host: a draft step
    of a small model is short, and what lies outside its pass counts.
    """

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
        runner = attention.runner
        self._step = 0
        positions = starts + np.arange(steps)[:, None]  # [steps, requests]
        self._all_positions = attention.to_device(positions)
        self._lengths = (positions + 1).astype(np.int32)
        self._seq_lens = attention.to_device(self._lengths)
        self._groups: list[_ChainGroup] = []
        for gid, group in enumerate(runner.kv_cache_config.kv_cache_groups):
            table = runner.input_batch.block_table[gid]
            size = table.block_size
            slots = (
                table.block_table.np[rows, positions // size].astype(np.int64) * size
                + positions % size
            )
            blocks = table.block_table.gpu.index_select(0, attention.to_device(rows))
            self._groups.append(
                _ChainGroup(gid, group.layer_names, blocks, attention.to_device(slots))
            )
        count = torch.arange(len(rows) + 1, dtype=torch.int32)
        self._common = attention.common(count, self._lengths[0], len(rows), 1)
        self._enter()

    def _enter(self) -> None:
        step, common = self._step, self._common
        self.positions = self._all_positions[step]
        common.seq_lens = self._seq_lens[step]
        lengths = self._lengths[step]
        common.seq_lens_cpu_upper_bound = torch.from_numpy(lengths)
        common.max_seq_len = int(lengths.max())
        metadata: dict[str, Any] = {}
        slot_mapping: dict[str, Tensor] = {}
        for group in self._groups:
            common.block_table_tensor, common.slot_mapping = group.blocks, group.slots[step]
            self._attention.build(group.gid, common, metadata)
            slot_mapping.update(dict.fromkeys(group.layer_names, common.slot_mapping))
        self._context.attn_metadata = metadata
        self._context.slot_mapping = slot_mapping

    def advance(self) -> None:
        """See :class:`vllm_kangaroo.drafting.kangaroo.Chain`."""
        self._step += 1
        self._enter()

    def retain(self, which: IntArray) -> None:
        """See :class:`vllm_kangaroo.drafting.kangaroo.Chain`."""
        on_device = self._attention.to_device(which)
        self._all_positions = self._all_positions.index_select(1, on_device)
        self._seq_lens = self._seq_lens.index_select(1, on_device)
        self._lengths = self._lengths[:, which]
        for group in self._groups:
            group.blocks = group.blocks.index_select(0, on_device)
            group.slots = group.slots.index_select(1, on_device)
        common = self._common
        common.query_start_loc = common.query_start_loc[: len(which) + 1]
        common.query_start_loc_cpu = common.query_start_loc_cpu[: len(which) + 1]
        common.num_reqs = common.num_actual_tokens = len(which)


@dataclass(slots=True)
class _ChainGroup:
    """A KV cache group's share of a chain: ``blocks [requests, n]``, ``slots [steps, requests]``."""

    gid: int
    layer_names: list[str]
    blocks: Tensor
    slots: Tensor


def _same(ours: Spans, scheduled: Spans) -> bool:
    if ours is scheduled:
        return True
    return len(ours.rows) == len(scheduled.rows) and bool((ours.starts == scheduled.starts).all())
