"""Drafts on their way to verification, by request."""

from __future__ import annotations

import numpy as np

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.least_squares import Floats


class PendingDrafts:
    """How many drafts of each request are being verified, and their confidences."""

    def __init__(self, most: int) -> None:
        self.lengths: Ints = np.zeros(16, dtype=np.int64)
        self.confidences: Floats = np.zeros((16, most))

    def reserve(self, slots: int) -> None:
        """Make room for so many requests."""
        have = len(self.lengths)
        if slots > have:
            more = max(slots, 2 * have) - have
            self.lengths = np.concatenate((self.lengths, np.zeros(more, dtype=np.int64)))
            room = np.zeros((more, self.confidences.shape[1]))
            self.confidences = np.concatenate((self.confidences, room))

    def put(self, slots: Ints, lengths: Ints, confidences: Floats) -> None:
        """Drafts were made."""
        self.lengths[slots] = lengths
        self.confidences[slots] = confidences

    def take(self, slots: Ints) -> tuple[Ints, Floats]:
        """Lengths and confidences of what is verified now; nothing is pending afterwards."""
        lengths, confidences = self.lengths[slots], self.confidences[slots]
        self.lengths[slots] = 0
        return lengths, confidences
