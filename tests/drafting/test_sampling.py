"""Sampled drafts and nested rejection sampling: what comes out is a sample of the verifier, by chi-squared."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from vllm_kangaroo.drafting.sampling import SampledDrafting, check

pytestmark = pytest.mark.slow

VOCAB = 16
TRIALS = 200_000
CHUNK = 20_000
START = 3
"""The token before the first draft."""


def table(seed: int) -> Tensor:
    """What follows each token: ``[VOCAB, VOCAB]``."""
    generator = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(VOCAB, VOCAB, generator=generator)).softmax(dim=-1)


DRAFT, VERIFIER = table(1), table(2)


class Chance:
    """Requests without seeds, temperatures or greed."""

    def probabilities(self, logits: Tensor, who: Sequence[int]) -> Tensor:
        assert len(logits) == len(who)
        return logits.softmax(dim=-1)

    def exponential(self, who: Sequence[int], like: Tensor) -> Tensor:
        return torch.empty_like(like).exponential_()

    def uniform(self, who: Sequence[int]) -> Tensor:
        return torch.rand(len(who), dtype=torch.float64)

    def pick(self, which: Sequence[int]) -> Chance:
        return self


def draft_pass(
    input_ids: Tensor, positions: Tensor, memory: Tensor | None
) -> tuple[tuple[Tensor, ...], Tensor]:
    return (), DRAFT[input_ids.long()].log()


def chains(count: int, steps: int, sampling: Chance) -> tuple[list[list[int]], SampledDrafting]:
    sampled = SampledDrafting(draft_pass, sampling, count)
    newest = torch.full((count,), START, dtype=torch.int32)
    drafted = []
    for _ in range(steps):
        _, newest, confidences = sampled(range(count), newest, newest, None)
        assert ((confidences > 0) & (confidences <= 1)).all()
        drafted.append(newest)
    return torch.stack(drafted, dim=1).tolist(), sampled


def far(counts: Tensor, expected: Tensor) -> bool:
    """Whether counts are no sample of a distribution: ten standard deviations of the statistic away."""
    expected = expected.double() * int(counts.sum())
    keep = expected >= 5
    observed = counts[keep].double()
    against = expected[keep] / expected[keep].sum() * observed.sum()
    statistic = chisquare(observed.numpy(), against.numpy()).statistic
    freedom = max(1, int(keep.sum()) - 1)
    return bool(statistic > freedom + 10 * (2 * freedom) ** 0.5)


def buffers(sampling: Chance, *, believed: Tensor = DRAFT) -> list[list[int]]:
    """Rounds of two drafts each, checked once; ``believed`` is what they are said to have been sampled from."""
    found = []
    for _ in range(TRIALS // CHUNK):
        drafted, sampled = chains(CHUNK, 2, sampling)
        before = [[START, first] for first, _ in drafted]
        verifier = VERIFIER[torch.tensor(before)].reshape(-1, VOCAB)
        distributions = [torch.stack(rows) for rows in sampled.distributions]
        if believed is not DRAFT:
            distributions = list(believed[torch.tensor(before)].unbind())
        checked = check(drafted, distributions, verifier, sampling)
        for tokens, agreed, own in zip(drafted, checked.agreed, checked.own, strict=True):
            assert (own is None) == (agreed == len(tokens))
            found.append(tokens[:agreed] + ([] if own is None else [own]))
    return found


def counted(found: list[list[int]]) -> tuple[Tensor, Tensor]:
    """How often each token came first, and which token came second after which, where a second was drafted."""
    firsts = torch.bincount(torch.tensor([own[0] for own in found]), minlength=VOCAB)
    pairs = torch.tensor([own for own in found if len(own) == 2])
    seconds = torch.bincount(pairs[:, 0] * VOCAB + pairs[:, 1], minlength=VOCAB**2)
    return firsts, seconds.view(VOCAB, VOCAB)


def test_drafts_are_samples_of_the_exit():
    torch.manual_seed(0)
    found = [own for _ in range(TRIALS // CHUNK) for own in chains(CHUNK, 2, Chance())[0]]
    firsts, seconds = counted(found)
    assert not far(firsts, DRAFT[START])
    assert not any(far(row, expected) for row, expected in zip(seconds, DRAFT, strict=True))
    assert far(firsts, VERIFIER[START])


def test_a_buffer_is_a_sample_of_the_intermediate_verifier():
    torch.manual_seed(1)
    found = buffers(Chance())
    firsts, seconds = counted(found)
    assert not far(firsts, VERIFIER[START])
    assert not any(far(row, expected) for row, expected in zip(seconds, VERIFIER, strict=True))
    # Some of both: accepted pairs, and rejections at either place.
    assert {len(own) for own in found} == {1, 2}


class Credulous(Chance):
    """Accepts every draft."""

    def uniform(self, who: Sequence[int]) -> Tensor:
        return torch.zeros(len(who), dtype=torch.float64)


@pytest.mark.parametrize("fault", ["accepts all", "other distribution", "as if certain"])
def test_chi_squared_sees_a_wrong_check(fault: str):
    torch.manual_seed(2)
    if fault == "accepts all":
        found = buffers(Credulous())
    elif fault == "other distribution":
        found = buffers(Chance(), believed=torch.full_like(DRAFT, 1 / VOCAB))
    else:  # the rule for deterministic drafts: accept with p(x)
        found = buffers(Chance(), believed=torch.ones_like(DRAFT))
    assert far(counted(found)[0], VERIFIER[START])


def test_acceptance_is_what_the_distributions_have_in_common():
    torch.manual_seed(3)
    drafted, sampled = chains(CHUNK, 1, Chance())
    distributions = [torch.stack(rows) for rows in sampled.distributions]
    verifier = VERIFIER[START].expand(CHUNK, VOCAB)
    checked = check(drafted, distributions, verifier, Chance())
    common = float(torch.minimum(DRAFT[START], VERIFIER[START]).sum())
    assert sum(checked.agreed) / CHUNK == pytest.approx(common, abs=0.02)
    # Where both are one, nothing is rejected; where they share nothing, all is.
    checked = check(drafted, distributions, DRAFT[START].expand(CHUNK, VOCAB), Chance())
    assert checked.agreed == [1] * CHUNK


def test_likeliest_tokens_are_checked_for_equality():
    """With all probability on one token this is the check of greedy requests."""
    certain = torch.eye(VOCAB)
    drafted = [[4, 5, 6], [7]]
    distributions = [certain[own] for own in drafted]
    checked = check(drafted, distributions, certain[[4, 9, 6, 7]], Chance())
    assert (checked.agreed, checked.own) == ([1, 1], [9, None])
