"""Tables of n-grams: their hashes, what they answer, and files that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from vllm_kangaroo.drafting.ngram_file import NgramError, load_ngrams, save_ngrams
from vllm_kangaroo.drafting.ngram_table import NgramTable, hashed, hashed_along

VOCAB = 1000


def context(*tokens: int) -> int:
    """The hash of tokens in their order of reading."""
    found = 0
    for token in reversed(tokens):
        found = hashed(found, token)
    return found


def table(follows: dict[tuple[int, ...], tuple[int, int]]) -> NgramTable:
    return NgramTable(
        np.array([context(*each) for each in follows], dtype=np.uint64),
        np.array([token for token, _ in follows.values()], dtype=np.int32),
        np.array([share for _, share in follows.values()], dtype=np.uint8),
    )


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**31 - 1)), min_size=1))
def test_hashes_of_many_are_those_of_each(pairs: list[tuple[int, int]]) -> None:
    before = np.array([one for one, _ in pairs], dtype=np.uint64)
    tokens = np.array([one for _, one in pairs], dtype=np.int32)
    assert hashed_along(before, tokens).tolist() == [hashed(*pair) for pair in pairs]


def test_contexts_are_told_apart() -> None:
    contexts = [(a, b) for a in range(150) for b in range(150)] + [(a,) for a in range(150)]
    assert len({context(*each) for each in contexts}) == len(contexts)
    assert context(1, 2) != context(2, 1)


def test_the_longest_context_answers() -> None:
    found = table({(1,): (10, 51), (2, 1): (20, 102), (3, 2, 1): (30, 255)})
    assert len(found) == 3
    assert found.after([9, 1]) == (10, 0.2)
    assert found.after([1]) == (10, 0.2)
    assert found.after([8, 2, 1]) == (20, 0.4)
    assert found.after([7, 3, 2, 1]) == (30, 1.0)
    assert found.after([1, 9]) is None and found.after([]) is None


def parts() -> dict[str, Any]:
    return {
        "contexts": np.array([3, 5, 2**63 + 1], dtype=np.uint64).view(np.int64),
        "tokens": np.array([1, 0, VOCAB - 1], dtype=np.int32),
        "probabilities": np.array([1, 200, 255], dtype=np.uint8),
    }


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ngrams.safetensors"
    one = parts()
    contexts = one["contexts"].view(np.uint64)
    save_ngrams(path, contexts, one["tokens"], one["probabilities"], {"format": "1"})
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    found = load_ngrams(path, VOCAB)
    assert found._follows == NgramTable(contexts, one["tokens"], one["probabilities"])._follows
    with pytest.raises(NgramError, match="tokens beyond the 999 of the target: give a table of"):
        load_ngrams(path, VOCAB - 1)


def lacks(part: str) -> Callable[[dict[str, Any]], None]:
    return lambda found: found.pop(part)


def other(part: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda found: found.update({part: value})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lacks("tokens"), "it holds"),
        (other("more", np.zeros(3, dtype=np.uint8)), "it holds"),
        (other("tokens", np.zeros(3, dtype=np.int64)), "it holds"),
        (other("tokens", np.zeros(2, dtype=np.int32)), "its vectors have the shapes"),
        (other("tokens", np.zeros((3, 1), dtype=np.int32)), "its vectors have the shapes"),
        (other("contexts", np.array([5, 3, 7])), "not in ascending order"),
        (other("contexts", np.array([3, 3, 7])), "not in ascending order"),
        (other("tokens", np.array([1, -1, 2], dtype=np.int32)), "tokens beyond"),
        (other("tokens", np.array([1, VOCAB, 2], dtype=np.int32)), "tokens beyond"),
    ],
)
def test_another_file_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], why: str
) -> None:
    tensors = parts()
    change(tensors)
    save_file(tensors, tmp_path / "it")
    with pytest.raises(NgramError, match=why) as refused:
        load_ngrams(tmp_path / "it", VOCAB)
    assert "give " in str(refused.value)


def test_no_table_at_all_is_refused(tmp_path: Path) -> None:
    empty = {name: each[:0] for name, each in parts().items()}
    save_file(empty, tmp_path / "empty")
    (tmp_path / "text").write_text("no table")
    for name in ("empty", "text", "missing", "."):
        with pytest.raises(NgramError, match="is no table of n-grams"):
            load_ngrams(tmp_path / name, VOCAB)
    whole = tmp_path / "whole"
    save_file(parts(), whole)
    (tmp_path / "torn").write_bytes(whole.read_bytes()[:-1])
    with pytest.raises(NgramError, match="is no table of n-grams"):
        load_ngrams(tmp_path / "torn", VOCAB)
