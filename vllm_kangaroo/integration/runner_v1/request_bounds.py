"""What a request's sampling parameters say of its drafts: how many are of use, and behind which tokens none are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from vllm.logger import init_logger

from vllm_kangaroo.integration.goodput.max_drafts import max_drafts
from vllm_kangaroo.ladder.spans import IntArray

logger = init_logger(__name__)
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
    """Bounds of all requests, each read once: what is done for each of them in each step is to be little.

    Args:
        weighed: whether it hangs on the clock how many drafts are made. A request that samples by a seed then has none: how many
            numbers it draws follows from how many drafts it has, and the same seed is to give the same tokens.
    """

    def __init__(self, *, weighed: bool = False) -> None:
        self._known: dict[str, DraftBounds] = {}
        self._weighed = weighed

    def of(self, request_id: str, params: Any) -> DraftBounds:
        """The bounds of a request, whose parameters are others once it goes on as another turn of a session."""
        known = self._known.get(request_id)
        if known is None or known.params is not params:
            known = DraftBounds.read(params)
            if self._weighed and known.drafts and draws_by_seed(params):
                logger.warning_once(
                    "Requests that sample by a seed get no drafts under goodput control, since the same seed is to give the "
                    "same tokens: set 'goodput' in speculative_config to false to draft for them by fixed settings."
                )
                known = replace(known, drafts=0)
            self._known[request_id] = known
        return known

    def drop(self, request_id: str) -> None:
        """A request has ended."""
        self._known.pop(request_id, None)


def draws_by_seed(params: Any) -> bool:
    """Whether a request samples, and by a seed of its own."""
    return params.seed is not None and params.temperature > 0.0  # vLLM raises what is next to zero


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
