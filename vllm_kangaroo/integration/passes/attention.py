"""Attention metadata for passes over part of the engine's batch.

vLLM builds metadata once a step for everything it scheduled. The ladder runs passes over other position ranges of
the same requests: the tail of a verification, and drafts. They read and write the same paged KV through the same
block tables; only query ranges, sequence lengths and slots differ.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.forward_context import ForwardContext, get_forward_context, set_forward_context
from vllm.v1.attention.backend import CommonAttentionMetadata

from vllm_kangaroo.integration.passes.runner_view import KVGroup, RunnerView
from vllm_kangaroo.ladder.spans import IntArray, Spans


class PagedAttention:
    """Serves the ladder's passes from a runner's block tables."""

    def __init__(self, view: RunnerView, lower_layers: Collection[str]) -> None:
        """Serve the passes of a runner; ``lower_layers`` name the attention layers below the last tier."""
        self.view = view
        self.lower_layers = lower_layers
        self.device = view.device
        self.counting = torch.arange(view.max_requests + 1, dtype=torch.int32)
        self.fresh = all(group.fresh for group in view.kv_groups)
        self._scheduled: tuple[Spans, Tensor] | None = None
        self._overwritten = False

    @property
    def joins(self) -> bool:
        """Whether :meth:`joined` can be served: it needs metadata of two passes at once."""
        return self.fresh

    @contextmanager
    def scheduled(self, spans: Spans, positions: Tensor) -> Iterator[None]:
        """Within the context, a pass over exactly ``spans`` uses the metadata vLLM has already built."""
        self._scheduled, self._overwritten = (spans, positions), False
        try:
            yield
        finally:
            self._scheduled = None

    @contextmanager
    def drafting(self) -> Iterator[None]:
        """Passes outside vLLM's own forward context run within this one, entered once for all of a round."""
        with set_forward_context({}, self.view.vllm_config, num_tokens=0, slot_mapping={}):
            yield

    @contextmanager
    def over(self, spans: Spans) -> Iterator[Tensor]:
        """See :class:`vllm_kangaroo.ladder.interfaces.Attention`."""
        if self._scheduled is not None and spans.same(self._scheduled[0]) and not self._overwritten:
            yield self._scheduled[1]
            return
        # Builders that plan into shared buffers take what vLLM has built for the step with them.
        self._overwritten = not self.fresh
        flat = spans.positions()
        of_token = np.repeat(spans.rows, spans.lengths)
        positions = self.to_device(flat)
        starts = torch.from_numpy(spans.offsets().astype(np.int32))
        lengths = spans.ends.astype(np.int32)
        common = self.common(
            starts,
            torch.from_numpy(lengths),
            self.to_device(lengths),
            len(flat),
            int(spans.lengths.max()),
        )
        by_layer: dict[str, Any] = {}
        slot_mapping: dict[str, Tensor] = {}
        for group in self.view.kv_groups:
            block, offset = np.divmod(flat, group.block_size)
            slots = group.host_blocks[of_token, block].astype(np.int64) * group.block_size
            common.block_table_tensor = self.rows_of(group.device_blocks, spans.rows)
            common.slot_mapping = self.to_device(slots + offset)
            by_layer.update(group.build(common))
            slot_mapping.update(dict.fromkeys(group.layer_names, common.slot_mapping))
        context = get_forward_context()
        outer = context.attn_metadata, context.slot_mapping
        context.attn_metadata, context.slot_mapping = by_layer, slot_mapping
        try:
            yield positions
        finally:
            context.attn_metadata, context.slot_mapping = outer

    @contextmanager
    def joined(self, tail: Spans, spans: Spans) -> Iterator[tuple[Tensor, Tensor]]:
        """See :class:`vllm_kangaroo.ladder.interfaces.Attention`."""
        assert self.joins and self._scheduled is not None and spans.same(self._scheduled[0])
        context = get_forward_context()
        metadata, slot_mapping = cast(Any, context.attn_metadata), cast(Any, context.slot_mapping)
        with self.over(tail) as positions:
            context.attn_metadata = metadata | self._lower(context.attn_metadata)
            context.slot_mapping = slot_mapping | self._lower(context.slot_mapping)
            yield positions, self._scheduled[1]

    def _lower(self, of_layers: Any) -> dict[str, Any]:
        return {name: of_layers[name] for name in self.lower_layers}

    @contextmanager
    def chain(self, rows: IntArray, starts: IntArray, steps: int) -> Iterator[DraftChain]:
        """See :class:`vllm_kangaroo.drafting.kangaroo.ChainAttention`."""
        yield DraftChain(self, get_forward_context(), rows, starts, steps)

    def to_device(self, array: NDArray[Any]) -> Tensor:
        """A host array as a tensor where the model runs."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def rows_of(self, table: Tensor, rows: IntArray) -> Tensor:
        """Some rows of a device tensor, without a copy where they are neighbours."""
        first, last = int(rows[0]), int(rows[-1])
        if last - first + 1 == len(rows):
            return table[first : last + 1]
        return table.index_select(0, self.to_device(rows))

    def common(
        self,
        query_starts: Tensor,
        host_lengths: Tensor,
        lengths: Tensor,
        tokens: int,
        longest_query: int,
    ) -> CommonAttentionMetadata:
        """Metadata of a pass, but for block table and slots, which differ per KV cache group.

        Args:
            query_starts: ``[requests + 1]`` int32 on the host.
            host_lengths, lengths: ``[requests]`` int32, positions visible to each request's last token.
        """
        return CommonAttentionMetadata(
            query_start_loc=query_starts.to(self.device),
            query_start_loc_cpu=query_starts,
            seq_lens=lengths,
            seq_lens_cpu_upper_bound=host_lengths,
            num_reqs=len(lengths),
            num_actual_tokens=tokens,
            max_query_len=longest_query,
            max_seq_len=int(host_lengths.max()),
            block_table_tensor=lengths,  # replaced per KV cache group
            slot_mapping=lengths,
            causal=True,
        )


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
        count = len(rows)
        positions = starts + np.arange(steps)[:, None]  # [steps, requests]
        lengths = (positions + 1).astype(np.int32)
        self._longest: list[int] = lengths.max(axis=1).tolist()
        self._positions = attention.to_device(positions).unbind()
        self._host_lengths = torch.from_numpy(lengths).unbind()
        on_cpu = attention.device.type == "cpu"
        self._lengths = self._host_lengths if on_cpu else attention.to_device(lengths).unbind()
        self._groups: list[_ChainGroup] = []
        for group in attention.view.kv_groups:
            block, offset = np.divmod(positions, group.block_size)
            # A request near the model's length limit leaves the chain before it gets past its last block.
            block = np.minimum(block, group.host_blocks.shape[1] - 1)
            slots = group.host_blocks[rows, block].astype(np.int64) * group.block_size + offset
            blocks = attention.rows_of(group.device_blocks, rows)
            self._groups.append(_ChainGroup(group, blocks, attention.to_device(slots).unbind()))
        self._common = attention.common(
            attention.counting[: count + 1], self._host_lengths[0], self._lengths[0], count, 1
        )
        self._step = 0
        self._enter()

    def _enter(self) -> None:
        step, common = self._step, self._common
        self.positions = self._positions[step]
        common.seq_lens = self._lengths[step]
        common.seq_lens_cpu_upper_bound = self._host_lengths[step]
        common.max_seq_len = self._longest[step]
        by_layer: dict[str, Any] = {}
        slot_mapping: dict[str, Tensor] = {}
        for group in self._groups:
            common.block_table_tensor, common.slot_mapping = group.blocks, group.slots[step]
            by_layer.update(group.of.build(common))
            slot_mapping.update(dict.fromkeys(group.of.layer_names, common.slot_mapping))
        self._context.attn_metadata = by_layer
        self._context.slot_mapping = slot_mapping

    def advance(self) -> None:
        """See :class:`vllm_kangaroo.drafting.kangaroo.Chain`."""
        self._step += 1
        self._enter()

    def retain(self, which: IntArray) -> None:
        """See :class:`vllm_kangaroo.drafting.kangaroo.Chain`."""
        on_host = torch.from_numpy(which)
        on_device = self._attention.to_device(which)

        def kept(steps: Sequence[Tensor], index: Tensor) -> tuple[Tensor, ...]:
            return torch.stack(tuple(steps)).index_select(1, index).unbind()

        self._positions = kept(self._positions, on_device)
        self._host_lengths = kept(self._host_lengths, on_host)
        self._lengths = kept(self._lengths, on_device)
        for group in self._groups:
            group.blocks = group.blocks.index_select(0, on_device)
            group.slots = kept(group.slots, on_device)
        common, count = self._common, len(which)
        common.query_start_loc = common.query_start_loc[: count + 1]
        common.query_start_loc_cpu = common.query_start_loc_cpu[: count + 1]
        common.num_reqs = common.num_actual_tokens = count


@dataclass(slots=True)
class _ChainGroup:
    """A KV cache group's share of a chain: ``blocks [requests, n]``, ``slots`` ``[requests]`` per step."""

    of: KVGroup
    blocks: Tensor
    slots: Sequence[Tensor]
