"""The header of a safetensors file, read as one that may come from anybody: what it says must be so.

This module imports no torch.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from vllm_kangaroo.text_inputs import shown

MAX_HEADER_BYTES = 2**20
"""An adapter has a dozen tensors; their names, shapes and places take two thousand bytes."""
MAX_DIMENSION = 2**31 - 1
_DTYPES: dict[str, tuple[str, int]] = {
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "F32": ("float32", 4),
    "F64": ("float64", 8),
    "I32": ("int32", 4),
    "I64": ("int64", 8),
    "U8": ("uint8", 1),
}
"""Those that adapters and n-gram tables use, with the bytes of a number. Others are named as the header names them."""


class HeaderError(ValueError):
    """The file is no safetensors file, or another than its header says; the message says what is wrong."""


class Stored(NamedTuple):
    """A tensor as the header describes it."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name; together they are all that follows the header, none over another.

    Raises:
        HeaderError: otherwise.
        OSError: if the file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise HeaderError(f"its header of {length} bytes is longer than the file")
        if length > MAX_HEADER_BYTES:
            raise HeaderError(
                f"its header has {length} bytes where {MAX_HEADER_BYTES} are the most"
            )
        text = file.read(length)
    header = parsed(text)
    if not isinstance(header, dict):
        raise HeaderError("its header is no JSON object")
    header.pop("__metadata__", None)
    places: list[tuple[int, int, str]] = []
    tensors = {}
    for name, entry in header.items():
        tensors[name], begin, end = _tensor(name, entry)
        places.append((begin, end, name))
    at = 0
    for begin, end, name in sorted(places):
        if begin != at:
            raise HeaderError(
                f"tensor {shown(name)} begins at {begin} where the one before ends at {at}"
            )
        at = end
    if 8 + length + at != size:
        raise HeaderError(f"it has {size} bytes where its header asks for {8 + length + at}")
    return tensors


def _tensor(name: str, entry: Any) -> tuple[Stored, int, int]:
    """What the header says of a tensor, and where its bytes begin and end."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"tensor {shown(name)} has not dtype, shape and data_offsets alone")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not _is_name(dtype) or not _are_sizes(shape, MAX_DIMENSION):
        raise HeaderError(f"tensor {shown(name)} has dtype {shown(dtype)} and shape {shown(shape)}")
    if not _are_sizes(offsets, 2**63) or len(offsets) != 2:
        raise HeaderError(f"tensor {shown(name)} has data_offsets {shown(offsets)}")
    begin, end = offsets
    known, width = _DTYPES.get(dtype, (dtype, None))
    if end < begin or (width is not None and end - begin != math.prod(shape) * width):
        raise HeaderError(
            f"tensor {shown(name)} of shape {shown(shape)} and dtype {dtype} lies from {begin} to {end}"
        )
    return Stored(known, tuple(shape)), begin, end


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isalnum() and len(value) <= 16


def _are_sizes(value: Any, most: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= 8
        and all(type(one) is int and 0 <= one <= most for one in value)
    )


def parsed(text: str | bytes) -> Any:
    """A JSON value in which no object has a key twice, for readers differ in which they take.

    Raises:
        HeaderError: if it is none.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise HeaderError("its JSON is nested too deeply") from None
    except ValueError as error:
        raise HeaderError(str(error)) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise HeaderError(f"it has the key {shown(key)} twice")
        found[key] = value
    return found
