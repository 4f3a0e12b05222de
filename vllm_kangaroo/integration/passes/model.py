"""A loaded model cut at the plan's exits, with an exit head at each and every pass made ready to be compiled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import supports_pp

from vllm_kangaroo.integration.passes import passes
from vllm_kangaroo.integration.passes.backend_cut import BackendCut, of_backend
from vllm_kangaroo.integration.passes.compiled import compiled
from vllm_kangaroo.integration.passes.cutting import Cut, LayerRange, refusal
from vllm_kangaroo.integration.passes.exit_head import BareHead, ExitHead
from vllm_kangaroo.integration.passes.heads import load_head
from vllm_kangaroo.integration.passes.pipeline_cut import PipelineCut
from vllm_kangaroo.integration.passes.trial import check_parts, run_whole
from vllm_kangaroo.ladder.store import State
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.options import EarlyExitPlan


@dataclass(slots=True)
class TierPasses:
    """The passes of a cut model; lists have one entry per tier between the first and the last.

    The types are those of :mod:`vllm_kangaroo.integration.passes.passes`. Once a pass has run, its place is taken by
    its compiled function.
    """

    bottom: Any = None
    draft: Any = None
    """None, as the tiers are, where no exit drafts."""
    middle: list[Any] = field(default_factory=list)
    verifier: list[Any] = field(default_factory=list)
    top: Any = None
    joined: Any = None
    """None if tiers run one by one."""
    whole: Any = None
    """None unless steps without drafts are to be expected, and are worth a graph of their own."""
    draft_logits: Any = None
    """None unless drafts are sampled, as are the entries of ``verifier_logits``."""
    verifier_logits: list[Any] = field(default_factory=list)

    def __iter__(self) -> Iterator[Any]:
        for each in fields(self):
            value = getattr(self, each.name)
            yield from value if isinstance(value, list) else [value] * (value is not None)


class TieredModel:
    """The tiers of a loaded model, their heads and passes.

    Token ids and positions are ``[tokens]``, states ``[tokens, N]`` a part.
    """

    def __init__(
        self, cut: Cut, heads: list[ExitHead], ranges: list[LayerRange], made: TierPasses
    ) -> None:
        self.cut = cut
        self.heads = heads
        self.ranges = ranges
        self.passes = made

    def bottom(self, input_ids: Tensor, positions: Tensor) -> State:
        """See :class:`vllm_kangaroo.ladder.interfaces.BottomTier`."""
        return cast(State, self.passes.bottom(input_ids, positions)[0])

    def middle(self, at: int, positions: Tensor, state: State) -> State:
        """See :class:`vllm_kangaroo.ladder.interfaces.MiddleTier`; ``at`` counts them from 0."""
        return cast(State, self.passes.middle[at](positions, *_padded(state))[0])

    def lower(self, input_ids: Tensor, positions: Tensor) -> State:
        """All tiers below the last, whose heads absorb what they are to keep."""
        state = self.bottom(input_ids, positions)
        for at in range(len(self.passes.middle)):
            state = self.middle(at, positions, state)
        return state

    def top(self, positions: Tensor, state: State) -> Tensor:
        """See :class:`vllm_kangaroo.ladder.interfaces.TopTier`."""
        return cast(Tensor, self.passes.top(positions, *_padded(state)))

    def joined(
        self,
        input_ids: Tensor,
        tail_positions: Tensor,
        positions: Tensor,
        order: Tensor,
        state: State,
    ) -> Tensor:
        """See :class:`vllm_kangaroo.ladder.interfaces.JoinedTiers`."""
        found = self.passes.joined(input_ids, tail_positions, positions, order, *_padded(state))
        return cast(Tensor, found[0])

    def whole(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """See :class:`vllm_kangaroo.ladder.interfaces.WholeModel`."""
        found = self.passes.whole(input_ids, positions)
        return cast(Tensor, found[0] if isinstance(found, tuple) else found)

    def draft(self, input_ids: Tensor, positions: Tensor, memory: Tensor | None) -> Any:
        """See :class:`vllm_kangaroo.drafting.kangaroo.DraftPass`."""
        return self.passes.draft(input_ids, positions, memory)

    def draft_logits(self, input_ids: Tensor, positions: Tensor, memory: Tensor | None) -> Any:
        """See :class:`vllm_kangaroo.drafting.sampling.LogitsPass`."""
        return self.passes.draft_logits(input_ids, positions, memory)

    def verifier(self, positions: Tensor, state: State, memory: Tensor | None) -> Any:
        """See :class:`vllm_kangaroo.drafting.hispec.CheckPass`."""
        return self.passes.verifier[0](positions, *_padded(state), memory)

    def verifier_logits(self, positions: Tensor, state: State, memory: Tensor | None) -> Any:
        """The same with logits."""
        return self.passes.verifier_logits[0](positions, *_padded(state), memory)

    @property
    def memory_width(self) -> int:
        """Columns of :meth:`remember`'s result."""
        return sum(head.memory_width for head in self.heads)

    def remember(self, hidden_states: Tensor) -> Tensor:
        """What the heads' drafts are to know of verified positions: final states ``[requests, N]`` -> ``[requests, M]``."""
        return torch.cat(
            [head.remember(hidden_states) for head in self.heads if head.memory_width], dim=1
        )


