"""How many requests are to draft, and how many tokens, before anything is drafted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.draft_round import COUNTING
from vllm_kangaroo.goodput.least_squares import Floats


@dataclass(frozen=True, slots=True)
class LengthPlan:
    """The best of all numbers of requests and of drafts, which are the same for each request."""

    order: Ints
    """Of the requests, those whose drafts are the likeliest to be accepted first."""
    requests: int
    """How many of them draft; 0 if no draft is expected to pay."""
    length: int
    goodput: float
    """Expected tokens a second; 0 if nobody can draft."""
    plain: float
    """The same without drafting."""
    plain_seconds: float
    seconds: float
    """Of the step and its drafting."""


def plan_lengths(
    costs: CostModel,
    load: Load,
    tokens: int,
    expected: float,
    contexts: Ints,
    limits: Ints,
    chains: Floats,
    seconds_each: Callable[[Floats, Floats], Floats] | None = None,
) -> LengthPlan:
    """SmartSpec's choice (arXiv 2406.14066, algorithm 1) over requests as well as lengths.

    Args:
        tokens, expected: those of the verification without the drafts that are to be decided on.
        contexts, limits: of the requests that can draft, ``[requests]``.
        chains: their conditional acceptance by position, ``[requests, positions]``.
        seconds_each: of a draft of each of so many requests, with so many KV tokens; None takes that of a draft pass.
    """
    plain_seconds = costs.verify(load, tokens, drafted=tokens > load.requests)
    plain = expected / plain_seconds
    count, most = chains.shape
    if not count:
        return LengthPlan(np.arange(0), 0, 0, 0.0, plain, plain_seconds, plain_seconds)
    lengths = COUNTING[:most]
    within = lengths <= limits[:, None]
    gains = np.cumsum(np.cumprod(chains, axis=1) * within, axis=1)
    order = np.argsort(-gains[:, 0], kind="stable")
    drafts = np.cumsum(within[order], axis=1, dtype=np.float64).cumsum(axis=0)
    counts = COUNTING[:count]
    kv_tokens = np.cumsum(contexts[order], dtype=np.float64)
    each = (seconds_each or costs.draft_along)(counts, kv_tokens)
    around = costs.overhead(0) + (costs.overhead(1) - costs.overhead(0)) * counts
    seconds = costs.verify_along(load, tokens + drafts)
    seconds += around[:, None] + each[:, None] * lengths
    goodput = (expected + gains[order].cumsum(axis=0)) / seconds
    best = int(goodput.argmax())
    requests, length = divmod(best, most)
    return LengthPlan(
        order,
        requests + 1,
        length + 1,
        float(goodput.flat[best]),
        plain,
        plain_seconds,
        float(seconds.flat[best]),
    )
