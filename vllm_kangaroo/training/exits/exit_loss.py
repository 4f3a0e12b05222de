"""Cross-entropy through the shared norm and head at several exits (arXiv 2404.16710, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vllm_kangaroo.training.adapter.loss import Head


def exit_weights(
    exits: Sequence[int], layers: int, scale: float, kind: str = "uniform"
) -> dict[int, float]:
    """Weight of each exit's loss and of the full model's (exit ``layers``); they sum to 1.

    ``(full + scale · mean of the exits) / (1 + scale)``; with ``depth`` an exit's share in the mean
    grows as ``Σ_{i<=l} i``, as in LayerSkip.
    """
    if not exits:
        return {layers: 1.0}
    shares = [1.0 if kind == "uniform" else layer * (layer + 1) / 2 for layer in exits]
    weights = {
        layer: scale / (1 + scale) * share / sum(shares)
        for layer, share in zip(exits, shares, strict=True)
    }
    return {**weights, layers: 1 / (1 + scale)}


def backward(
    normed: Sequence[Tensor],
    labels: Tensor,
    weights: Sequence[float],
    head: Head,
    count: int,
    chunk: int = 1024,
) -> list[float]:
    """Gradient of the weighted sum of losses; logits exist for ``chunk`` predictions at once.

    Args:
        normed: of each exit what the head takes, ``[M, N]`` with the graph to run backward through.
        labels: ``[M]``, the tokens that follow.
        weights: of each exit.
        count: what the sums are divided by.

    Returns:
        the exits' losses in nats, not weighted.
    """
    losses, gradients = [], []
    for hidden, weight in zip(normed, weights, strict=True):
        total = 0.0
        parts = []
        for piece, aim in zip(hidden.split(chunk), labels.split(chunk), strict=True):
            leaf = piece.detach().requires_grad_()
            loss = functional.cross_entropy(head(leaf), aim, reduction="sum") / count
            (loss * weight).backward()
            assert leaf.grad is not None
            parts.append(leaf.grad)
            total += loss.item()
        losses.append(total)
        gradients.append(torch.cat(parts))
    torch.autograd.backward(list(normed), gradients)
    return losses
