"""What passes cost by the depth of their exit: what engines with exits of their own have learnt, put together.

A single engine's costs are those of goodput control, which learns them from its steps
(:class:`vllm_kangaroo.goodput.cost_model.CostModel`).
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pydantic import BaseModel, ConfigDict

from vllm_kangaroo.goodput.step_costs import StepCosts
from vllm_kangaroo.profile.draft_replay import Work


class EngineTimes(BaseModel):
    """Times of one engine over some prompts, each by itself."""

    model_config = ConfigDict(frozen=True)

    seconds: float
    """From a prompt's arrival to its last token, summed."""
    first_seconds: float
    """To its first token, summed."""
    tokens: int
    """Without the first of each prompt."""
    rounds: int = 0
    """Engine steps after the first of each prompt."""
    costs: StepCosts | None = None
    """None of an engine that learns none."""

    @property
    def learnt(self) -> StepCosts:
        """The costs, of an engine that does."""
        assert self.costs is not None
        return self.costs


class CostModel(BaseModel):
    """Seconds of the parts of a round; l layers below the exit of L, n positions verified.

    ``draft(l) = d_0 + d_1·l``, ``verify(l, n) = r(n) − r_1·(l − l_0)`` with all that an engine
    step costs around it, ``check(layers) = m_0 + r_1·layers``.
    """

    model_config = ConfigDict(frozen=True)

    layers: int
    plain: float
    """Seconds per token of vLLM alone."""
    prefill: float
    """Seconds per prompt up to the first token."""
    draft_base: float
    draft_layer: float
    round_base: float
    """Of a round of drafting, beside its passes."""
    verify_exit: int
    """The exit l_0 at which ``verify_seconds`` were learnt."""
    verify_seconds: tuple[float, ...]
    """r(1), r(2), ...: a round besides drafting and checks."""
    verify_layer: float
    """By how much it is shorter for each layer that the exit is deeper."""
    check_base: float | None = None
    """None if no engine with a middle tier was measured."""

    def draft(self, exit_layer: int) -> float:
        """A drafting step with the target's own head."""
        return self.draft_base + self.draft_layer * exit_layer

    def verify(self, exit_layer: int, positions: int) -> float:
        """A round besides drafting and checks."""
        known = self.verify_seconds
        seconds = known[min(positions, len(known)) - 1]
        if positions > len(known):
            seconds += (positions - len(known)) * self.verify_position
        return seconds - self.verify_layer * (exit_layer - self.verify_exit)

    @property
    def verify_position(self) -> float:
        """Another position to verify, on the average."""
        known = self.verify_seconds
        return (known[-1] - known[0]) / max(len(known) - 1, 1)

    def check(self, layers: int) -> float:
        """A pass of the middle tier."""
        assert self.check_base is not None
        return self.check_base + self.verify_layer * layers


class HeadCost(BaseModel):
    """What an adapter costs, as an engine that drafts with it has learnt it."""

    model_config = ConfigDict(frozen=True)

    draft: float
    round_extra: float
    """Seconds a round takes longer than `CostModel` says."""


def fit(
    layers: int,
    prompts: int,
    plain: EngineTimes,
    shallow: tuple[int, StepCosts],
    deep: tuple[int, StepCosts] | None,
) -> CostModel:
    """From vLLM alone and engines whose drafts vary in number.

    Args:
        shallow, deep: exit and costs of engines with bare heads at two exits; None if there is one only,
            whose layers then count as those of vLLM alone.
    """
    exit_layer, costs = shallow
    prefill = plain.first_seconds
    per_token = (plain.seconds - prefill) / plain.tokens
    if deep is None:
        per_layer = per_token / layers
        draft_layer = min(per_layer, costs.draft / exit_layer)
    else:
        apart = deep[0] - exit_layer
        per_layer = max(0.0, _longer(costs.verify, deep[1].verify) / apart)
        draft_layer = max(0.0, (deep[1].draft - costs.draft) / apart)
    return CostModel(
        layers=layers,
        plain=per_token,
        prefill=prefill / prompts,
        draft_base=costs.draft - draft_layer * exit_layer,
        draft_layer=draft_layer,
        round_base=costs.around,
        verify_exit=exit_layer,
        verify_seconds=costs.verify,
        verify_layer=per_layer,
    )


def _longer(one: Sequence[float], other: Sequence[float]) -> float:
    return fmean(a - b for a, b in zip(one, other, strict=True))


def with_checks(
    model: CostModel, exits: tuple[int, int], per_round: int, costs: StepCosts
) -> CostModel:
    """Add what a check of ``per_round`` tokens costs besides its layers, from an engine with a middle tier."""
    drafting, checking = exits
    base = costs.check[per_round - 1] - model.verify_layer * (checking - drafting)
    return model.model_copy(update={"check_base": max(0.0, base)})


def head_cost(model: CostModel, exit_layer: int, costs: StepCosts) -> HeadCost:
    """An adapter's cost, from an engine that drafts with it."""
    expected = [model.verify(exit_layer, at) for at in range(1, len(costs.verify) + 1)]
    extra = _longer(costs.verify, expected) + costs.around - model.round_base
    return HeadCost(draft=costs.draft, round_extra=extra)


def kangaroo_seconds(
    model: CostModel, work: Work, exit_layer: int, head: HeadCost | None = None
) -> float:
    """What replayed rounds of Kangaroo would take."""
    draft = model.draft(exit_layer) if head is None else head.draft
    extra = 0.0 if head is None else head.round_extra
    return draft * work.draft_steps + _rounds(model, work.verified, exit_layer, extra)


def hispec_seconds(model: CostModel, work: Work, exits: tuple[int, int]) -> float:
    """What replayed rounds of HiSpec would take."""
    drafting, checking = exits
    checks = model.check(checking - drafting) * work.checks
    return (
        model.draft(drafting) * work.draft_steps
        + checks
        + _rounds(model, work.verified, checking, 0.0)
    )


def _rounds(model: CostModel, verified: Sequence[int], exit_layer: int, extra: float) -> float:
    seconds = sum(model.verify(exit_layer, positions) + extra for positions in verified)
    return seconds + model.round_base * sum(positions > 1 for positions in verified)


def speedup(model: CostModel, work: Work, seconds: float, prompts: int) -> float:
    """Over vLLM alone, prompts included."""
    prefill = model.prefill * prompts
    return (prefill + model.plain * work.tokens) / (prefill + seconds)
