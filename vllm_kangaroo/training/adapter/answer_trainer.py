"""Train adapters on answers whose states are on disk: the target is not run, and a memory gets what it gets in serving.

Deep states of the last verified position reach the drafts of a round as they do when the adapter is served: see
`vllm_kangaroo.training.adapter.draft_rounds`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.answer_data import AnswerBatch, AnswerData, BatchOrder
from vllm_kangaroo.training.adapter.draft_rounds import IntArray, at_draft, drawn_rounds, recall
from vllm_kangaroo.training.adapter.loss import (
    Head,
    acceptance_loss,
    backward,
    soft_cross_entropy,
)
from vllm_kangaroo.training.adapter.trainee import earlier_adapter
from vllm_kangaroo.training.adapter.trainer_base import AdapterTrainerBase
from vllm_kangaroo.training.exits import exit_loss
from vllm_kangaroo.training.run.arithmetic import has_bfloat16
from vllm_kangaroo.training.run.target import Target
from vllm_kangaroo.training.run.trainer import Figures


class Tried(NamedTuple):
    """Drafts along answers: ``[drafts]`` each."""

    confidences: NDArray[np.float64]
    right: NDArray[np.bool_]


class AnswerTrainer(AdapterTrainerBase):
    """Adapters learn from answers and the target's states on disk; the loss is the exits' mean."""

    def __init__(
        self, target: Target, data: AnswerData, steps: int, options: AdapterTrainingOptions
    ) -> None:
        self.data = data
        self.order = BatchOrder(data.lengths, options.batch_size, options.seed)
        self.draft_vocab: Tensor | None = None
        self.head: Head = target.logits
        if options.draft_vocab is not None:
            if options.start_from is None:
                self.draft_vocab = data.frequent(options.draft_vocab, target.config.vocab_size)
            else:
                self.draft_vocab = earlier_adapter(options.start_from, options).draft_vocab
            assert self.draft_vocab is not None
            self.head = target.logits_of(self.draft_vocab)
        best_by = "expected_acceptance" if options.targets == "model" else "top1_agreement"
        super().__init__(target, steps, options, best_by, self.draft_vocab)

    def _train(self, step: int) -> float:
        batch = self.data.batch(self.order.documents(step))
        rng = np.random.default_rng([self.options.seed, step])
        remembered = drawn_rounds(batch.lengths, self.options.round_length, rng)
        with self._autocast():
            losses = self._backward(batch, self._drafters(batch, remembered))
        for trainee in self.trainees:
            trainee.step(self.learning_rate(step))
        return float(np.mean(losses))

    def _drafters(self, batch: AnswerBatch, remembered: IntArray) -> list[Tensor]:
        """What the head takes of each adapter, at the M counted positions: ``[M, N]``."""
        device = self.options.device
        memory: Tensor | None = None
        if self.options.kind == "memory":
            memory = recall(batch.final, remembered).to(device)
        counted = batch.counted.to(device)
        return [
            trainee.adapter(state.to(device), memory=memory, wanted=counted)
            for trainee, state in zip(self.trainees, batch.exits, strict=True)
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

    def measure(self, data: AnswerData, draft: int = 1) -> Figures:
        """Expected acceptance and agreement with the target by exit, over the counted positions.

        Args:
            draft: as if every position were this draft of its round, counted from 1.
        """
        return self.try_drafts(data, draft)[0]

    @torch.no_grad()
    def try_drafts(self, data: AnswerData, draft: int = 1) -> tuple[Figures, dict[int, Tried]]:
        """What :meth:`measure` gives, and each draft's confidence and whether it is the target's token, by exit."""
        size = self.options.batch_size
        order = np.argsort(data.lengths, kind="stable")
        totals = np.zeros((len(self.trainees), 2))
        confidences: list[list[Tensor]] = [[] for _ in self.trainees]
        right: list[list[Tensor]] = [[] for _ in self.trainees]
        count = 0
        for start in range(0, len(order), size):
            batch = data.batch(order[start : start + size])
            with self._autocast():
                drafters = self._drafters(batch, at_draft(batch.lengths, draft))
            final = batch.final[batch.counted].to(self.options.device)
            count += len(final)
            for part in range(0, len(final), 512):
                wanted = self.target.logits(final[part : part + 512]).softmax(dim=-1)
                for at, drafter in enumerate(drafters):
                    loss, acceptance, sure, alike = self._compare(
                        drafter[part : part + 512], wanted
                    )
                    totals[at] += (loss, acceptance)
                    confidences[at].append(sure.cpu())
                    right[at].append(alike.cpu())
        tried = {
            trainee.exit_layer: Tried(
                torch.cat(confidences[at]).double().numpy(), torch.cat(right[at]).numpy()
            )
            for at, trainee in enumerate(self.trainees)
        }
        figures = {
            trainee.exit_layer: {
                "loss": loss / count,
                "expected_acceptance": acceptance / count,
                "top1_agreement": float(tried[trainee.exit_layer].right.mean()),
            }
            for trainee, (loss, acceptance) in zip(self.trainees, totals.tolist(), strict=True)
        }
        return figures, tried

    def _autocast(self) -> AbstractContextManager[Any]:
        # Of the target only the head is run, so that nothing has to be in its dtype where that is the slower one.
        return super()._autocast() if has_bfloat16(self.options.device) else nullcontext()

    def _compare(self, drafter: Tensor, wanted: Tensor) -> tuple[float, float, Tensor, Tensor]:
        """Sums of loss and acceptance; of each draft its confidence and whether it is the likeliest token."""
        log_probs = self.head(drafter).log_softmax(dim=-1)
        (top, likeliest), theirs = log_probs.max(dim=-1), wanted.argmax(dim=-1)
        if self.draft_vocab is not None:
            vocab = self.draft_vocab.to(wanted.device)
            likeliest, wanted = vocab[likeliest], wanted[:, vocab]
        return (
            -(wanted * log_probs).sum().item(),
            torch.minimum(wanted, log_probs.exp()).sum().item(),
            top.exp(),
            likeliest == theirs,
        )
