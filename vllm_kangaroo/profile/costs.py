"""A model of what passes cost, fitted to runs of real engines at batch 1."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

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
    drafted: int = 0
    draft_steps: int = 0
    draft_seconds: float = 0.0
    checks: int = 0
    """Passes of the middle tier but those of prompts."""

    @property
    def seconds_per_draft(self) -> float:
        """Of a drafting step, with what is outside its pass."""
        return self.draft_seconds / self.draft_steps

    def seconds_per_round(self, prefill: float) -> float:
        """Of a round besides drafting, ``prefill`` being what the prompts took."""
        return (self.seconds - prefill - self.draft_seconds) / self.rounds


class CostModel(BaseModel):
    """Seconds of the parts of a round; l layers below the exit of L, n positions verified.

    ``draft(l) = d_0 + d_1·l``, ``verify(l, n) = r_0 + r_1·(L−l) + r_2·n`` with all that an engine
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
    verify_base: float
    verify_layer: float
    verify_position: float
    check_base: float | None = None
    """None if no engine with a middle tier was measured."""

    def draft(self, exit_layer: int) -> float:
        """A drafting step with the target's own head."""
        return self.draft_base + self.draft_layer * exit_layer

    def verify(self, exit_layer: int, positions: float) -> float:
        """A round besides drafting and checks."""
        layers = self.layers - exit_layer
        return self.verify_base + self.verify_layer * layers + self.verify_position * positions

    def check(self, layers: int) -> float:
        """A pass of the middle tier."""
        assert self.check_base is not None
        return self.check_base + self.verify_layer * layers


class HeadCost(BaseModel):
    """What an adapter costs, measured by an engine that drafts with it."""

    model_config = ConfigDict(frozen=True)

    draft: float
    round_extra: float
    """Seconds a round takes longer than `CostModel.verify` says."""


def fit(
    layers: int,
    prompts: int,
    plain: EngineTimes,
    shallow_one: tuple[int, EngineTimes],
    shallow: tuple[int, EngineTimes],
    deep: tuple[int, EngineTimes] | None,
) -> CostModel:
    """From vLLM alone and engines that draft without a threshold.

    Args:
        shallow_one: exit and times of an engine that drafts one token a round.
        shallow, deep: of engines with many drafts a round, at two exits; None if there is one only,
            whose layers then count as those of vLLM alone.
    """
    exit_layer, most = shallow
    prefill = plain.first_seconds
    per_token = (plain.seconds - prefill) / plain.tokens
    one, many = (each.seconds_per_round(prefill) for each in (shallow_one[1], most))
    positions = [each.drafted / each.rounds for each in (shallow_one[1], most)]
    per_position = max(0.0, (many - one) / max(positions[1] - positions[0], 0.1))
    draft = (shallow_one[1].draft_seconds + most.draft_seconds) / (
        shallow_one[1].draft_steps + most.draft_steps
    )
    if deep is None:
        per_layer = per_token / layers
        draft_layer = min(per_layer, draft / exit_layer)
    else:
        apart = deep[0] - exit_layer
        deeper = deep[1].seconds_per_round(prefill)
        deeper -= per_position * (deep[1].drafted / deep[1].rounds - positions[1])
        per_layer = max(0.0, (many - deeper) / apart)
        draft_layer = max(0.0, (deep[1].seconds_per_draft - draft) / apart)
    return CostModel(
        layers=layers,
        plain=per_token,
        prefill=prefill / prompts,
        draft_base=draft - draft_layer * exit_layer,
        draft_layer=draft_layer,
        verify_base=many - per_layer * (layers - exit_layer) - per_position * (positions[1] + 1),
        verify_layer=per_layer,
        verify_position=per_position,
    )


def with_checks(
    model: CostModel, prefill: float, exits: tuple[int, int], times: EngineTimes
) -> CostModel:
    """Add what a check costs besides its layers, from an engine with a middle tier."""
    drafting, checking = exits
    verifying = model.verify(checking, times.drafted / times.rounds + 1) * times.rounds
    rest = times.seconds - prefill - times.draft_seconds - verifying
    base = rest / times.checks - model.verify_layer * (checking - drafting)
    return model.model_copy(update={"check_base": max(0.0, base)})


def head_cost(model: CostModel, prefill: float, exit_layer: int, times: EngineTimes) -> HeadCost:
    """An adapter's cost, from an engine that drafts with it."""
    expected = model.verify(exit_layer, times.drafted / times.rounds + 1)
    return HeadCost(
        draft=times.seconds_per_draft, round_extra=times.seconds_per_round(prefill) - expected
    )


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
    count = len(verified)
    if not count:
        return 0.0
    return count * (model.verify(exit_layer, sum(verified) / count) + extra)


def speedup(model: CostModel, work: Work, seconds: float, prompts: int) -> float:
    """Over vLLM alone, prompts included."""
    prefill = model.prefill * prompts
    return (prefill + model.plain * work.tokens) / (prefill + seconds)
