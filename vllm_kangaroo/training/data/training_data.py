"""From data files to windows: those to train on, and those to measure on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_kangaroo.provenance import file_sha256
from vllm_kangaroo.training.data.documents import read_documents
from vllm_kangaroo.training.data.errors import DataError
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


@dataclass(frozen=True)
class WindowReader:
    """Reads data files into windows.

    Attributes:
        window, seed: tokens a window, and what fixes the order of documents.
        most: windows to measure on, of each name.
        vocabulary: rows of the model's table of embeddings, see `read_documents`.
        whole: count every token, not those of answers alone.
        told: called with what is left out of the data, in words.
    """

    tokenizer: Any
    window: int
    seed: int
    most: int
    vocabulary: int
    whole: bool = False
    told: Callable[[str], None] = lambda line: None

    def read(self, files: Sequence[Path]) -> Windows:
        """All windows of files.

        Raises:
            DataError: see `read_documents` and `pack`.
        """
        documents = list(read_documents(files, self.tokenizer, self.vocabulary))
        left_out = sum(document.left_out for document in documents)
        if left_out:
            self.told(
                f"{left_out} answers do not count: they call tools, and the chat template writes no calls"
            )
        windows = pack(documents, self.window, self.seed)
        return windows.whole() if self.whole else windows

    def split(self, files: Sequence[Path], fraction: float) -> tuple[Windows, Windows]:
        """Windows to train on, and ``fraction`` of them, but no more than ``most``, to measure on.

        Raises:
            DataError: see `read`; too few windows, or none to measure on that holds an answer.
        """
        windows, held = self.read(files).split(fraction, self.most)
        return windows, _measurable(held, SPLIT)

    def held_out(self, files: Sequence[Path]) -> dict[str, Windows]:
        """Windows to measure on, by the file's name without its suffixes.

        Raises:
            DataError: see `read`; no answer in them; two files of one name.
        """
        found: dict[str, Windows] = {}
        for path in files:
            name = path.name.split(".")[0]
            if name in (SPLIT, *found):
                raise DataError(
                    f"--held-out '{path}' has the name of other figures, '{name}'; rename the file"
                )
            found[name] = _measurable(self.read((path,)).take(slice(self.most)), name)
        return found


def _measurable(windows: Windows, name: str) -> Windows:
    if not windows.counted.any():
        raise DataError(
            f"the windows held out as '{name}' hold no answer to measure on; give more data or "
            "a larger --held-out-fraction"
        )
    return windows