def _padded(state: State) -> tuple[Tensor | None, ...]:
    return (*state, None)[:2]


def cut_model(target: nn.Module, vllm_config: VllmConfig) -> Cut:
    """Find how the model can be run in layer ranges.

    Raises:
        OptionError: if it cannot.
    """
    if of_backend(target):
        return BackendCut(target, vllm_config)
    if not supports_pp(target):
        raise refusal(target, "vLLM does not support it in a pipeline")
    for name, module in target.named_modules():
        ends = (getattr(module, end, None) for end in ("start_layer", "end_layer"))
        if name and all(isinstance(end, int) for end in ends):
            return PipelineCut(target, name, vllm_config)
    raise refusal(target, "none of its modules says which layers it runs (start_layer, end_layer)")


def build(target: nn.Module, vllm_config: VllmConfig, plan: EarlyExitPlan) -> TieredModel:
    """Cut ``target`` at the plan's exits, load the adapters and prepare the passes.

    Raises:
        OptionError: if the model cannot be cut, or an adapter was trained for other weights.
    """
    if not plan.exit_drafts:
        return _uncut(target)
    cut = cut_model(target, vllm_config)
    check_parts(cut, plan.exits, vllm_config)
    layers = plan.exits[-1]
    *lower, top = pairwise((0, *plan.exits))
    ranges = [*(cut.range(*ends) for ends in lower), cut.range(*top, last=True)]
    heads = [
        BareHead(cut, vllm_config, cut.range(layers, layers, last=True))
        if path is None
        else load_head(key, Path(path), vllm_config, layers + at, cut)
        for at, (key, path) in enumerate(
            zip(METHODS[plan.method].options.adapter_keys, plan.adapters, strict=False)
        )
    ]
    ends = accumulate(head.memory_width for head in heads)
    for head, end in zip(heads, ends, strict=True):
        head.memory_columns = slice(end - head.memory_width, end)
    return TieredModel(cut, heads, ranges, _passes(cut, heads, ranges, vllm_config, plan))


def _uncut(target: nn.Module) -> TieredModel:
    """The model as vLLM itself runs it, which need not be one that can be cut."""

    def whole(input_ids: Tensor, positions: Tensor) -> Tensor:
        return cast(Tensor, run_whole(target, input_ids, positions))

    return TieredModel(Cut(target, None, None), [], [], TierPasses(whole=whole))


def _passes(
    cut: Cut,
    heads: list[ExitHead],
    ranges: list[LayerRange],
    vllm_config: VllmConfig,
    plan: EarlyExitPlan,
) -> TierPasses:
    top = len(ranges) - 1
    between = range(1, top)
    shapes = [head.shape for head in heads if head.shape]

    def made(kind: type[passes.Pass], tier: int, /, **parts: Any) -> Any:
        # The plan's exits and paths of adapters are part of the config's hash, which is part of the compile cache's key.
        label = " ".join((f"tier {tier + 1}", *shapes))
        return compiled(kind, label, vllm_config, **parts)

    def with_head(kind: type[passes.Pass], tier: int) -> Any:
        return made(kind, tier, tier=ranges[tier], head=heads[tier])

    found = TierPasses(
        bottom=with_head(passes.BottomPass, 0),
        draft=with_head(passes.DraftingPass, 0),
        middle=[with_head(passes.MiddlePass, tier) for tier in between],
        verifier=[with_head(passes.VerifierPass, tier) for tier in between],
        top=made(passes.TopPass, top, tier=ranges[top], finished=cut.finished),
    )
    # Each graph costs start-up time; without graphs there is next to nothing to be gained.
    if not vllm_config.model_config.enforce_eager:
        lower = nn.ModuleList(ranges[:-1])
        parts = {"lower": lower, "heads": heads, "top": ranges[top], "finished": cut.finished}
        found.joined = made(passes.JoinedPass, top, **parts)
        # Where nothing else decides on them, steps without drafts are few.
        if plan.goodput is not None and plan.goodput.decide:
            found.whole = made(passes.WholePass, top, **parts)
    if plan.draft_sample_method == "probabilistic":
        found.draft_logits = with_head(passes.DraftLogitsPass, 0)
        found.verifier_logits = [with_head(passes.VerifierLogitsPass, tier) for tier in between]
    return found
