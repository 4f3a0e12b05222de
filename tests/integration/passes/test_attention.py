"""Metadata of passes over part of a batch, from builders that plan into buffers they share between passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from vllm_kangaroo.integration.passes import attention as attention_module
from vllm_kangaroo.integration.passes.attention import PagedAttention
from vllm_kangaroo.integration.passes.runner_view import KVGroup
from vllm_kangaroo.integration.runner_v1.v1_view import FRESH_BUILDERS, is_fresh
from vllm_kangaroo.ladder.spans import Spans

BLOCK, LOWER, UPPER = 4, "layers.0.attn", "layers.1.attn"


class SharingBuilder:
    """Returns the same object for every pass, as if it had planned into one workspace."""

    def __init__(self) -> None:
        self.plan = SimpleNamespace()

    def build(self, common: Any) -> dict[str, Any]:
        self.plan.lengths = common.seq_lens.tolist()
        self.plan.starts = common.query_start_loc.tolist()
        self.plan.slots = common.slot_mapping.tolist()
        return {LOWER: self.plan, UPPER: self.plan}


class View:
    """Two requests, whose blocks lie apart."""

    vllm_config: Any = None
    device = torch.device("cpu")
    max_requests = 4

    def __init__(self, *, fresh: bool) -> None:
        self.builder = SharingBuilder()
        blocks = np.array([[7, 3, 0], [5, 9, 0]], dtype=np.int32)
        on_device = torch.from_numpy(blocks)
        names = (LOWER, UPPER)
        self.kv_groups = [KVGroup(names, BLOCK, blocks, on_device, self.builder.build, fresh)]
        self.request_ids = ["a", "b"]

    def prompt_tokens(self, row: int) -> int:
        return 1

    def tokens(self, row: int) -> NDArray[np.int32]:
        return np.array([1, 2], dtype=np.int32)


def spans(starts: list[int], lengths: list[int]) -> Spans:
    rows = np.arange(len(starts))
    return Spans(rows, rows, np.array(starts), np.array(lengths))


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Any:
    found = SimpleNamespace(attn_metadata={}, slot_mapping={})
    monkeypatch.setattr(attention_module, "get_forward_context", lambda: found)
    return found


def verification(attention: PagedAttention, view: View, context: Any) -> list[Any]:
    """What the last tier's layers see in a step whose lower tiers run over the ends of the spans only."""
    whole, tail = spans([2, 5], [3, 2]), spans([4, 6], [1, 1])
    with attention.over(whole) as positions:  # as vLLM does at the start of a step
        context.attn_metadata, at_first = context.attn_metadata, vars(view.builder.plan).copy()
        vllms = context.attn_metadata
    context.attn_metadata = vllms
    with attention.scheduled(whole, positions):
        with attention.over(tail):
            assert context.attn_metadata[LOWER].lengths == [5, 7]
            assert context.attn_metadata[LOWER].starts == [0, 1, 2]
        with attention.over(whole) as again:
            assert again.tolist() == [2, 3, 4, 5, 6]
            seen = vars(context.attn_metadata[UPPER]).copy()
    return [at_first, seen]


def test_the_metadata_of_a_step_are_built_again_where_another_pass_has_overwritten_them(
    context: Any,
) -> None:
    view = View(fresh=False)
    attention = PagedAttention(view, [LOWER])
    at_first, seen = verification(attention, view, context)
    assert seen == at_first
    assert seen["slots"] == [7 * BLOCK + 2, 7 * BLOCK + 3, 3 * BLOCK, 9 * BLOCK + 1, 9 * BLOCK + 2]
    assert not attention.joins


def test_taken_for_fresh_they_are_those_of_the_other_pass(context: Any) -> None:
    view = View(fresh=True)
    attention = PagedAttention(view, [LOWER])
    at_first, seen = verification(attention, view, context)
    assert seen != at_first
    assert attention.joins


def test_metadata_of_a_step_are_used_as_they_are_while_nothing_else_was_built(context: Any) -> None:
    view = View(fresh=False)
    attention = PagedAttention(view, [LOWER])
    whole = spans([2, 5], [3, 2])
    context.attn_metadata = vllms = {LOWER: object(), UPPER: object()}
    positions = torch.arange(5)
    for _ in range(2):
        with attention.scheduled(whole, positions), attention.over(whole) as given:
            assert given is positions and context.attn_metadata is vllms
    with attention.scheduled(whole, positions):
        with attention.over(spans([4, 6], [1, 1])):
            pass
        with attention.over(whole):
            assert context.attn_metadata is not vllms
    # The next step's metadata are new ones.
    with attention.scheduled(whole, positions), attention.over(whole) as given:
        assert given is positions


def test_only_builders_that_were_read_are_fresh() -> None:
    def group(name: str, **changes: Any) -> Any:
        builder = type(name, (), {})()
        return SimpleNamespace(
            **{"metadata_builders": [builder], "kernel_block_table": None} | changes
        )

    assert all(is_fresh(group(name)) for name in FRESH_BUILDERS)
    assert not is_fresh(group("FlashInferMetadataBuilder"))
    assert not is_fresh(group("SomebodysMetadataBuilder"))
    # vLLM itself maps block tables into one buffer where a backend's blocks are smaller than the manager's.
    assert not is_fresh(group("FlashAttentionMetadataBuilder", kernel_block_table=torch.zeros(1)))


def test_the_builders_named_exist() -> None:
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder
    from vllm.v1.attention.backends.flash_attn import FlashAttentionMetadataBuilder
    from vllm.v1.attention.backends.triton_attn import TritonAttentionMetadataBuilder

    found = (
        CPUAttentionMetadataBuilder,
        FlashAttentionMetadataBuilder,
        TritonAttentionMetadataBuilder,
    )
    assert {builder.__name__ for builder in found} == FRESH_BUILDERS
