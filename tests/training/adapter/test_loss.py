"""The chunked loss against autograd on the formula as it is written."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vllm_kangaroo.training.adapter.loss import agreement, backward
from vllm_kangaroo.training.exits import exit_loss

M, N, V = 11, 6, 40


@pytest.fixture
def parts() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(V, N, generator=generator),
        torch.randn(M, N, generator=generator),
        torch.randn(M, N, generator=generator),
    )


@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_loss_and_gradient(parts: tuple[Tensor, Tensor, Tensor], chunk: int) -> None:
    weight, start, target = parts
    expected_leaf = start.clone().requires_grad_()
    log_p = (expected_leaf * 2 @ weight.T).log_softmax(-1)
    expected = -((target @ weight.T).softmax(-1) * log_p).sum() / M
    expected.backward()
    leaf = start.clone().requires_grad_()
    other = start.clone().requires_grad_()
    losses = backward([leaf * 2, other * 2], target, lambda hidden: hidden @ weight.T, 2 * M, chunk)
    assert losses == pytest.approx([expected.item() / 2] * 2, abs=1e-5)
    assert torch.equal(leaf.grad, other.grad)
    assert leaf.grad is not None and expected_leaf.grad is not None
    assert torch.allclose(leaf.grad * 2, expected_leaf.grad, atol=1e-6)
    assert leaf.grad.abs().max() > 1e-3


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_labels_teach_what_a_teacher_does_that_is_sure_of_them(
    parts: tuple[Tensor, Tensor, Tensor], chunk: int
) -> None:
    weight, start, _ = parts
    labels = torch.randint(V, (M,), generator=torch.Generator().manual_seed(1))
    sure = torch.zeros(M, V).scatter_(1, labels[:, None], 1e4)

    def head(hidden: Tensor) -> Tensor:
        return hidden if hidden.shape[-1] == V else hidden @ weight.T

    soft, hard, other = (start.clone().requires_grad_() for _ in range(3))
    expected = backward([soft * 2], sure, head, 2 * M, chunk)
    found = exit_loss.backward([hard * 2, other * 2], labels, [1.0, 1.0], head, 2 * M, chunk)
    assert found == pytest.approx(expected * 2, rel=1e-6)
    assert soft.grad is not None and hard.grad is not None
    assert torch.equal(hard.grad, other.grad)
    assert torch.allclose(hard.grad, soft.grad, atol=1e-7)
    assert hard.grad.abs().max() > 1e-3


def test_a_perfect_drafter(parts: tuple[Tensor, Tensor, Tensor]) -> None:
    weight, _, target = parts
    means = agreement(target, target, lambda hidden: hidden @ weight.T, chunk=4).means()
    p = (target @ weight.T).softmax(-1)
    assert means["expected_acceptance"] == pytest.approx(1, abs=1e-5)
    assert means["top1_agreement"] == 1
    assert means["loss"] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), abs=1e-4)


def test_figures_of_known_distributions() -> None:
    def head(hidden: Tensor) -> Tensor:
        return hidden.log()

    drafter = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    target = torch.tensor([[0.2, 0.3, 0.5], [0.1, 0.3, 0.6]])
    total = agreement(drafter, target, head, chunk=1)
    assert total.count == 2
    assert total.means()["expected_acceptance"] == pytest.approx((0.7 + 0.9) / 2)
    assert total.means()["top1_agreement"] == 0.5
    assert total.means()["loss"] == pytest.approx(
        -(target * drafter.log()).sum(-1).mean().item(), abs=1e-6
    )
