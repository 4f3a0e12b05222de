"""N-gram tables on disk: a safetensors file of three vectors, read as one that may come from anybody.

``contexts`` int64 ``[n]``, the bits of hashes in ascending order as unsigned numbers; ``tokens`` int32 ``[n]``; ``probabilities`` uint8 ``[n]``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vllm_kangaroo.adapters.weights_header import HeaderError, Stored, read_header
from vllm_kangaroo.drafting.ngram_table import NgramTable
from vllm_kangaroo.text_inputs import shown

MAX_CONTEXTS = 2**22
"""Of a table: as many take half a gigabyte of host memory."""
_FORM = {"contexts": "int64", "tokens": "int32", "probabilities": "uint8"}


class NgramError(ValueError):
    """A table that cannot be used; the message names the file and the remedy."""


def save_ngrams(
    path: Path,
    contexts: NDArray[np.uint64],
    tokens: NDArray[np.int32],
    probabilities: NDArray[np.uint8],
    metadata: dict[str, str],
) -> None:
    """Write a table; it appears whole or not at all.

    Args:
        contexts, tokens, probabilities: see :class:`vllm_kangaroo.drafting.ngram_table.NgramTable`, contexts ascending.
        metadata: what it was counted from.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    tensors: dict[str, Any] = {
        "contexts": contexts.view(np.int64),
        "tokens": tokens,
        "probabilities": probabilities,
    }
    save_file(tensors, temporary, metadata)
    temporary.replace(path)


def load_ngrams(path: str | os.PathLike[str], vocab_size: int) -> NgramTable:
    """Read a table.

    Args:
        vocab_size: tokens that the target knows.

    Raises:
        NgramError: no such file, another form than a table's, or tokens beyond the target's.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # opening a pipe would wait for somebody to write
        raise _refused(path, "it is no ordinary file")
    try:
        _check_form(read_header(path))
        tensors = load_file(path)
    except HeaderError as error:
        raise _refused(path, str(error)) from None
    except (OSError, SafetensorError) as error:
        raise _refused(path, shown(str(error))) from None
    contexts, tokens = tensors["contexts"].view(np.uint64), tensors["tokens"]
    if not bool((contexts[1:] > contexts[:-1]).all()):
        raise _refused(path, "its contexts are not in ascending order")
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size:
        raise NgramError(
            f"'{path}' holds tokens beyond the {vocab_size} of the target: give a table of this model"
        )
    return NgramTable(contexts, tokens, tensors["probabilities"])


def _check_form(found: dict[str, Stored]) -> None:
    forms = {name: stored.dtype for name, stored in found.items()}
    if forms != _FORM:
        raise HeaderError(f"it holds {shown(forms)} where a table holds {_FORM}")
    shapes = {stored.shape for stored in found.values()}
    (shape,) = shapes if len(shapes) == 1 else [()]
    if len(shape) != 1 or not 1 <= shape[0] <= MAX_CONTEXTS:
        raise HeaderError(
            f"its vectors have the shapes {sorted(shapes)} where all have one size up to {MAX_CONTEXTS}"
        )


def _refused(path: Path, why: str) -> NgramError:
    return NgramError(
        f"'{path}' is no table of n-grams ({why}): give one of 'vllm-kangaroo train ngrams'"
    )
