"""What tier 1 made of the tokens that a request will have verified next, kept where a captured graph finds it."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_kangaroo.ladder.store import State


class KeptStates:
    """Tier 1's outputs by request slot and by offset in the request's next verification.

    Buffers are made once and never moved, since graphs read them by address. Row ``slot * width + offset`` belongs to a
    slot of the runner's; the slot after the last is padding's.

    Args:
        like: a state of tier 1, whose parts say how many are kept, how wide and in which dtype.
        slots: most requests.
        width: most tokens of a request in one verification, K + 1.
        tokens: most tokens of a step.
    """

    def __init__(
        self, like: State, slots: int, width: int, tokens: int, device: torch.device
    ) -> None:
        rows = (slots + 1) * width
        self.width = width
        self.padding_slot = slots
        self.parts = tuple(
            torch.zeros(rows, part.shape[1], dtype=part.dtype, device=device) for part in like
        )
        self.index = torch.full((tokens,), slots * width, dtype=torch.int64, device=device)
        """Rows that the step's tokens read, ``[tokens]``; those that only fill a graph up read padding's."""
        self._held = np.zeros(slots, dtype=np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of the kept states."""
        return sum(part.nbytes for part in self.parts)

    def held(self, slots: NDArray[np.intp], counts: NDArray[np.integer]) -> bool:
        """Whether each slot holds the states of its request's next ``counts`` tokens."""
        return bool((self._held[slots] >= counts).all())

    def note(self, slots: NDArray[np.intp], count: int) -> None:
        """From now on these slots hold ``count`` tokens each; 0 where nothing was drafted."""
        self._held[slots] = count

    def route(self, slots: NDArray[np.intp], counts: NDArray[np.integer], padded: int) -> None:
        """Say which rows the step's tokens read, request by request.

        Args:
            slots: of the requests in the step's order.
            counts: tokens of each.
            padded: tokens of the step with those that only fill it up.
        """
        ends = np.cumsum(counts)
        total = int(ends[-1])
        offsets = np.arange(total) - np.repeat(ends - counts, counts)
        rows = np.repeat(slots * self.width, counts) + offsets
        self.index[:total].copy_(torch.from_numpy(rows), non_blocking=True)
        self.index[total:padded].fill_(self.padding_slot * self.width)

    def read(self, tokens: int) -> State:
        """States of the step's tokens, ``[tokens, N]`` a part."""
        index = self.index[:tokens]
        return tuple(part.index_select(0, index) for part in self.parts)

    def write(self, slots: Tensor, offset: int | Tensor, state: State) -> None:
        """Keep the states of tokens: slots and offsets ``[tokens]``, or one offset for all; parts ``[tokens, N]``."""
        rows = slots * self.width + offset
        for kept, part in zip(self.parts, state, strict=True):
            kept.index_copy_(0, rows, part)
