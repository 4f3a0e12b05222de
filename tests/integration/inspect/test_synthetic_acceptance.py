"""Acceptance by chance, over drafts of requests of several lengths."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_kangaroo.integration.inspect.synthetic_acceptance import SyntheticAcceptance

COUNTS = [3, 0, 5]
DRAFTED = torch.arange(100, 108)
OWN = torch.arange(11)


class Runner:
    def _sample(self, logits: Any, drafts: Any) -> str:
        return "as ever"


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.8, 1.0])
def test_as_often_as_asked_for(rate: float) -> None:
    logits = torch.nn.functional.one_hot(OWN, 200).float()
    drafts = SimpleNamespace(num_draft_tokens=COUNTS, draft_token_ids=DRAFTED, max_spec_len=5)
    verification: Any = SyntheticAcceptance(Runner(), rate)
    accepted = []
    for _ in range(800):
        first, second, third = verification(logits, drafts).sampled_token_ids.tolist()
        assert second == [4, -1, -1, -1, -1, -1]
        for row, tokens, own in (
            (first, [100, 101, 102], 0),
            (third, [103, 104, 105, 106, 107], 5),
        ):
            count = sum(token >= 100 for token in row)
            assert row[: count + 1] == [*tokens[:count], own + count]
            assert set(row[count + 1 :]) <= {-1}
            accepted.append((count, len(tokens)))
    first_right = sum(count > 0 for count, _ in accepted) / len(accepted)
    assert first_right == pytest.approx(rate, abs=0.05)
    tried = sum(min(count + 1, most) for count, most in accepted)
    assert sum(count for count, _ in accepted) / tried == pytest.approx(rate, abs=0.05)


def test_batches_without_drafts_are_sampled_as_ever() -> None:
    verification: Any = SyntheticAcceptance(Runner(), 1.0)
    assert verification(None, None) == "as ever"
    assert verification(None, SimpleNamespace(num_draft_tokens=[0, 0])) == "as ever"
