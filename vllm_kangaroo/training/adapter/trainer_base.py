"""What both trainers of adapters share: the adapters, their learning rate, and which weights are kept."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.trainee import Trainee
from vllm_kangaroo.training.run.target import Target
from vllm_kangaroo.training.run.trainer import Figures, Trainer

DRAWN = ("expected_acceptance", "top1_agreement")
"""Figures on the curve of a run."""
_STATES = "pupils"  # what files of unfinished runs have called the adapters since the first


def scheduled_rate(options: AdapterTrainingOptions, steps: int, step: int) -> float:
    """Learning rate of a step of a run of ``steps``: linear warm-up, then a cosine to a tenth of the peak."""
    warmup = min(options.warmup_steps, steps // 2)
    peak = options.learning_rate
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(steps - warmup, 1)
    return peak * (0.55 + 0.45 * math.cos(math.pi * done))


class AdapterTrainerBase(Trainer):
    """Trains an adapter for each exit of the target.

    Args:
        best_by: the figure whose highest value makes the weights that are kept.
        draft_vocab: see `Trainee`.
    """

    def __init__(
        self,
        target: Target,
        steps: int,
        options: AdapterTrainingOptions,
        best_by: str,
        draft_vocab: Tensor | None = None,
    ) -> None:
        super().__init__(steps)
        self.target = target
        self.options = options
        self.best_by = best_by
        self.trainees = [
            Trainee(target, exit_layer, options, draft_vocab) for exit_layer in target.exits
        ]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine from the peak to a tenth of it."""
        return scheduled_rate(self.options, self.steps, step)

    def schedule(self, step: int) -> dict[str, float]:
        """See `Trainer.schedule`."""
        return {"learning_rate": self.learning_rate(step)}

    def _autocast(self) -> AbstractContextManager[Any]:
        """Products in bfloat16 if the options say so."""
        return torch.autocast(
            torch.device(self.options.device).type,
            torch.bfloat16,
            enabled=self.options.dtype == "bfloat16",
        )

    def keep_best(self, figures: Figures) -> None:
        """Let each adapter remember its weights if these figures are its best so far."""
        for trainee in self.trainees:
            trainee.keep_if_best(self.progress.step, figures[trainee.exit_layer][self.best_by])

    def weights(self) -> dict[str, Any]:
        """See `Trainer.weights`."""
        return {_STATES: [trainee.state() for trainee in self.trainees]}

    def restore_weights(self, state: dict[str, Any]) -> None:
        """See `Trainer.restore_weights`."""
        for trainee, saved in zip(self.trainees, state[_STATES], strict=True):
            trainee.restore(saved)
