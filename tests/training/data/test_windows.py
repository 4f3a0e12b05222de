"""Packing, splitting and the order of windows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_kangaroo.training.data.documents import DataError, Document
from vllm_kangaroo.training.data.windows import Order, Windows, pack


def document(first: int, length: int) -> Document:
    """Ids from ``first`` on; every third one counts."""
    ids = np.arange(first, first + length, dtype=np.int32)
    return Document(ids, ids % 3 == 0)


def test_a_position_counts_if_the_token_after_it_does() -> None:
    windows = pack([document(100 * i, 30) for i in range(5)], 8, seed=0)
    assert windows.ids.shape == (150 // 8, 8)
    ids, counted = windows.ids.reshape(-1), windows.counted.reshape(-1)
    assert (counted[:-1] == (ids[1:] % 3 == 0)).all()
    assert counted.any() and not counted.all()
    begins = windows.begins.reshape(-1)
    assert begins.sum() == 5 and (ids[begins] % 100 == 0).all()


@given(
    lengths=st.lists(st.integers(0, 9), min_size=1, max_size=9),
    window=st.integers(1, 7),
    seed=st.integers(0, 3),
)
def test_next_tokens_stand_in_the_window_and_in_the_document(
    lengths: list[int], window: int, seed: int
) -> None:
    """Ids are consecutive inside a document, and further apart between two."""
    documents = [
        Document(np.arange(n, dtype=np.int32) + 100 * i, np.ones(n, np.bool_))
        for i, n in enumerate(lengths)
    ]
    if sum(lengths) < max(window, 2):
        return
    told = pack(documents, window, seed).with_next_token()
    follows = np.zeros_like(told.counted)
    follows[:, :-1] = np.diff(told.ids) == 1
    assert (told.counted == follows).all()


def test_next_tokens_are_counted_only_where_the_loss_counts() -> None:
    windows = pack([document(100 * i, 30) for i in range(5)], 8, seed=0)
    told = windows.with_next_token()
    assert (told.counted <= windows.counted).all()
    lost = windows.counted & ~told.counted
    assert (lost[:, :-1] == (windows.counted & np.roll(windows.begins, -1))[:, :-1]).all()
    assert lost[:, :-1].any() and (lost[:, -1] == windows.counted[:, -1]).all()


def test_documents_stay_whole_and_their_order_is_the_seed_s() -> None:
    documents = [document(100 * i, 40) for i in range(8)]
    one, same, other = (pack(documents, 40, seed) for seed in (1, 1, 2))
    assert (np.diff(one.ids) == 1).all()
    assert (one.ids == same.ids).all()
    assert (one.ids != other.ids).any()
    assert sorted(one.ids[:, 0]) == sorted(other.ids[:, 0])


def test_split_loses_and_doubles_nothing() -> None:
    windows = pack([document(0, 1000)], 10, seed=0)
    kept, held = windows.split(0.1, most=64)
    assert (len(kept), len(held)) == (90, 10)
    together = np.concatenate((kept.ids, held.ids)).reshape(-1)
    assert sorted(together) == list(range(1000))
    assert len(windows.split(0.5, most=7)[1]) == 7
    assert [int(part.begins.sum()) for part in (kept, held)] == [0, 1]  # the first is held out
    assert len(windows.split(0.001, most=7)[1]) == 1


@given(
    windows=st.integers(1, 30),
    batch=st.integers(1, 12),
    seed=st.integers(0, 5),
    step=st.integers(0, 40),
)
def test_order_is_a_permutation_each_pass_and_depends_on_nothing_but_the_step(
    windows: int, batch: int, seed: int, step: int
) -> None:
    order = Order(windows, batch, seed)
    rows = np.concatenate([order.rows(s) for s in range(step + 1)])
    for begin in range(0, len(rows), windows):
        part = rows[begin : begin + windows]
        assert len(set(part)) == len(part) and set(part) <= set(range(windows))
    assert (Order(windows, batch, seed).rows(step) == rows[-batch:]).all()


def test_order_changes_from_pass_to_pass() -> None:
    order = Order(50, 50, 0)
    assert (order.rows(0) != order.rows(1)).any()


def test_batches_are_all_windows_in_order() -> None:
    windows = pack([document(0, 100)], 10, seed=0)
    parts = list(windows.batches(4))
    assert [len(ids) for ids, _ in parts] == [4, 4, 2]
    assert np.concatenate([ids for ids, _ in parts]).reshape(-1).tolist() == list(range(100))


def test_refusals() -> None:
    with pytest.raises(DataError, match="hold 7 tokens, less than one window of 8"):
        pack([document(0, 7)], 8, 0)
    with pytest.raises(DataError, match="hold 0 tokens"):
        pack([], 8, 0)
    ids = np.arange(20, dtype=np.int32)
    with pytest.raises(DataError, match="no token of the data is an assistant's"):
        pack([Document(ids, ids < 0)], 8, 0)
    with pytest.raises(DataError, match="too few to hold 1 out"):
        Windows(ids[None], ids[None] > 0, ids[None] < 0).split(0.02, 64)
