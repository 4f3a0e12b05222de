"""What a GGUF file says of itself, and the refusal of files that no checkpoint can be made of."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

MAGIC = b"GGUF"
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ROPE_FACTORS = "rope_freqs.weight"
"""Llama 3 stretches its rotary frequencies; llama.cpp writes the factors as a tensor."""
_VOCABULARY = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")


class GgufError(ValueError):
    """A GGUF file that cannot be converted; the message names file, key and remedy."""


@dataclass(frozen=True)
class GgufFile:
    """A whole model in one GGUF file, its weights not read yet."""

    path: Path
    metadata: dict[str, Any]
    """llama.cpp's keys; an array of texts other than those of the vocabulary is told by its length alone."""
    reader: Any
    """``gguf.GGUFReader``, whose tensors are mapped into memory."""

    @property
    def architecture(self) -> str:
        """llama.cpp's name of it, such as ``llama`` or ``qwen2``."""
        return str(self.metadata["general.architecture"])

    def own(self, key: str) -> Any:
        """The value of a key of the architecture, None if the file has none."""
        return self.metadata.get(f"{self.architecture}.{key}")

    @property
    def dtype(self) -> torch.dtype | None:
        """Of the weights; None if they are quantised."""
        kinds = {tensor.tensor_type.name for tensor in self.reader.tensors}
        if kinds - FLOATS.keys():
            return None
        return FLOATS[max(kinds, key=list(FLOATS).index)]  # norms stay in float32

    def elements(self) -> dict[str, int]:
        """Number of values of each tensor."""
        return {tensor.name: int(tensor.n_elements) for tensor in self.reader.tensors}

    def rope_factors(self) -> np.ndarray | None:
        """By what each rotary frequency is divided, ``[head_dim / 2]``; None if they are left as they are."""
        for tensor in self.reader.tensors:
            if tensor.name == ROPE_FACTORS:
                return np.asarray(tensor.data, np.float32)
        return None

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Let transformers use the reader that is there; to read the vocabulary takes seconds each time."""
        import gguf

        before = gguf.GGUFReader
        gguf.GGUFReader = lambda _: self.reader
        try:
            yield
        finally:
            gguf.GGUFReader = before


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a GGUF file and check that the file is whole.

    Raises:
        GgufError: a missing, foreign or torn file, a part of a model, or tensors of an unknown type.
    """
    try:
        from gguf import GGUFReader
        from transformers.integrations.gguf.reader import read_gguf_metadata
    except ImportError as error:
        raise GgufError(
            f"GGUF files cannot be read here ({error}); install gguf, accelerate and transformers 5.19"
        ) from None

    try:
        with path.open("rb") as file:
            begin = file.read(len(MAGIC))
    except OSError as error:
        raise GgufError(f"'{path}' cannot be read ({error.strerror}); give a GGUF file") from None
    if begin != MAGIC:
        raise GgufError(f"'{path}' does not begin as a GGUF file does; give one")
    try:
        metadata, _ = read_gguf_metadata(str(path), _VOCABULARY)
        _refuse_parts(path, metadata)
        reader = GGUFReader(path)
    except GgufError:
        raise
    # What the readers trip over in torn or garbled bytes.
    except (ValueError, struct.error, LookupError, OverflowError, MemoryError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise GgufError(
            f"'{path}' is torn or of an unknown kind ({said}); get another copy"
        ) from None
    if not reader.tensors:
        raise GgufError(f"'{path}' holds no weights; give the file of a whole model")
    return GgufFile(path, metadata, reader)


def _refuse_parts(path: Path, metadata: dict[str, Any]) -> None:
    parts = metadata.get("split.count", 0)
    if parts > 1:
        raise GgufError(
            f"'{path}' is part {metadata.get('split.no', 0) + 1} of {parts}; join them with "
            "'llama-gguf-split --merge' and give the result"
        )
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise GgufError(f"'{path}' has general.type={kind!r}; give the file of a whole model")
