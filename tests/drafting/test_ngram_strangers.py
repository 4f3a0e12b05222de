"""Tables of n-grams from anybody: whatever the file holds, it is refused in one sentence, or is a table of the target's tokens."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tests.damage import edited, fuzz, put_together, scratched, sound, taken_apart
from tests.drafting.test_ngram_table import VOCAB, parts
from vllm_kangaroo.adapters.weights_header import MAX_HEADER_BYTES
from vllm_kangaroo.drafting.ngram_file import MAX_CONTEXTS, NgramError, load_ngrams

Header = dict[str, Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "ngrams.safetensors"
    save_file(parts(), file)
    load_ngrams(file, VOCAB)
    return file


def header(change: Callable[[Header], Any]) -> Callable[[Path], None]:
    """Damage that leaves the numbers as they are."""

    def apply(path: Path) -> None:
        found, numbers = taken_apart(path.read_bytes())
        changed = change(found)
        path.write_bytes(put_together(found if changed is None else changed, numbers))

    return apply


def tensor(name: str, **values: Any) -> Callable[[Path], None]:
    return header(lambda found: found[name].update(values))


def other(name: str, value: Any) -> Callable[[Path], None]:
    """Another tensor in the place of one."""
    return lambda path: save_file(parts() | {name: value}, path)


def sized(contexts: int, path: Path) -> None:
    """A sparse file whose header is true: as large as it says, and hardly there."""
    offsets = [0, 8 * contexts, 12 * contexts, 13 * contexts]
    kinds = [("contexts", "I64"), ("tokens", "I32"), ("probabilities", "U8")]
    places = pairwise(offsets)
    described = {
        name: {"dtype": dtype, "shape": [contexts], "data_offsets": list(place)}
        for (name, dtype), place in zip(kinds, places, strict=True)
    }
    start = put_together(described, b"")
    path.write_bytes(start)
    os.truncate(path, len(start) + offsets[-1])


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def linked(to: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        path.unlink()
        path.symlink_to(to)

    return apply


CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "smaller than it says": (tensor("contexts", shape=[10**9]), "lies from"),
    "absurd shape": (tensor("contexts", shape=[10**300]), "has dtype"),
    "no shape": (tensor("contexts", shape=[]), "lies from"),
    "true for a size": (tensor("contexts", shape=[True]), "has dtype"),
    "place beyond the file": (tensor("contexts", data_offsets=[10**15, 10**15 + 24]), "begins at"),
    "one tensor over another": (tensor("tokens", data_offsets=[20, 32]), "begins at"),
    "numbers of another type": (tensor("contexts", dtype="F64"), "it holds"),
    "a type that is none": (tensor("tokens", dtype="F\n32"), "has dtype"),
    "floats": (other("probabilities", np.array([0.5, np.nan, np.inf], np.float32)), "it holds"),
    "unsigned contexts": (other("contexts", np.array([1, 2, 3], np.uint64)), "it holds"),
    "the tokens of another model": (other("tokens", np.full(3, VOCAB, np.int32)), "tokens beyond"),
    "tokens below none": (other("tokens", np.full(3, -(2**31), np.int32)), "tokens beyond"),
    "contexts not in order": (other("contexts", np.array([-1, 0, 1])), "not in ascending order"),
    "more contexts than are taken": (lambda path: sized(MAX_CONTEXTS + 1, path), "one size up to"),
    "a terabyte of contexts": (lambda path: sized(2**40 // 13, path), "has dtype|one size up to"),
    "a tensor more": (header(lambda h: h | {"a\nb" * 300: h["tokens"]}), "begins at"),
    "header twice": (
        header(lambda h: str(h).replace("'", '"')[:-1].encode() + b',"tokens":1}'),
        "twice",
    ),
    "long header": (header(lambda h: b" " * (MAX_HEADER_BYTES + 1)), "are the most"),
    "nested header": (header(lambda h: b"[" * 500_000), "nested too deeply"),
    "metadata that is none": (header(lambda h: h | {"__metadata__": [1]}), "is no table"),
    "pipe": (piped, "no ordinary file"),
    "device": (linked("/dev/zero"), "no ordinary file"),
    "link to itself": (linked("ngrams.safetensors"), "is no table"),
    "link to nothing": (linked("/nowhere"), "is no table"),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_sentence(path: Path, case: str) -> None:
    damage, said = CASES[case]
    damage(path)
    with pytest.raises(NgramError, match=said) as refused:
        load_ngrams(path, VOCAB)
    assert "give " in sound(str(refused.value), path)


def damaged(data: st.DataObject, whole: bytes) -> bytes:
    """A table's file that is not as it was."""
    kind = data.draw(st.sampled_from(["header", "numbers", "values", "scratch", "noise"]))
    found, numbers = taken_apart(whole)
    if kind == "header":
        return put_together(edited(data, found), numbers)
    if kind == "numbers":
        changed = scratched(data, numbers)[: len(numbers)].ljust(len(numbers))
        return put_together(found, changed)
    if kind == "values":  # sound in form: what the reader says of the numbers themselves
        size = data.draw(st.integers(1, 6))
        rows = [(-(2**63), 2**63 - 1, 8), (-VOCAB, 2 * VOCAB, 4), (0, 255, 1)]
        columns = [
            b"".join(
                data.draw(st.integers(least, most)).to_bytes(width, "little", signed=width > 1)
                for _ in range(size)
            )
            for least, most, width in rows
        ]
        ends = np.cumsum([0, *map(len, columns)]).tolist()
        for name, at in (("contexts", 0), ("tokens", 1), ("probabilities", 2)):
            found[name] = found[name] | {"shape": [size], "data_offsets": ends[at : at + 2]}
        return put_together(found, b"".join(columns))
    return scratched(data, whole) if kind == "scratch" else data.draw(st.binary(max_size=200))


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    """Where the fuzz writes, and a sound file."""
    file = tmp_path_factory.mktemp("scratch") / "it"
    save_file(parts(), file)
    return file, file.read_bytes()


@fuzz
@given(data=st.data())
def test_any_file_is_refused_or_a_table(data: st.DataObject, scratch: tuple[Path, bytes]) -> None:
    path, whole = scratch
    path.write_bytes(damaged(data, whole))
    try:
        table = load_ngrams(path, VOCAB)
    except NgramError as error:
        sound(str(error), path)
        return
    assert len(table) > 0
    for followed in table._follows.values():
        assert 0 <= followed >> 8 < VOCAB
    known = table.after([1, 2, 3])
    assert known is None or (0 <= known[0] < VOCAB and 0.0 <= known[1] <= 1.0)
