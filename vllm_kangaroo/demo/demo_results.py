"""What the demo shows, as it writes it to a file."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, computed_field

from vllm_kangaroo.bench.bench_results import Divergence, RunSetup, Speed
from vllm_kangaroo.bench.statistics import Acceptance
from vllm_kangaroo.methods.origin import Origin
from vllm_kangaroo.provenance import Provenance


class Segment(BaseModel):
    """Neighbouring tokens of one origin."""

    text: str
    origin: Origin | str = Field(union_mode="left_to_right")
    """One of :class:`Origin`, or what a method of another kind calls its own."""


class MethodOutput(BaseModel):
    """One prompt with one method of drafting. Speed and acceptance are over all rounds, the text is of the first."""

    tokens: int
    """Length of the output."""
    speed: Speed
    acceptance: Acceptance
    segments: list[Segment]
    """The output."""
    identical: bool | None
    """Whether it was vLLM's, token for token, in every round; None when sampling."""
    divergence: Divergence | None
    """Where they part; None where they do not, and when sampling."""


class PromptResult(BaseModel):
    """One prompt on all engines."""

    name: str
    prompt: str
    """The last user's turn."""
    plain: Speed
    """vLLM alone, over all rounds."""
    plain_text: str
    """The output of vLLM alone."""
    methods: dict[str, MethodOutput]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def speedups(self) -> dict[str, float]:
        """Ratio of each method's tokens per second to those of vLLM alone."""
        return {name: _ratio(one.speed, self.plain) for name, one in self.methods.items()}


class MethodTotal(BaseModel):
    """One method over all prompts."""

    speed: Speed
    speedup: float
    acceptance: Acceptance
    identical: int | None
    """How many prompts had outputs identical to vLLM's; None when sampling."""


class DemoResult(BaseModel):
    """One run of ``vllm-kangaroo demo``."""

    setup: RunSetup
    speculative_configs: dict[str, dict[str, Any]]
    """By method."""
    rounds: int
    prompts: list[PromptResult]
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def plain(self) -> Speed:
        """vLLM alone over all prompts."""
        return sum((one.plain for one in self.prompts), Speed())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def methods(self) -> dict[str, MethodTotal]:
        """Each method over all prompts."""
        return {name: self._total(name) for name in self.speculative_configs}

    def _total(self, method: str) -> MethodTotal:
        outputs = [one.methods[method] for one in self.prompts]
        speed = sum((one.speed for one in outputs), Speed())
        known = [one.identical for one in outputs if one.identical is not None]
        return MethodTotal(
            speed=speed,
            speedup=_ratio(speed, self.plain),
            acceptance=sum((one.acceptance for one in outputs), Acceptance()),
            identical=sum(known) if known else None,
        )


def _ratio(ours: Speed, theirs: Speed) -> float:
    return ours.tokens_per_second / theirs.tokens_per_second
