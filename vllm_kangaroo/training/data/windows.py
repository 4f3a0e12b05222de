"""Pack documents into windows of equal length, and serve them in an order fixed by the seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_kangaroo.training.data.documents import Document
from vllm_kangaroo.training.data.errors import DataError


@dataclass(frozen=True)
class Windows:
    """``ids [n, T]`` and ``counted [n, T]``: whether the prediction made at a position counts.

    Position t predicts token t + 1, so ``counted`` is a document's marks moved by one. ``begins [n, T]``
    tells where a document begins.
    """

    ids: NDArray[np.int32]
    counted: NDArray[np.bool_]
    begins: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    def whole(self) -> Windows:
        """The same windows with every prediction counted but each window's last."""
        counted = np.ones_like(self.counted)
        counted[:, -1] = False
        return Windows(self.ids, counted, self.begins)

    def with_next_token(self) -> Windows:
        """The same windows, counting only predictions of a token that stands in window and document.

        The token after a document is the first of another, which nothing before it foretells.
        """
        counted = self.counted.copy()
        counted[:, :-1] &= ~self.begins[:, 1:]
        counted[:, -1] = False
        return Windows(self.ids, counted, self.begins)

    def take(self, which: slice | NDArray[np.bool_]) -> Windows:
        """Some of the windows, by their place."""
        return Windows(self.ids[which], self.counted[which], self.begins[which])

    def select(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Rows as tensors: ids ``[B, T]`` int64, counted ``[B, T]`` bool."""
        return torch.from_numpy(self.ids[rows]).long(), torch.from_numpy(self.counted[rows])

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All windows in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self.select(np.arange(start, min(start + size, len(self))))

    def split(self, fraction: float, most: int) -> tuple[Windows, Windows]:
        """Hold out evenly spaced windows: ``fraction`` of them, between 1 and ``most``.

        Returns:
            the windows to train on and those held out.
        """
        count = min(max(round(len(self) * fraction), 1), most)
        if len(self) <= count:
            raise DataError(
                f"the data fill {len(self)} windows, too few to hold {count} out; give more data "
                "or a smaller window"
            )
        held = np.zeros(len(self), dtype=np.bool_)
        held[np.linspace(0, len(self) - 1, count).round().astype(np.int64)] = True
        return self.take(~held), self.take(held)


def pack(documents: Sequence[Document], length: int, seed: int) -> Windows:
    """Join documents in an order drawn from ``seed`` and cut them into windows of ``length``.

    The tail that fills no window is dropped.

    Raises:
        DataError: less than one window of tokens, or no token that counts.
    """
    order = np.random.default_rng(seed).permutation(len(documents))
    ids = np.concatenate([documents[i].ids for i in order] or [np.empty(0, np.int32)])
    marks = np.concatenate([documents[i].counted for i in order] or [np.empty(0, np.bool_)])
    counted = np.append(marks[1:], False)
    lengths = np.array([len(documents[i].ids) for i in order], dtype=np.int64)
    begins = np.zeros(len(ids) + 1, dtype=np.bool_)
    begins[np.cumsum(lengths) - lengths] = True
    count = len(ids) // length
    if not count:
        raise DataError(
            f"the data hold {len(ids)} tokens, less than one window of {length}; give more data "
            "or a smaller window"
        )
    shape, end = (count, length), count * length
    windows = Windows(
        ids[:end].reshape(shape), counted[:end].reshape(shape), begins[:end].reshape(shape)
    )
    if not windows.counted.any():
        raise DataError("no token of the data is an assistant's; give answers to learn from")
    return windows


class Order:
    """Which windows each step takes: a new permutation every pass, known from seed and step."""

    def __init__(self, windows: int, batch: int, seed: int) -> None:
        self.windows = windows
        self.batch = batch
        self.seed = seed
        self._pass = -1
        self._permutation: NDArray[np.int64] = np.empty(0, np.int64)

    def rows(self, step: int) -> NDArray[np.int64]:
        """Window indices ``[batch]`` of a step, counted from 0."""
        first = step * self.batch
        return np.array([self._row(i) for i in range(first, first + self.batch)])

    def _row(self, index: int) -> int:
        number, place = divmod(index, self.windows)
        if number != self._pass:
            generator = np.random.default_rng([self.seed, number])
            self._pass, self._permutation = number, generator.permutation(self.windows)
        return int(self._permutation[place])
