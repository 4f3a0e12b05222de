"""What drafts of a load can bring and what trying some of them costs, by a cost model."""

from __future__ import annotations

import numpy as np

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.draft_round import COUNTING
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.length_plan import LengthPlan


def undrafted(costs: CostModel, load: Load) -> float:
    """Tokens a second of a step without drafts."""
    return load.requests / costs.verify(load, load.requests, drafted=False)


def most_gained(costs: CostModel, load: Load, most: int) -> float:
    """Tokens a second more than without drafts, if all of up to ``most`` were accepted: as a share of those without."""
    count, lengths = load.requests, COUNTING[:most]
    tokens = count + count * lengths
    seconds = costs.verify_along(load, tokens) + costs.overhead(count)
    seconds += costs.draft(count, load.kv_tokens) * lengths
    return float((tokens / seconds).max()) / undrafted(costs, load) - 1.0


def surplus(costs: CostModel, load: Load, chains: Floats, rate: float) -> Floats:
    """Tokens that its best number of drafts brings each request beyond what their time is worth, ``[requests]``.

    Args:
        chains: conditional acceptance by position, ``[requests, positions]``.
        rate: tokens a second that the engine makes otherwise.
    """
    count, gains = load.requests, np.cumsum(np.cumprod(chains, axis=1), axis=1)
    lengths = COUNTING[: chains.shape[1]]
    seconds = costs.verify_along(load, count + count * lengths)
    seconds += costs.overhead(count) - costs.verify(load, count, drafted=True)
    seconds += costs.draft(count, load.kv_tokens) * lengths
    best: Floats = (gains - seconds * (rate / count)).max(axis=1)
    return np.maximum(best, 0.0)


def probe_seconds(
    costs: CostModel, plan: LengthPlan, load: Load, drafting: Ints, tried: Ints
) -> float:
    """Seconds that a draft of each of some requests takes beside those of others.

    Args:
        plan: of the others.
        drafting, tried: contexts of the others and of those requests.
    """
    count, some = len(drafting), len(tried)
    kv_tokens, more = float(drafting.sum()), float(tried.sum())
    cost = costs.draft(count + some, kv_tokens + more)
    if count:
        cost -= costs.draft(count, kv_tokens)
    else:
        cost += costs.overhead(some)
        cost -= plan.plain_seconds - costs.verify(load, load.requests, drafted=True)
    width = load.requests + count * plan.length
    cost += costs.verify(load, width + some, drafted=True)
    return cost - costs.verify(load, width, drafted=True)
