"""Paged attention as a graph needs it: of device tensors alone, over buffers that stay where they are.

vLLM's CPU attention works its metadata out on the host. Here the metadata are views of the runner's buffers, and every
number that changes from step to step is read from them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.v2.emulator.graph import Graph


def build(self: Any, common_prefix_len: int, common: Any, fast_build: bool = False) -> Any:
    """In the place of the metadata builder's ``build``."""
    return SimpleNamespace(
        starts=common.query_start_loc,
        lengths=common.seq_lens,
        table=common.block_table_tensor,
        tokens=common.num_actual_tokens,
    )


def write(
    self: Any, layer: Any, key: Tensor, value: Tensor, kv_cache: Tensor, slot_mapping: Tensor
) -> None:
    """In the place of ``do_kv_cache_update``: slot -1 goes to the block that nobody reads."""
    keys, values = _halves(kv_cache)
    size = keys.shape[2]
    slots = slot_mapping[: key.shape[0]].clamp(min=0)
    block, at = slots // size, slots % size
    keys[block, :, at] = key[: len(slots)]
    values[block, :, at] = value[: len(slots)]


def attend(
    self: Any,
    layer: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    kv_cache: Tensor,
    metadata: Any,
    output: Tensor,
    *_: Any,
    **__: Any,
) -> Tensor:
    """In the place of the implementation's ``forward``."""
    if metadata is None:
        return output
    keys, values = _halves(kv_cache)
    requests = len(metadata.lengths)
    whole = bool(Graph.recording) or metadata.tokens > len(query)
    tokens = len(query) if whole else metadata.tokens
    token = torch.arange(tokens)
    ends = metadata.starts[1 : requests + 1].contiguous().long()
    owner = torch.searchsorted(ends, token, right=True).clamp(max=requests - 1)
    place = metadata.lengths.long()[owner] - (metadata.starts.long()[owner + 1] - token)
    table = metadata.table[:requests].long().clamp(min=0)
    groups = query.shape[1] // keys.shape[1]
    k, v = (_of_requests(c, table)[owner].repeat_interleave(groups, dim=1) for c in (keys, values))
    scores = (query[:tokens].unsqueeze(2) * k).sum(-1) * self.scale
    hidden = torch.arange(k.shape[2]) > place.clamp(min=0)[:, None]
    chances = scores.masked_fill(hidden[:, None], float("-inf")).softmax(-1)
    found = (chances.unsqueeze(-1) * v).sum(2)
    output.view(-1, query.shape[1], found.shape[-1])[:tokens].copy_(found)
    return output


def _halves(kv_cache: Tensor) -> tuple[Tensor, ...]:
    blocks, heads, size, _ = kv_cache.shape
    return kv_cache.view(blocks, heads, 2 * size, -1).chunk(2, dim=2)


def _of_requests(cache: Tensor, table: Tensor) -> Tensor:
    """``[requests, heads, positions, D]``."""
    found = cache[table]
    return found.permute(0, 2, 1, 3, 4).reshape(len(table), found.shape[2], -1, found.shape[4])
