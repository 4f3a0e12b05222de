"""What drafts of a load can bring and what trying some of them costs, by a cost model."""

from __future__ import annotations

import numpy as np

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.draft_round import COUNTING
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.length_plan import LengthPlan, plan_lengths


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


def pays_alone(costs: CostModel, load: Load, chain: Floats) -> bool:
    """Whether a request like all others of a load would draft if it had the engine for itself.

    Args:
        chain: its expected acceptance by position, ``[most]``.
    """
    context = load.kv_tokens // max(load.requests, 1)
    contexts, limits = np.array([context]), np.array([len(chain)])
    alone = plan_lengths(costs, Load(1, context), 1, 1.0, contexts, limits, chain[None, :])
    return alone.goodput > alone.plain
