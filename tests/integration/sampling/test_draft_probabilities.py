"""What drafts are drawn from: by each request's own parameters, and on the way into vLLM's rejection sampler."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from vllm_kangaroo.integration.sampling.distributions import DraftDistributions
from vllm_kangaroo.integration.sampling.request_sampling import RequestSampling
from vllm_kangaroo.ladder.counters import LadderCounters

VOCAB = 16


def metadata(temperature: list[float], **changes: Any) -> Any:
    fields: dict[str, Any] = {
        "temperature": torch.tensor(temperature),
        "top_k": None,
        "top_p": None,
        "generators": {},
        "all_greedy": False,
        "all_random": 0.0 not in temperature,
    }
    return SimpleNamespace(**fields | changes)


def test_each_request_has_its_own_temperature_and_cuts() -> None:
    settings = metadata(
        [0.0, 0.5, 1.0, 1.0], top_k=torch.tensor([4, 4, 2, 4]), top_p=torch.tensor([1, 1, 1, 0.6])
    )
    sampling = RequestSampling(settings, np.array([3, 1, 0, 2]), [False] * 4)
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(4, 1)
    found = sampling.probabilities(logits, [2, 1, 3, 0])
    assert found[0].tolist() == [0, 0, 0, 1]  # greedy
    squares = torch.tensor([1.0, 4.0, 9.0, 16.0]) / 30
    assert found[1].tolist() == pytest.approx(squares.tolist())
    assert found[2].tolist() == pytest.approx([0, 0, 3 / 7, 4 / 7])
    assert found[3].tolist() == pytest.approx([0, 0, 3 / 7, 4 / 7])
    [alone] = sampling.pick([1]).probabilities(logits[:1], [0])
    assert alone.tolist() == pytest.approx(squares.tolist())
    sampling = RequestSampling(settings, np.array([1]), [True])
    assert sampling.probabilities(logits[:1], [0]).tolist() == [[0, 0, 0, 1]]


def test_a_seeded_request_draws_from_its_own_generator() -> None:
    def drawn(others: int) -> list[Tensor]:
        torch.manual_seed(others)
        generators = {1: torch.Generator().manual_seed(5)}
        settings = metadata([1.0] * (2 + others), generators=generators)
        batch = np.arange(2 + others)
        sampling = RequestSampling(settings, batch, [False] * len(batch))
        like = torch.empty(len(batch), VOCAB)
        return [sampling.exponential(range(len(batch)), like)[:2], sampling.uniform([0, 1, 1])]

    first, second = drawn(0), drawn(3)
    assert torch.equal(first[0][1], second[0][1]) and torch.equal(first[1][1:], second[1][1:])
    assert not torch.equal(first[0][0], second[0][0])


def distributions(requests: int = 4) -> tuple[DraftDistributions, LadderCounters]:
    counters = LadderCounters.for_tiers(2)
    return DraftDistributions(requests, 3, VOCAB, torch.device("cpu"), counters), counters


def test_distributions_of_the_drafts_that_are_verified() -> None:
    kept, counters = distributions()
    first, second = torch.rand(3, VOCAB), torch.rand(2, VOCAB)
    kept.keep("a", [4, 5, 6], first)
    kept.keep("b", [7, 8], second)
    names = ["b", "idle", "greedy", "a"]
    # Of a, the scheduler has trimmed the last draft.
    found = kept.of(names, [2, 0, 1, 2], torch.tensor([7, 8, 9, 4, 5]))
    assert found is not None and found.is_contiguous()
    one_hot = torch.eye(VOCAB)[9:10]
    assert torch.equal(found, torch.cat([second, one_hot, first[:2]]))
    assert counters.defects == 0
    kept.drop("a")
    assert kept.of(["a"], [2], torch.tensor([4, 9])) is None


def test_drafts_that_are_not_those_kept_are_verified_as_deterministic(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept, counters = distributions()
    first, second = torch.rand(3, VOCAB), torch.rand(2, VOCAB)
    kept.keep("a", [4, 5, 6], first)
    kept.keep("b", [7, 8], second)
    found = kept.of(["a", "b"], [2, 2], torch.tensor([4, 9, 7, 8]))
    assert found is not None
    assert torch.equal(found, torch.cat([torch.eye(VOCAB)[[4, 9]], second]))
    assert counters.defects == 1 and "[4, 5, 6]" in caplog.text
    assert kept.of(["a"], [1], torch.tensor([9])) is None
    assert counters.defects == 2


def test_no_more_is_kept_than_was_reserved() -> None:
    kept, counters = distributions(requests=2)
    assert kept.nbytes == 2 * 3 * VOCAB * 4
    rows = {name: torch.rand(3, VOCAB) for name in "abc"}
    for name, own in rows.items():
        kept.keep(name, [1, 2, 3], own)
    found = kept.of(list("cab"), [1, 1, 1], torch.tensor([1, 1, 1]))
    assert found is not None
    one_hot = torch.eye(VOCAB)[1]  # c came when there was no place left
    assert torch.equal(found, torch.stack([one_hot, rows["a"][0], rows["b"][0]]))
    kept.drop("a")
    kept.keep("c", [1, 2, 3], rows["c"])
    for name in "bc" * 5:  # in the same places
        kept.keep(name, [1, 2, 3], rows[name])
    found = kept.of(list("cab"), [3, 0, 3], torch.tensor([1, 2, 3] * 2))
    assert found is not None and torch.equal(found, torch.cat([rows["c"], rows["b"]]))
    assert kept.nbytes == kept.gathered().nbytes == 2 * 3 * VOCAB * 4
    assert counters.defects == 0
