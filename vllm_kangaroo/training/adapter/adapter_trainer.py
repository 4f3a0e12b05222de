"""Train Kangaroo adapters: teacher forcing on a frozen target (arXiv 2404.18911, section 3).

With ``targets`` "model" an adapter learns the target's distribution, which takes the target's whole forward
pass; with "text" the token that follows in the text, which takes the layers up to the deepest exit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.exit_states import Features
from vllm_kangaroo.training.adapter.loss import Agreement, agreement, backward
from vllm_kangaroo.training.adapter.trainee import Pupil
from vllm_kangaroo.training.data.windows import Order, Windows
from vllm_kangaroo.training.exits import exit_loss
from vllm_kangaroo.training.run import parallel
from vllm_kangaroo.training.run.target import Target

Figures = dict[int, dict[str, float]]
"""By exit: `Agreement.means`."""


def scheduled_rate(options: AdapterTrainingOptions, steps: int, step: int) -> float:
    """Learning rate of a step of a run of ``steps``: linear warm-up, then a cosine to a tenth of the peak."""
    warmup = min(options.warmup_steps, steps // 2)
    peak = options.learning_rate
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.55 + 0.45 * math.cos(math.pi * done))


@dataclass(frozen=True)
class Progress:
    """Where a run is: steps done, smoothed loss in nats (mean of the exits), seconds spent."""

    step: int = 0
    loss: float = math.nan
    seconds: float = 0.0


class AdapterTrainer:
    """The training loop's state and its one step."""

    def __init__(
        self, target: Target, windows: Windows, steps: int, options: AdapterTrainingOptions
    ) -> None:
        self.target = target
        self.shallow = options.targets == "text"
        self.windows = windows.with_next_token() if self.shallow else windows
        self.steps = steps
        self.options = options
        self.progress = Progress()
        self.order = Order(len(windows), options.batch_size, options.seed)
        self.features = Features(
            target, windows, options.cache_gib, options.device, shallow=self.shallow
        )
        self.pupils = [Pupil(target, exit_layer, options) for exit_layer in target.exits]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine from the peak to a tenth of it."""
        return scheduled_rate(self.options, self.steps, step)

    def step(self) -> None:
        """One optimizer step over the batch that `Order` gives it."""
        begin = time.monotonic()
        done = self.progress.step
        rows = self.order.rows(done)
        count = int(self.windows.counted[rows].sum())
        loss = self.progress.loss
        if count:  # a batch may hold no answer
            losses = np.zeros(len(self.pupils))
            mine = rows[parallel.rank() :: parallel.size()]
            for part in np.array_split(mine, self.options.accumulate):
                losses += self._backward(part, count)
            for pupil in self.pupils:
                parallel.add_gradients(pupil.adapter.parameters())
                pupil.step(self.learning_rate(done))
            mean = float(np.mean(parallel.total(losses.tolist(), self.options.device)))
            loss = mean if math.isnan(loss) else 0.98 * loss + 0.02 * mean
        seconds = self.progress.seconds + time.monotonic() - begin
        self.progress = Progress(done + 1, loss, seconds)

    def _backward(self, rows: Any, count: int) -> list[float]:
        """Losses of each adapter over some windows of a step, their gradients added up."""
        counted = torch.from_numpy(self.windows.counted[rows])
        if not counted.any():
            self.target.run_along(shallow=self.shallow)
            return [0.0] * len(self.pupils)
        states = self.features.states(rows)
        with self._autocast():
            drafters = self._drafters(states[: len(self.pupils)], counted)
            if not self.shallow:
                aim = self._at(states[-1], counted)
                return backward(drafters, aim, self.target.logits, count)
            labels = self._labels(rows, counted)
            alike = [1.0] * len(drafters)
            return exit_loss.backward(drafters, labels, alike, self.target.logits, count)

    def _labels(self, rows: Any, counted: Tensor) -> Tensor:
        """The tokens ``[M]`` that follow the M counted positions."""
        ids, _ = self.windows.select(rows)
        return self._at(ids[:, 1:].to(self.options.device), counted[:, :-1])

    def _drafters(self, exits: Sequence[Tensor], counted: Tensor) -> list[Tensor]:
        """What the head takes of each adapter, at the M counted positions: ``[M, N]``."""
        return [
            self._at(pupil.adapter(state), counted)
            for pupil, state in zip(self.pupils, exits, strict=True)
        ]

    @staticmethod
    def _at(states: Tensor, counted: Tensor) -> Tensor:
        return states[counted.to(states.device)]

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(
            torch.device(self.options.device).type,
            torch.bfloat16,
            enabled=self.options.dtype == "bfloat16",
        )

    @torch.no_grad()
    def measure(self, windows: Windows, bare: bool = False) -> Figures:
        """`Agreement.means` by exit over ``windows``, of the adapters or of the bare exit heads.

        The bare head is the target's own final norm and LM head on the exit state.
        """
        totals = [Agreement() for _ in self.pupils]
        for batch in parallel.deal(list(windows.batches(self.options.batch_size))):
            if batch is None or not batch[1].any():
                self.target.run_along()
                continue
            ids, counted = batch
            *exits, final = self.target.states(ids.to(self.options.device))
            with self._autocast():
                if bare:
                    drafters = [self._at(self.target.final_norm(state), counted) for state in exits]
                else:
                    drafters = self._drafters(exits, counted)
                wanted = self._at(final, counted)
                for at, drafter in enumerate(drafters):
                    totals[at] += agreement(drafter, wanted, self.target.logits)
        return {
            pupil.exit_layer: self._over_all(total).means()
            for pupil, total in zip(self.pupils, totals, strict=True)
        }

    def _over_all(self, own: Agreement) -> Agreement:
        """Sums of all processes that train together."""
        values = [own.count, own.loss, own.acceptance, own.top1]
        count, *rest = parallel.total(values, self.options.device)
        return Agreement(round(count), *rest)

    def keep_best(self, figures: Figures) -> None:
        """Let each adapter remember its weights if these figures are its best so far."""
        # A text teaches the likeliest token and no distribution: of greedy text the better an adapter
        # knows it, the surer it is, and the less it accepts at temperature 1.
        key = "top1_agreement" if self.shallow else "expected_acceptance"
        for pupil in self.pupils:
            pupil.keep_if_best(self.progress.step, figures[pupil.exit_layer][key])

    def state(self) -> dict[str, Any]:
        """Everything that a later process needs to go on as if never stopped."""
        return {
            "progress": asdict(self.progress),
            "pupils": [pupil.state() for pupil in self.pupils],
            "rng": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up `state` of an earlier process."""
        self.progress = replace(self.progress, **state["progress"])
        for pupil, saved in zip(self.pupils, state["pupils"], strict=True):
            pupil.restore(saved)
        torch.set_rng_state(state["rng"])

    def run(self, after_step: Callable[[Progress], None]) -> None:
        """Step until `steps` are done, calling ``after_step`` each time."""
        while self.progress.step < self.steps:
            self.step()
            after_step(self.progress)
