"""Answers on disk as batches to train on: whole documents of like length, padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_kangaroo.training.answers.shards import FINAL, Shard, ShardError, exit_key, shards

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class AnswerBatch:
    """Documents without their last token, padded at their ends: B of them, T positions."""

    exits: tuple[Tensor, ...]
    """Residual stream at each exit, float32 ``[B, T, N]``."""
    final: Tensor
    """What the target's LM head took, float32 ``[B, T, N]``."""
    labels: Tensor
    """The token that follows each position, int64 ``[B, T]``."""
    counted: Tensor
    """Positions whose next token is of the answer, bool ``[B, T]``."""
    lengths: IntArray
    """Positions of each document, ``[B]``."""


class AnswerData:
    """The documents of some directories of answers.

    Args:
        exits: whose states to read.

    Raises:
        ShardError: see `shards`; no document at all.
    """

    def __init__(self, directories: Sequence[Path], exits: Sequence[int]) -> None:
        self.exits = tuple(exits)
        self._shards: list[Shard] = [shard for each in directories for shard in shards(each)]
        self._places = [(shard, at) for shard in self._shards for at in range(len(shard))]
        if not self._places:
            names = ", ".join(f"'{each}'" for each in directories)
            raise ShardError(f"{names} holds no answer; let 'train answers' make some first")
        self.lengths: IntArray = np.concatenate([shard.lengths for shard in self._shards]) - 1
        self.answer_tokens = sum(
            int((shard.lengths - shard.answer_starts).sum()) for shard in self._shards
        )

    def __len__(self) -> int:
        return len(self._places)

    def frequent(self, size: int, vocab_size: int) -> Tensor:
        """The ``size`` token ids that stand most often in the answers, ascending, int64."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for shard, at in self._places:
            counts += np.bincount(
                shard.tokens(at)[int(shard.answer_starts[at]) :], minlength=vocab_size
            )
        order = np.argsort(-counts, kind="stable")[:size]
        return torch.from_numpy(np.sort(order))

    def batch(self, which: IntArray) -> AnswerBatch:
        """Some documents, by their numbers."""
        longest = int(self.lengths[which].max())
        shape = (len(which), longest)
        labels = torch.zeros(shape, dtype=torch.int64)
        counted = torch.zeros(shape, dtype=torch.bool)
        parts: list[list[Tensor]] = [[] for _ in (*self.exits, FINAL)]
        names = [*(exit_key(layer) for layer in self.exits), FINAL]
        for row, number in enumerate(which):
            shard, at = self._places[number]
            tokens = torch.from_numpy(shard.tokens(at).astype(np.int64))
            length = len(tokens) - 1
            labels[row, :length] = tokens[1:]
            counted[row, int(shard.answer_starts[at]) - 1 : length] = True
            for part, name in zip(parts, names, strict=True):
                part.append(shard.states(name, at).float())
        padded = [torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in parts]
        return AnswerBatch(
            tuple(padded[:-1]), padded[-1], labels, counted, self.lengths[which].copy()
        )


class BatchOrder:
    """Which documents each step takes: every pass all of them once, neighbours in length together."""

    SPREAD = 16
    """Batches' worth of documents that are sorted by length at a time."""

    def __init__(self, lengths: IntArray, batch: int, seed: int) -> None:
        self._lengths = lengths
        self._batch = batch
        self._seed = seed
        self._pass = -1
        self._batches: list[IntArray] = []

    @property
    def steps(self) -> int:
        """Steps of a pass."""
        return max(len(self._lengths) // self._batch, 1)

    def documents(self, step: int) -> IntArray:
        """Numbers of the documents of a step, counted from 0; known from seed and step."""
        number, place = divmod(step, self.steps)
        if number != self._pass:
            rng = np.random.default_rng([self._seed, number])
            order = rng.permutation(len(self._lengths))
            some = self._batch * self.SPREAD
            parts = [order[i : i + some] for i in range(0, len(order), some)]
            near = np.concatenate(
                [part[np.argsort(self._lengths[part], kind="stable")] for part in parts]
            )
            batches = [near[i : i + self._batch] for i in range(0, len(near), self._batch)]
            self._batches = [batches[i] for i in rng.permutation(len(batches))]
            self._pass = number
        return self._batches[place]
