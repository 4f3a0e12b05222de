"""Ragged position ranges: which positions of which requests a pass runs over."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """One range of positions per request, ``[starts[i], starts[i] + lengths[i])``.

    All arrays are int64 of shape ``[requests]``. ``rows`` are rows of the engine's batch, ``slots`` are the
    ladder's own per-request slots. In flat order (``[tokens]``), request ``i`` follows request ``i - 1``.
    """

    rows: IntArray
    slots: IntArray
    starts: IntArray
    lengths: IntArray

    @property
    def tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def ends(self) -> IntArray:
        return self.starts + self.lengths

    def same(self, other: Spans) -> bool:
        """Whether both cover the same positions of the same rows."""
        return self is other or (
            np.array_equal(self.rows, other.rows)
            and np.array_equal(self.starts, other.starts)
            and np.array_equal(self.lengths, other.lengths)
        )

    def pick(self, which: NDArray[np.bool_] | IntArray) -> Spans:
        """The spans of some of the requests."""
        return Spans(self.rows[which], self.slots[which], self.starts[which], self.lengths[which])

    def tail(self, skip: IntArray) -> Spans:
        """The spans without their first ``skip[i]`` positions (some may become empty)."""
        return Spans(self.rows, self.slots, self.starts + skip, self.lengths - skip)

    def offsets(self) -> IntArray:
        """Start of each span in flat order, and the total: ``[requests + 1]``."""
        return np.concatenate(([0], np.cumsum(self.lengths)))

    def positions(self) -> IntArray:
        """Every position in flat order: ``[tokens]``."""
        return np.repeat(self.starts, self.lengths) + ragged_arange(self.lengths)


def ragged_arange(lengths: IntArray) -> IntArray:
    """``[0..lengths[0]), [0..lengths[1]), ...`` end to end: ``[sum(lengths)]``."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - lengths, lengths)
