"""Train Kangaroo adapters: teacher forcing on a frozen target (arXiv 2404.18911, section 3).

With ``targets`` "model" an adapter learns the target's distribution, which takes the target's whole forward
pass; with "text" the token that follows in the text, which takes the layers up to the deepest exit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.exit_states import Features
from vllm_kangaroo.training.adapter.loss import Agreement, agreement, backward
from vllm_kangaroo.training.adapter.trainer_base import AdapterTrainerBase
from vllm_kangaroo.training.data.windows import Order, Windows
from vllm_kangaroo.training.exits import exit_loss
from vllm_kangaroo.training.run import parallel
from vllm_kangaroo.training.run.target import Target
from vllm_kangaroo.training.run.trainer import Figures


class AdapterTrainer(AdapterTrainerBase):
    """Adapters learn from windows of text, over which the target is run; the loss is the exits' mean."""

    def __init__(
        self, target: Target, windows: Windows, steps: int, options: AdapterTrainingOptions
    ) -> None:
        self.shallow = options.targets == "text"
        # A text teaches the likeliest token and no distribution: of greedy text the better an adapter
        # knows it, the surer it is, and the less it accepts at temperature 1.
        best_by = "top1_agreement" if self.shallow else "expected_acceptance"
        super().__init__(target, steps, options, best_by)
        self.windows = windows.with_next_token() if self.shallow else windows
        self.order = Order(len(windows), options.batch_size, options.seed)
        self.features = Features(
            target, windows, options.cache_gib, options.device, shallow=self.shallow
        )

    def schedule(self, step: int) -> dict[str, float]:
        """See `Trainer.schedule`."""
        tokens = step * self.options.batch_size * self.options.window
        return {"tokens": tokens, **super().schedule(step)}

    def _train(self, step: int) -> float | None:
        rows = self.order.rows(step)
        count = int(self.windows.counted[rows].sum())
        if not count:  # a batch may hold no answer
            return None
        losses = np.zeros(len(self.trainees))
        mine = rows[parallel.rank() :: parallel.size()]
        for part in np.array_split(mine, self.options.accumulate):
            losses += self._backward(part, count)
        for trainee in self.trainees:
            parallel.add_gradients(trainee.adapter.parameters())
            trainee.step(self.learning_rate(step))
        return float(np.mean(parallel.total(losses.tolist(), self.options.device)))

    def _backward(self, rows: Any, count: int) -> list[float]:
        """Losses of each adapter over some windows of a step, their gradients added up."""
        counted = torch.from_numpy(self.windows.counted[rows])
        if not counted.any():
            self.target.run_along(shallow=self.shallow)
            return [0.0] * len(self.trainees)
        states = self.features.states(rows)
        with self._autocast():
            drafters = self._drafters(states[: len(self.trainees)], counted)
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
            self._at(trainee.adapter(state), counted)
            for trainee, state in zip(self.trainees, exits, strict=True)
        ]

    @staticmethod
    def _at(states: Tensor, counted: Tensor) -> Tensor:
        return states[counted.to(states.device)]

    @torch.no_grad()
    def measure(self, windows: Windows, bare: bool = False) -> Figures:
        """`Agreement.means` by exit over ``windows``, of the adapters or of the bare exit heads.

        The bare head is the target's own final norm and LM head on the exit state.
        """
        totals = [Agreement() for _ in self.trainees]
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
            trainee.exit_layer: self._over_all(total).means()
            for trainee, total in zip(self.trainees, totals, strict=True)
        }

    def _over_all(self, own: Agreement) -> Agreement:
        """Sums of all processes that train together."""
        values = [own.count, own.loss, own.acceptance, own.top1]
        count, *rest = parallel.total(values, self.options.device)
        return Agreement(round(count), *rest)

    def weights(self) -> dict[str, Any]:
        """See `Trainer.weights`."""
        return {**super().weights(), "rng": torch.get_rng_state()}

    def restore_weights(self, state: dict[str, Any]) -> None:
        """See `Trainer.restore_weights`."""
        super().restore_weights(state)
        torch.set_rng_state(state["rng"])
