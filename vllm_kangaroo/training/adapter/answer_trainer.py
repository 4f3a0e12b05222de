"""Train adapters on answers whose states are on disk: the target is not run, and a memory sees what it will see.

Deep states of the last verified position reach the drafts of a round as they do when the adapter is served: see
`vllm_kangaroo.training.adapter.rounds`.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.adapter_trainer import Figures, Progress, scheduled_rate
from vllm_kangaroo.training.adapter.answer_data import AnswerBatch, AnswerData, BatchOrder
from vllm_kangaroo.training.adapter.loss import (
    Head,
    acceptance_loss,
    backward,
    soft_cross_entropy,
)
from vllm_kangaroo.training.adapter.rounds import IntArray, at_draft, drawn_rounds, recall
from vllm_kangaroo.training.adapter.trainee import Pupil
from vllm_kangaroo.training.exits import exit_loss
from vllm_kangaroo.training.run.target import Target


class AnswerTrainer:
    """The training loop's state and its one step.

    Args:
        steps: optimizer steps of the run.
    """

    def __init__(
        self, target: Target, data: AnswerData, steps: int, options: AdapterTrainingOptions
    ) -> None:
        self.target = target
        self.data = data
        self.steps = steps
        self.options = options
        self.progress = Progress()
        self.order = BatchOrder(data.lengths, options.batch_size, options.seed)
        self.draft_vocab: Tensor | None = None
        self.head: Head = target.logits
        if options.draft_vocab is not None:
            self.draft_vocab = data.frequent(options.draft_vocab, target.config.vocab_size)
            self.head = target.logits_of(self.draft_vocab)
        self.pupils = [
            Pupil(target, exit_layer, options, self.draft_vocab) for exit_layer in target.exits
        ]

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then a cosine from the peak to a tenth of it."""
        return scheduled_rate(self.options, self.steps, step)

    def step(self) -> None:
        """One optimizer step over the documents that `BatchOrder` gives it."""
        begin = time.monotonic()
        done = self.progress.step
        batch = self.data.batch(self.order.documents(done))
        rng = np.random.default_rng([self.options.seed, done])
        remembered = drawn_rounds(batch.lengths, self.options.round_length, rng)
        losses = self._backward(batch, self._drafters(batch, remembered))
        for pupil in self.pupils:
            pupil.step(self.learning_rate(done))
        mean, loss = float(np.mean(losses)), self.progress.loss
        loss = mean if math.isnan(loss) else 0.98 * loss + 0.02 * mean
        seconds = self.progress.seconds + time.monotonic() - begin
        self.progress = Progress(done + 1, loss, seconds)

    def _drafters(self, batch: AnswerBatch, remembered: IntArray) -> list[Tensor]:
        """What the head takes of each adapter, at the M counted positions: ``[M, N]``."""
        device = self.options.device
        memory: Tensor | None = None
        if self.options.kind == "memory":
            memory = recall(batch.final, remembered).to(device)
        return [
            pupil.adapter(state.to(device), memory=memory)[batch.counted.to(device)]
            for pupil, state in zip(self.pupils, batch.exits, strict=True)
        ]

    def _backward(self, batch: AnswerBatch, drafters: list[Tensor]) -> list[float]:
        device = self.options.device
        if self.options.targets != "text":
            final = batch.final[batch.counted].to(device)
            loss = acceptance_loss if self.options.targets == "acceptance" else soft_cross_entropy
            return backward(drafters, final, self.head, len(final), loss_of=loss)
        labels = batch.labels[batch.counted].to(device)
        if self.draft_vocab is not None:
            vocab = self.draft_vocab.to(device)
            column = torch.searchsorted(vocab, labels).clamp(max=len(vocab) - 1)
            known = vocab[column] == labels
            drafters, labels = [drafter[known] for drafter in drafters], column[known]
        alike = [1.0] * len(drafters)
        return exit_loss.backward(drafters, labels, alike, self.head, len(labels))

    @torch.no_grad()
    def measure(self, data: AnswerData, draft: int = 1) -> Figures:
        """Expected acceptance and agreement with the target by exit, over the counted positions.

        Args:
            draft: as if every position were this draft of its round, counted from 1.
        """
        size = self.options.batch_size
        order = np.argsort(data.lengths, kind="stable")
        totals = np.zeros((len(self.pupils), 3))
        count = 0
        for start in range(0, len(order), size):
            batch = data.batch(order[start : start + size])
            drafters = self._drafters(batch, at_draft(batch.lengths, draft))
            final = batch.final[batch.counted].to(self.options.device)
            count += len(final)
            for part in range(0, len(final), 512):
                wanted = self.target.logits(final[part : part + 512]).softmax(dim=-1)
                for at, drafter in enumerate(drafters):
                    totals[at] += self._figures(drafter[part : part + 512], wanted)
        return {
            pupil.exit_layer: {
                "loss": loss / count,
                "expected_acceptance": acceptance / count,
                "top1_agreement": top1 / count,
            }
            for pupil, (loss, acceptance, top1) in zip(self.pupils, totals.tolist(), strict=True)
        }

    def _figures(self, drafter: Tensor, wanted: Tensor) -> tuple[float, float, float]:
        log_probs = self.head(drafter).log_softmax(dim=-1)
        likeliest, theirs = log_probs.argmax(dim=-1), wanted.argmax(dim=-1)
        if self.draft_vocab is not None:
            vocab = self.draft_vocab.to(wanted.device)
            likeliest, wanted = vocab[likeliest], wanted[:, vocab]
        return (
            -(wanted * log_probs).sum().item(),
            torch.minimum(wanted, log_probs.exp()).sum().item(),
            (likeliest == theirs).sum().item(),
        )

    def keep_best(self, figures: Figures) -> None:
        """Let each adapter remember its weights if these figures are its best so far."""
        key = "expected_acceptance" if self.options.targets == "model" else "top1_agreement"
        for pupil in self.pupils:
            pupil.keep_if_best(self.progress.step, figures[pupil.exit_layer][key])

    def state(self) -> dict[str, Any]:
        """Everything that a later process needs to go on as if never stopped."""
        return {
            "progress": asdict(self.progress),
            "pupils": [pupil.state() for pupil in self.pupils],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up `state` of an earlier process."""
        self.progress = replace(self.progress, **state["progress"])
        for pupil, saved in zip(self.pupils, state["pupils"], strict=True):
            pupil.restore(saved)
