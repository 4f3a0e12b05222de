"""Where the newest tokens stood before, against a plain search."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vllm_kangaroo.drafting.text_index import LONGEST, PLACES, TextIndex


def searched(tokens: list[int], least: int) -> list[tuple[int, int]]:
    """The same by looking at every place: behind the newest pair, behind the newest token where that stood nowhere else."""
    for width in (2, 1):
        places = [
            at
            for at in range(len(tokens) - 1, width - 1, -1)
            if tokens[at - width : at] == tokens[-width:]
        ]
        if places:
            break
    found = []
    for place in places[:PLACES]:
        match = width
        while match < min(LONGEST, place) and tokens[place - match - 1] == tokens[-match - 1]:
            match += 1
        found.append((place, match))
    return [(place, match) for place, match in found if match >= least]


@given(st.lists(st.integers(0, 3), max_size=80), st.integers(1, 5))
def test_the_index_finds_what_a_search_finds(tokens: list[int], least: int) -> None:
    index = TextIndex()
    for at in range(len(tokens)):
        index.extend(tokens[at : at + 1])
        assert index.places(least) == searched(tokens[: at + 1], least)
    at_once = TextIndex()
    at_once.extend(tokens)
    assert at_once.places(least) == index.places(least)
    assert len(index) == len(tokens)


def test_pairs_go_before_single_tokens() -> None:
    index = TextIndex()
    index.extend([1, 2, 50, 9, 2, 80, 1, 2])
    assert index.places() == [(2, 2)]
    index.extend([80])
    assert index.places() == [(6, 2)]
    index.extend([9])
    assert index.places() == [(4, 1)]
    assert index.places(2) == []


def test_work_is_bounded() -> None:
    index = TextIndex()
    index.extend([7] * 500)
    assert index.places() == [(499 - at, LONGEST) for at in range(PLACES)]


def test_a_text_that_goes_on_is_told_from_another() -> None:
    index = TextIndex()
    assert index.begins(np.array([], dtype=np.int32))
    index.extend([1, 2, 3])
    assert index.begins(np.array([1, 2, 3, 4], dtype=np.int32))
    assert not index.begins(np.array([1, 2], dtype=np.int32))
    assert not index.begins(np.array([1, 2, 4, 3], dtype=np.int32))
