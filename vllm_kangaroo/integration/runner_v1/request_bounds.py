"""What a request's sampling parameters say of its drafts: how many are of use, and behind which tokens none are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_kangaroo.integration.goodput.max_drafts import max_drafts
from vllm_kangaroo.ladder.spans import IntArray

UNBOUNDED = 2**40
"""Tokens that no request reaches, and that can still be reckoned with."""


@dataclass(frozen=True, slots=True)
class DraftBounds:
    """Of one request."""

    params: Any
    """The ``SamplingParams`` that they were read from."""
    stop_ids: frozenset[int | None]
    """Tokens that end it. Not ``all_stop_token_ids``: that names the end of text even where the request ignores it."""
    max_tokens: int
    min_tokens: int
    drafts: int
    """Most a step that it wants."""

    @classmethod
    def read(cls, params: Any) -> DraftBounds:
        """From a request's ``SamplingParams``."""
        longest = params.max_tokens
        return cls(
            params,
            frozenset((*(params.stop_token_ids or ()), params.eos_token_id)),
            UNBOUNDED if longest is None else min(longest, UNBOUNDED),
            min(params.min_tokens, UNBOUNDED),
            min(max_drafts(params), UNBOUNDED),
        )


class RequestBounds:
    """Bounds of all requests, each read once: what is done for each of them in each step is to be little."""

    def __init__(self) -> None:
        self._known: dict[str, DraftBounds] = {}

    def of(self, request_id: str, params: Any) -> DraftBounds:
        """The bounds of a request, whose parameters are others once it goes on as another turn of a session."""
        known = self._known.get(request_id)
        if known is None or known.params is not params:
            known = self._known[request_id] = DraftBounds.read(params)
        return known

    def drop(self, request_id: str) -> None:
        """A request has ended."""
        self._known.pop(request_id, None)


def useful_drafts(
    bounds: Sequence[DraftBounds], newest: IntArray, prompts: IntArray, max_model_len: int
) -> IntArray:
    """Most drafts that can still be of use: the model's length and ``max_tokens`` end a request first.

    Args:
        bounds: of the requests.
        newest, prompts: the position of each one's newest token, and the length of its prompt, ``[requests]``.

    Returns:
        ``[requests]``, below 0 where a request is at its end.
    """
    longest, least = np.array(
        [(each.max_tokens, each.min_tokens) for each in bounds], dtype=np.int64
    ).T
    produced = newest + 1 - prompts
    most = np.minimum(max_model_len - 2 - newest, longest - produced - 1)
    # vLLM forbids the token after the last draft to stop if the step begins below the minimum.
    found: IntArray = np.where(produced < least, np.minimum(most, least - produced - 1), most)
    return found
