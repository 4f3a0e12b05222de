"""The adapter's loss and the figures that tell how well it drafts (arXiv 2404.18911, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

Head = Callable[[Tensor], Tensor]  # [M, N] -> logits [M, V], float32


@dataclass(frozen=True)
class Agreement:
    """Sums over ``count`` predictions of a drafter against the target's."""

    count: int = 0
    loss: float = 0.0
    acceptance: float = 0.0
    top1: float = 0.0

    def __add__(self, other: Agreement) -> Agreement:
        return Agreement(
            self.count + other.count,
            self.loss + other.loss,
            self.acceptance + other.acceptance,
            self.top1 + other.top1,
        )

    def means(self) -> dict[str, float]:
        """Per prediction: ``loss`` in nats, ``expected_acceptance`` and ``top1_agreement``."""
        return {
            "loss": self.loss / self.count,
            "expected_acceptance": self.acceptance / self.count,
            "top1_agreement": self.top1 / self.count,
        }


def backward(drafter: Tensor, target: Tensor, head: Head, chunk: int = 1024) -> Tensor:
    """Soft cross-entropy over the whole vocabulary, and its gradient, a chunk at a time.

    ``-mean_t Σ_x p_target(x|t) log p_drafter(x|t)`` at temperature 1. Logits exist for ``chunk``
    predictions at once only: with large vocabularies they would not fit otherwise.

    Args:
        drafter: what the head takes, ``[M, N]``, with the graph to run backward through.
        target: the target's own, ``[M, N]``.

    Returns:
        the loss, a detached scalar.
    """
    total = drafter.new_zeros((), dtype=torch.float32)
    gradients = []
    for piece, aim in zip(drafter.split(chunk), target.split(chunk), strict=True):
        leaf = piece.detach().requires_grad_()
        with torch.no_grad():
            wanted = head(aim).softmax(dim=-1)
        loss = functional.cross_entropy(head(leaf), wanted, reduction="sum") / len(drafter)
        loss.backward()
        assert leaf.grad is not None
        gradients.append(leaf.grad)
        total += loss.detach()
    drafter.backward(torch.cat(gradients))
    return total


@torch.no_grad()
def agreement(drafter: Tensor, target: Tensor, head: Head, chunk: int = 1024) -> Agreement:
    """Loss, ``Σ_x min(p_target, p_drafter)`` and equal argmax, summed over M predictions.

    Args:
        drafter, target: what the head takes, each ``[M, N]``.
    """
    total = Agreement()
    for piece, aim in zip(drafter.split(chunk), target.split(chunk), strict=True):
        ours, theirs = head(piece).log_softmax(dim=-1), head(aim).softmax(dim=-1)
        total += Agreement(
            len(piece),
            -(theirs * ours).sum().item(),
            torch.minimum(theirs, ours.exp()).sum().item(),
            (ours.argmax(-1) == theirs.argmax(-1)).sum().item(),
        )
    return total
