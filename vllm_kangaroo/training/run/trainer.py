"""What all trainers share: where a run is, its steps one by one, and the state to go on from."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

Figures = dict[int, dict[str, float]]
"""By exit: figures on held-out data by name, among them ``loss``."""


@dataclass(frozen=True)
class RunState:
    """Where a run is: steps done, smoothed loss in nats, seconds spent."""

    step: int = 0
    loss: float = math.nan
    seconds: float = 0.0


class Trainer(ABC):
    """A training run's state and its one step.

    Args:
        steps: optimizer steps of the run.
        clock: seconds, from any zero.
    """

    def __init__(self, steps: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.steps = steps
        self.progress = RunState()
        self._clock = clock

    @abstractmethod
    def _train(self, step: int) -> float | None:
        """One optimizer step, counted from 0; its loss, None if there was nothing to learn from."""

    @abstractmethod
    def schedule(self, step: int) -> dict[str, float]:
        """Columns of the curve that follow from the number of steps done: learning rate, tokens."""

    @abstractmethod
    def weights(self) -> dict[str, Any]:
        """Everything but the progress that a later process needs to go on as if never stopped."""

    @abstractmethod
    def restore_weights(self, state: dict[str, Any]) -> None:
        """Take up `weights` of an earlier process."""

    def step(self) -> None:
        """One optimizer step over the data that follows from seed and step."""
        begin = self._clock()
        done, loss = self.progress.step, self.progress.loss
        new = self._train(done)
        if new is not None:
            loss = new if math.isnan(loss) else 0.98 * loss + 0.02 * new
        seconds = self.progress.seconds + self._clock() - begin
        self.progress = RunState(done + 1, loss, seconds)

    def run(self, after_step: Callable[[RunState], None]) -> None:
        """Step until `steps` are done, calling ``after_step`` each time."""
        while self.progress.step < self.steps:
            self.step()
            after_step(self.progress)

    def state(self) -> dict[str, Any]:
        """Everything that a later process needs to go on as if never stopped."""
        return {"progress": asdict(self.progress), **self.weights()}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up `state` of an earlier process."""
        self.progress = replace(self.progress, **state["progress"])
        self.restore_weights(state)
