"""The exit store: a ring per slot, and the tokens its entries were computed for."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm_kangaroo.ladder.store import ExitStore

CPU = torch.device("cpu")
SLOTS, LONGEST = 3, 30


def states(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, generator=generator), torch.randn(count, 2, generator=generator)


@settings(deadline=None)
@given(
    width=st.integers(1, 7),
    writes=st.lists(
        st.tuples(st.integers(0, SLOTS - 1), st.integers(0, LONGEST), st.integers(1, 7)),
        min_size=1,
        max_size=12,
    ),
)
def test_the_last_width_positions_of_a_slot_are_there(
    width: int, writes: list[tuple[int, int, int]]
) -> None:
    store = ExitStore(width, CPU)
    store.reserve(SLOTS)
    reference: dict[tuple[int, int], dict[int, tuple[Tensor, Tensor]]] = {}
    for number, (slot, start, wanted) in enumerate(writes):
        count = min(wanted, width)
        positions = start + np.arange(count)
        hidden, residual = states(count, number)
        store.put(store.index(np.full(count, slot), positions), (hidden, residual))
        for at, position in enumerate(positions.tolist()):
            # A position takes the place of the one it shares a ring index with.
            reference[slot, position % width] = {position: (hidden[at], residual[at])}
    for (slot, _), held in reference.items():
        for position, (hidden_row, residual_row) in held.items():
            got = store.get(store.index(np.array([slot]), np.array([position])))
            assert torch.equal(got[0][0], hidden_row)
            assert torch.equal(got[1][0], residual_row)


def test_what_is_read_is_a_copy() -> None:
    store = ExitStore(4, CPU)
    store.reserve(1)
    index = store.index(np.array([0, 0]), np.array([5, 6]))
    hidden, residual = states(2, 0)
    store.put(index, (hidden, residual))
    for part in store.get(index):
        part.zero_()
    assert torch.equal(store.get(index)[0], hidden)
    hidden_before = hidden.clone()
    hidden.zero_()  # nor is what was given kept by reference
    assert torch.equal(store.get(index)[0], hidden_before)


def test_growing_keeps_states_and_tokens() -> None:
    store = ExitStore(4, CPU)
    store.reserve(2)
    index = store.index(np.array([1, 1]), np.array([8, 9]))
    hidden, residual = states(2, 0)
    store.put(index, (hidden, residual))
    store.note_tokens(1, 8, [3, 4])
    small = store.nbytes
    store.reserve(50)
    assert store.nbytes >= 25 * small
    assert torch.equal(store.get(index)[0], hidden)
    assert torch.equal(store.get(index)[1], residual)
    kept = store.matching(np.array([1]), np.array([8]), np.array([4]), np.array([[3, 4, -2, -2]]))
    assert kept.tolist() == [2]
    store.reserve(10)  # never shrinks
    assert len(store.token_ids) >= 50


def test_an_empty_store_takes_no_memory() -> None:
    store = ExitStore(4, CPU)
    store.reserve(100)
    assert store.nbytes == 0


@settings(deadline=None)
@given(
    width=st.integers(1, 6),
    rows=st.lists(
        st.tuples(
            st.integers(0, LONGEST),
            st.lists(st.integers(0, 2), min_size=6, max_size=6),
            st.lists(st.integers(0, 2), min_size=6, max_size=6),
            st.integers(0, 6),
        ),
        min_size=1,
        max_size=4,
    ),
)
def test_matching_counts_the_leading_tokens_that_agree(
    width: int, rows: list[tuple[int, list[int], list[int], int]]
) -> None:
    store = ExitStore(width, CPU)
    store.reserve(len(rows))
    expected = []
    for slot, (start, noted, wanted, limit) in enumerate(rows):
        store.note_tokens(slot, start, noted[:width])
        agreeing = 0
        while agreeing < min(limit, width) and noted[agreeing] == wanted[agreeing]:
            agreeing += 1
        expected.append(agreeing)
    got = store.matching(
        np.arange(len(rows)),
        np.array([row[0] for row in rows]),
        np.array([row[3] for row in rows]),
        np.array([row[2][:width] for row in rows]),
    )
    assert got.tolist() == expected
