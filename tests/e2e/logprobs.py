"""Comparing log probabilities of two engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def by_rank(position: Any) -> list[tuple[int, float]]:
    """Tokens and log probabilities of one position, best first."""
    return sorted(((t, found.logprob) for t, found in position.items()), key=lambda each: -each[1])


def assert_close_logprobs(got: Sequence[Any], expected: Sequence[Any]) -> None:
    """The same tokens, and log probabilities within 2e-4, at every position."""
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        if theirs is None:  # the first token of a prompt has none
            assert ours is None
            continue
        ours, theirs = by_rank(ours), by_rank(theirs)
        assert [value for _, value in ours] == pytest.approx([v for _, v in theirs], abs=2e-4)
        assert {token for token, _ in ours} == {token for token, _ in theirs}
