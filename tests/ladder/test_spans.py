"""Ragged ranges against plain Python."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_kangaroo.ladder.spans import Spans, ragged_arange

ranges = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 6)), max_size=8)


def make(pairs: list[tuple[int, int]]) -> Spans:
    count = len(pairs)
    starts = np.array([start for start, _ in pairs], dtype=np.int64)
    lengths = np.array([length for _, length in pairs], dtype=np.int64)
    return Spans(np.arange(count), 100 + np.arange(count), starts, lengths)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), max_size=8))
def test_ragged_arange(lengths: list[int]) -> None:
    expected = [step for length in lengths for step in range(length)]
    assert ragged_arange(np.array(lengths, dtype=np.int64)).tolist() == expected


@settings(deadline=None)
@given(ranges)
def test_positions_and_offsets_follow_the_requests(pairs: list[tuple[int, int]]) -> None:
    spans = make(pairs)
    assert spans.positions().tolist() == [
        position for start, length in pairs for position in range(start, start + length)
    ]
    lengths = [length for _, length in pairs]
    assert spans.offsets().tolist() == [sum(lengths[:at]) for at in range(len(pairs) + 1)]
    assert spans.tokens == sum(lengths)
    assert spans.ends.tolist() == [start + length for start, length in pairs]


@settings(deadline=None)
@given(ranges, st.data())
def test_pick_keeps_whole_requests(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    spans = make(pairs)
    which = data.draw(st.lists(st.booleans(), min_size=len(pairs), max_size=len(pairs)))
    by_mask = spans.pick(np.array(which, dtype=bool))
    by_index = spans.pick(np.flatnonzero(which))
    for picked in (by_mask, by_index):
        kept = [at for at, keep in enumerate(which) if keep]
        assert picked.rows.tolist() == kept
        assert picked.slots.tolist() == [100 + at for at in kept]
        assert list(zip(picked.starts, picked.lengths, strict=True)) == [pairs[at] for at in kept]


@settings(deadline=None)
@given(ranges, st.data())
def test_tail_drops_leading_positions(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    spans = make(pairs)
    skip = [data.draw(st.integers(0, length)) for _, length in pairs]
    tail = spans.tail(np.array(skip, dtype=np.int64))
    assert tail.positions().tolist() == [
        position
        for (start, length), cut in zip(pairs, skip, strict=True)
        for position in range(start + cut, start + length)
    ]
    assert tail.ends.tolist() == spans.ends.tolist()
    assert tail.slots.tolist() == spans.slots.tolist()
