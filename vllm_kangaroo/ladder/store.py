"""The exit store: outputs of a tier for the positions the next tier has yet to compute."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vllm_kangaroo.ladder.spans import IntArray

State = tuple[Tensor, ...]
"""A tier's output: the tensors one pipeline stage hands to the next (hidden states, residual), ``[tokens, N]``."""


class ExitStore:
    """A ring of ``width`` positions per slot, with the token each entry was computed for.

    Position ``p`` lives at index ``p % width``; which entries are valid is the ladder's business (frontiers).
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.width = width
        self.device = device
        self._rings: list[Tensor] = []  # one [slots * width, N] per tensor of the state
        self.token_ids: IntArray = np.full((0, width), -1, dtype=np.int64)

    @property
    def nbytes(self) -> int:
        return sum(ring.nbytes for ring in self._rings)

    def reserve(self, slots: int) -> None:
        """Make room for at least ``slots`` slots, keeping what is stored."""
        have = len(self.token_ids)
        if slots <= have:
            return
        slots = max(slots, 2 * have)
        self.token_ids = np.concatenate(
            (self.token_ids, np.full((slots - have, self.width), -1, dtype=np.int64))
        )
        self._rings = [self._grown(ring) for ring in self._rings]

    def _grown(self, ring: Tensor) -> Tensor:
        grown = ring.new_zeros((len(self.token_ids) * self.width, ring.shape[1]))
        grown[: len(ring)] = ring
        return grown

    def index(self, slots: IntArray, positions: IntArray) -> Tensor:
        """Ring indices of ``(slot, position)`` pairs, broadcast together, on the store's device."""
        return torch.from_numpy(slots * self.width + positions % self.width).to(
            self.device, non_blocking=True
        )

    def put(self, index: Tensor, state: State) -> None:
        """Keep ``state`` (each ``[entries, N]``) at ring indices ``index`` (``[entries]``)."""
        if not self._rings:
            rows = len(self.token_ids) * self.width
            self._rings = [part.new_zeros((rows, part.shape[1])) for part in state]
        for ring, part in zip(self._rings, state, strict=True):
            ring.index_copy_(0, index, part)

    def get(self, index: Tensor) -> State:
        """Copies of the entries at ``index``: a later in-place norm must not reach the store."""
        return tuple(ring.index_select(0, index) for ring in self._rings)

    def note_tokens(self, slot: int, start: int, token_ids: list[int]) -> None:
        """Record which tokens the entries from position ``start`` on were computed for."""
        where = (start + np.arange(len(token_ids))) % self.width
        self.token_ids[slot, where] = token_ids

    def matching(
        self, slots: IntArray, starts: IntArray, limits: IntArray, token_ids: IntArray
    ) -> IntArray:
        """How many leading positions of each span were computed for exactly these tokens.

        ``token_ids`` is ``[requests, width]`` (padded with -2), ``limits`` bounds the answer. Returns ``[requests]``.
        """
        steps = np.arange(token_ids.shape[1])
        kept = self.token_ids[slots[:, None], (starts[:, None] + steps) % self.width]
        agrees = (kept == token_ids) & (steps < limits[:, None])
        return np.cumprod(agrees, axis=1).sum(axis=1)
