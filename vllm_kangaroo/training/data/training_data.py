"""From data files to windows: those to train on, and those to measure on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vllm_kangaroo.provenance import file_sha256
from vllm_kangaroo.training.data.documents import DataError, read_documents
from vllm_kangaroo.training.data.windows import Windows, pack

SPLIT = "data"  # name of the figures on the windows held out of the training data


def load_tokenizer(model: str) -> Any:
    """The tokenizer of a local checkpoint."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model, local_files_only=True)


def hashes(files: Sequence[Path]) -> dict[str, str]:
    """SHA-256 of each file by its name.

    Raises:
        DataError: a missing file.
    """
    missing = sorted(str(path) for path in files if not path.is_file())
    if missing:
        raise DataError(f"'{missing[0]}' is no file; correct --data or --held-out")
    return {str(path): file_sha256(path) for path in files}


def load_windows(
    data: Sequence[Path],
    held_out: Sequence[Path],
    tokenizer: Any,
    *,
    window: int,
    seed: int,
    fraction: float,
    most: int,
    whole: bool = False,
) -> tuple[Windows, dict[str, Windows]]:
    """Windows to train on, and those to measure on by name: the split, then each file.

    Args:
        fraction, most: the share of windows held out of the data, and the most of each name.
        whole: count every token, not those of answers alone.

    Raises:
        DataError: see `read_documents` and `pack`; windows to measure on without an answer.
    """

    def read(paths: Sequence[Path]) -> Windows:
        windows = pack(list(read_documents(paths, tokenizer)), window, seed)
        return windows.whole() if whole else windows

    windows, split = read(data).split(fraction, most)
    measured = {SPLIT: split}
    for path in held_out:
        part = read((path,))
        measured[path.name.split(".")[0]] = part.take(slice(most))
    for name, part in measured.items():
        if not part.counted.any():
            raise DataError(
                f"the windows held out as '{name}' hold no answer to measure on; give more data or "
                "a larger --held-out-fraction"
            )
    return windows, measured
