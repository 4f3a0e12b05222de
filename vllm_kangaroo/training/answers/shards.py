"""Answers of a model with the states it had while writing them, in files of some dozens of answers each.

A shard is a safetensors file. Of its D documents, T tokens in all, of which the last of each document was never run:

* ``token_ids`` int32 ``[T]``; ``lengths``, ``answer_starts``, ``prompts`` int32 ``[D]``: tokens of each document, where its
  answer begins, and the number of its prompt; ``temperatures`` float32 ``[D]``;
* ``exit.L`` ``[T - D, N]``: the residual stream after L layers; ``final`` ``[T - D, N]``: what the LM head took.

``answers.json`` beside them says what they were made from. Shards appear whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

INDEX_FILE = "answers.json"
FINAL = "final"


class ShardError(ValueError):
    """Answers that cannot be used; the message names the file and the remedy."""


def exit_key(layer: int) -> str:
    """Name of the tensor of an exit's states."""
    return f"exit.{layer}"


@dataclass(slots=True)
class Answer:
    """One answer: its prompt's number, tokens of prompt and answer, and states by name ``[tokens - 1, N]``."""

    prompt: int
    token_ids: list[int]
    answer_start: int
    temperature: float
    states: dict[str, Tensor]


def begin(directory: Path, identity: dict[str, Any]) -> None:
    """Make the directory of a run, or check that what is there was made by the same.

    Raises:
        ShardError: it was not.
    """
    path = directory / INDEX_FILE
    if path.is_file():
        found = read_index(directory)
        for key, value in identity.items():
            if found.get(key) != value:
                raise ShardError(
                    f"'{directory}' holds answers made with {key}={found.get(key)!r}, this run has "
                    f"{value!r}; repeat the old command, or name another --out"
                )
        return
    directory.mkdir(parents=True, exist_ok=True)
    _write_text(path, json.dumps(identity, indent=2) + "\n")


def read_index(directory: Path) -> dict[str, Any]:
    """What the answers of a directory were made from.

    Raises:
        ShardError: not such a directory.
    """
    path = directory / INDEX_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ShardError(
            f"'{directory}' holds no answers of 'vllm-kangaroo train answers' ({INDEX_FILE}: "
            f"{error}); make some first"
        ) from None
    return dict(found)


def write(directory: Path, answers: Sequence[Answer]) -> Path:
    """Write a shard, named after its first prompt's number."""
    tensors = {
        "token_ids": _ints([token for answer in answers for token in answer.token_ids]),
        "lengths": _ints([len(answer.token_ids) for answer in answers]),
        "answer_starts": _ints([answer.answer_start for answer in answers]),
        "prompts": _ints([answer.prompt for answer in answers]),
        "temperatures": torch.tensor([answer.temperature for answer in answers]),
    }
    for name in answers[0].states:
        tensors[name] = torch.cat([answer.states[name] for answer in answers]).contiguous()
    path = directory / f"{answers[0].prompt:07d}.safetensors"
    temporary = path.with_suffix(f".{os.getpid()}.part")
    save_file(tensors, temporary)
    temporary.replace(path)
    return path


def _ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.part")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


class Shard:
    """A shard opened for reading; states stay on disk until they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file: Any = safe_open(path, "pt")
            read = self._file.get_tensor
            self.token_ids: NDArray[np.int32] = read("token_ids").numpy()
            self.lengths: NDArray[np.int64] = read("lengths").numpy().astype(np.int64)
            self.answer_starts: NDArray[np.int64] = read("answer_starts").numpy().astype(np.int64)
            self.prompts: NDArray[np.int64] = read("prompts").numpy().astype(np.int64)
            self.temperatures: NDArray[np.float32] = read("temperatures").numpy()
        except (OSError, SafetensorError) as error:
            raise ShardError(
                f"'{path}' cannot be read ({error}); remove it, and repeat 'train answers'"
            ) from None
        self._first = np.cumsum(self.lengths) - self.lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def tokens(self, at: int) -> NDArray[np.int32]:
        """Tokens of document ``at``, prompt and answer."""
        start = int(self._first[at])
        return self.token_ids[start : start + int(self.lengths[at])]

    def states(self, name: str, at: int) -> Tensor:
        """States of document ``at`` by name, ``[tokens - 1, N]``.

        Raises:
            ShardError: none were kept under that name.
        """
        start = int(self._first[at]) - at
        try:
            part = self._file.get_slice(name)
        except SafetensorError:
            raise ShardError(
                f"'{self.path}' holds no states named '{name}'; repeat 'train answers' with that "
                "--exit-layer in another --out"
            ) from None
        found: Tensor = part[start : start + int(self.lengths[at]) - 1]
        return found


def shards(directory: Path) -> Iterator[Shard]:
    """The shards of a directory, in order of their names.

    Raises:
        ShardError: not such a directory, or a shard that cannot be read.
    """
    read_index(directory)
    for path in sorted(directory.glob("*.safetensors")):
        yield Shard(path)
