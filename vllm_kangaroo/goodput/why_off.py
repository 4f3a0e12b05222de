"""Why requests that could draft do not."""

from __future__ import annotations

import numpy as np

from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.goodput_stats import Off
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.length_plan import plan_lengths


class WhyOff:
    """The newest answer, which is worked out anew now and then."""

    EVERY = 32
    """Steps without drafts for which an answer holds."""

    def __init__(self) -> None:
        self._left = 0
        self._why = Off.ACCEPTANCE

    def answer(self, costs: CostModel, load: Load, chain: Floats) -> Off:
        """Whether the load is why, or what is accepted.

        Args:
            chain: expected acceptance by position, ``[most]``.
        """
        if self._left <= 0:
            self._left = self.EVERY
            self._why = Off.LOAD if pays_alone(costs, load, chain) else Off.ACCEPTANCE
        self._left -= 1
        return self._why


def pays_alone(costs: CostModel, load: Load, chain: Floats) -> bool:
    """Whether a request like all others of a load would draft if it had the engine for itself.

    Args:
        chain: its expected acceptance by position, ``[most]``.
    """
    context = load.kv_tokens // max(load.requests, 1)
    contexts, limits = np.array([context]), np.array([len(chain)])
    alone = plan_lengths(costs, Load(1, context), 1, 1.0, contexts, limits, chain[None, :])
    return alone.goodput > alone.plain
