"""What the frozen target says of training windows: run anew each time, or kept up to a limit.

Nothing of it goes to disk. Without a cache each step runs the target over its windows. With one,
states of as many windows as fit are kept in memory, for training that makes several passes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_kangaroo.training.data.windows import Windows
from vllm_kangaroo.training.run.target import Target

GIB = 2**30


class Features:
    """Exit states of a target over windows and, unless ``shallow``, its final states."""

    def __init__(
        self,
        target: Target,
        windows: Windows,
        cache_gib: float,
        device: str,
        *,
        shallow: bool = False,
    ) -> None:
        self.windows = windows
        self.device = device
        self._run = target.exit_states if shallow else target.states
        self.token_bytes = (len(target.exits) + (not shallow)) * target.state_bytes
        self.window_bytes = windows.ids.shape[1] * self.token_bytes
        self.most_kept = min(int(cache_gib * GIB) // max(self.window_bytes, 1), len(windows))
        self.caching = cache_gib > 0
        self._kept: dict[int, tuple[Tensor, ...]] = {}

    @property
    def kept(self) -> int:
        """Windows whose states are kept."""
        return len(self._kept)

    def describe(self) -> str:
        """Sizes, in a line for the user."""
        whole = self.token_bytes * self.windows.ids.size / GIB
        line = f"exit states: {self.token_bytes} bytes a token, {whole:.2f} GiB for all of the data"
        if not self.caching:
            return f"{line}; computed as they are needed"
        share = self.most_kept / len(self.windows)
        return (
            f"{line}; {share:.0%} of it kept in {self.most_kept * self.window_bytes / GIB:.2f} GiB"
        )

    @torch.no_grad()
    def states(self, rows: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """`Target.states` or, if shallow, `Target.exit_states` of some windows: each ``[B, T, N]`` on the device."""
        if not self.caching:
            ids, _ = self.windows.select(rows)
            return self._run(ids.to(self.device))
        # One window at a time: in a batch the last bits could depend on its company, and a run
        # that goes on with an empty cache would part from one that was never stopped.
        found = [self._window(int(row)) for row in rows]
        return tuple(torch.cat(parts) for parts in zip(*found, strict=True))

    def _window(self, row: int) -> tuple[Tensor, ...]:
        states = self._kept.get(row)
        if states is None:
            ids, _ = self.windows.select(np.array([row]))
            states = self._run(ids.to(self.device))
            if len(self._kept) < self.most_kept:
                self._kept[row] = tuple(part.clone() for part in states)
        return states
