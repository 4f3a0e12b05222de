"""Expanding per-request values to draft tokens, which vLLM's CPU build gets wrong."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kangaroo.integration.sampling.cpu_sampling import expand_batch_to_tokens


@settings(deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.sampled_from([-1.0, 0.0, 0.3, 0.7, 1.5]), st.integers(0, 4)),
        min_size=1,
        max_size=6,
    ),
    replace_from=st.sampled_from([0, -1]),
)
def test_each_draft_token_has_its_requests_value(
    rows: list[tuple[float, int]], replace_from: int
) -> None:
    values = torch.tensor([value for value, _ in rows])
    ends = torch.tensor([count for _, count in rows]).cumsum(0).to(torch.int32)
    expected = [
        1.0 if value == replace_from else value for value, count in rows for _ in range(count)
    ]
    got = expand_batch_to_tokens(values, ends, len(expected), replace_from, 1)
    assert got.dtype == values.dtype
    assert got.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float32])
def test_the_dtype_stays(dtype: torch.dtype) -> None:
    got = expand_batch_to_tokens(
        torch.tensor([5, 7], dtype=dtype), torch.tensor([0, 3], dtype=torch.int32), 3
    )
    assert got.dtype == dtype
    assert got.tolist() == [7, 7, 7]
