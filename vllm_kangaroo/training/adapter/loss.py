"""The adapter's loss and the figures that tell how well it drafts (arXiv 2404.18911, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


Loss = Callable[[Tensor, Tensor], Tensor]  # logits [M, V], target's probabilities -> sum over M


def soft_cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """``-Σ_t Σ_x p_target(x|t) log p_drafter(x|t)``, of a target whose probabilities sum to 1."""
    found: Tensor = _SoftCrossEntropy.apply(logits, wanted)
    return found


class _SoftCrossEntropy(torch.autograd.Function):
    """Its gradient is the difference of the distributions, for fewer passes over ``[M, V]`` than autograd makes."""

    @staticmethod
    def forward(context: Any, logits: Tensor, wanted: Tensor) -> Tensor:
        probs = logits.softmax(dim=-1)
        top, where = logits.max(dim=-1, keepdim=True)
        normalizers = top - probs.gather(-1, where).log()
        total = normalizers.sum() - torch.dot(wanted.flatten(), logits.flatten())
        context.save_for_backward(probs.sub_(wanted))
        return total

    @staticmethod
    def backward(context: Any, *above: Tensor) -> tuple[Tensor, None]:
        (difference,) = context.saved_tensors
        return difference * above[0], None


def acceptance_loss(logits: Tensor, wanted: Tensor, sharpness: float = 3.0) -> Tensor:
    """A mix of divergence and rejection whose weight moves with acceptance (arXiv 2602.23881).

    Where little is accepted, the soft cross-entropy has a gradient and the probability of rejection
    hardly one; where much is, the latter is what counts.
    """
    log_probs = logits.log_softmax(dim=-1)
    accepted = torch.minimum(log_probs.exp(), wanted).sum(dim=-1)
    weight = torch.exp(-sharpness * accepted.detach())
    divergence = -(wanted * log_probs).sum(dim=-1)
    return (weight * divergence + (1 - weight) * (1 - accepted)).sum()


def backward(
    drafters: Sequence[Tensor],
    target: Tensor,
    head: Head,
    count: int,
    chunk: int = 1024,
    loss_of: Loss = soft_cross_entropy,
) -> list[float]:
    """A loss against the target's distribution over the head's tokens, and its gradient, a chunk at a time.

    ``-Σ_t Σ_x p_target(x|t) log p_drafter(x|t) / count`` at temperature 1. Logits exist for
    ``chunk`` predictions at once only: with large vocabularies they would not fit otherwise. The
    target's distribution is worked out once for all drafters.

    Args:
        drafters: what the head takes, each ``[M, N]`` with the graph to run backward through.
        target: the target's own, ``[M, N]``.
        count: what to divide by; M, or more if these predictions are a part of a step's.

    Returns:
        the losses.
    """
    totals = [drafter.new_zeros((), dtype=torch.float32) for drafter in drafters]
    gradients: list[list[Tensor]] = [[] for _ in drafters]
    pieces = zip(*(drafter.split(chunk) for drafter in drafters), strict=True)
    for aim, parts in zip(target.split(chunk), pieces, strict=True):
        with torch.no_grad():
            wanted = head(aim).softmax(dim=-1)
        for at, part in enumerate(parts):
            leaf = part.detach().requires_grad_()
            loss = loss_of(head(leaf), wanted) / count
            loss.backward()
            assert leaf.grad is not None
            gradients[at].append(leaf.grad)
            totals[at] += loss.detach()
    for drafter, parts_of in zip(drafters, gradients, strict=True):
        drafter.backward(torch.cat(parts_of))
    return [total.item() for total in totals]


@torch.no_grad()
def agreement(
    drafter: Tensor,
    target: Tensor,
    head: Head,
    drafter_head: Head | None = None,
    chunk: int = 1024,
) -> Agreement:
    """Loss, ``Σ_x min(p_target, p_drafter)`` and equal argmax, summed over M predictions.

    Args:
        drafter, target: what the head takes, each ``[M, N]``.
        drafter_head: the drafter's, if it is another: minus infinity for tokens it does not know, of which the loss
            takes no notice.
    """
    total = Agreement()
    for piece, aim in zip(drafter.split(chunk), target.split(chunk), strict=True):
        ours = (drafter_head or head)(piece).log_softmax(dim=-1)
        theirs = head(aim).softmax(dim=-1)
        total += Agreement(
            len(piece),
            -(theirs * ours).masked_fill(ours == -torch.inf, 0.0).sum().item(),
            torch.minimum(theirs, ours.exp()).sum().item(),
            (ours.argmax(-1) == theirs.argmax(-1)).sum().item(),
        )
    return total
