"""Goodput control with costs that do not depend on what else the machine does."""

from __future__ import annotations

from typing import Any

from tests.e2e.engines import Engine
from vllm_kangaroo.goodput.controller import GoodputController
from vllm_kangaroo.goodput.cost_model import CostModel
from vllm_kangaroo.goodput.cost_profile import CostProfile, Curve


class FixedCosts(CostModel):
    """Passes that take what is said, whatever is observed.

    Args:
        draft: of a draft pass, in that of a verification of one token.
        token: of each further token of a verification, in the same.
        check: of an intermediate verification, in the same.
    """

    def __init__(self, draft: float, token: float, check: float) -> None:
        verify = Curve(tokens=(1, 101), seconds=(0.01, 0.01 + 100 * 0.01 * token))
        passes = Curve(tokens=(1, 101), seconds=(0.01 * draft, 0.0101 * draft))
        checks = Curve(tokens=(1, 101), seconds=(0.01 * check, 0.0101 * check))
        super().__init__(CostProfile(verify=verify, draft=passes, check=checks))

    def observe_verify(self, *_: Any, **__: Any) -> None: ...

    def observe_draft(self, *_: Any) -> None: ...

    def observe_check(self, *_: Any) -> None: ...

    def observe_opening(self, *_: Any) -> None: ...


def fix(
    engine: Engine, draft: float, token: float = 0.002, check: float = 0.05
) -> GoodputController:
    """Give an engine such costs; its controller."""
    control = engine.proposer.goodput
    control.controller.costs = FixedCosts(draft, token, check)
    if control.lookups is not None:
        control.lookups.costs = control.controller.costs
    found: GoodputController = control.controller
    found._cached = None
    return found
