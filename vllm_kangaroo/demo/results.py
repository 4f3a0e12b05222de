"""What the demo shows, as it writes it to a file."""

from __future__ import annotations

from pydantic import BaseModel, computed_field

from vllm_kangaroo.bench.provenance import Provenance
from vllm_kangaroo.bench.results import Divergence, Setup, Speed
from vllm_kangaroo.bench.statistics import Acceptance


class Segment(BaseModel):
    """Neighbouring tokens of one origin."""

    text: str
    drafted: bool
    """Whether they are accepted drafts, rather than tokens the target chose itself."""


class PromptResult(BaseModel):
    """One prompt on both engines. Speeds and acceptance are over all rounds, texts of the first."""

    name: str
    prompt: str
    """The last user's turn."""
    tokens: int
    """Length of the output with drafting."""
    plain: Speed
    drafting: Speed
    acceptance: Acceptance
    segments: list[Segment]
    """The output with drafting."""
    plain_text: str
    """The output of vLLM alone."""
    identical: bool | None
    """Whether the two were alike, token for token, in every round; None when sampling."""
    divergence: Divergence | None
    """Where they part; None where they do not, and when sampling."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def speedup(self) -> float:
        """Ratio of the two engines' tokens per second."""
        return self.drafting.tokens_per_second / self.plain.tokens_per_second


class DemoResult(BaseModel):
    """One run of ``vllm-kangaroo demo``."""

    setup: Setup
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
    def drafting(self) -> Speed:
        """The drafting engine over all prompts."""
        return sum((one.drafting for one in self.prompts), Speed())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def speedup(self) -> float:
        """Ratio of the two engines' tokens per second over all prompts."""
        return self.drafting.tokens_per_second / self.plain.tokens_per_second

    @computed_field  # type: ignore[prop-decorator]
    @property
    def acceptance(self) -> Acceptance:
        """Over all prompts."""
        return sum((one.acceptance for one in self.prompts), Acceptance())

    @computed_field  # type: ignore[prop-decorator]
    @property
    def identical(self) -> int | None:
        """How many prompts had identical outputs; None when sampling."""
        known = [one.identical for one in self.prompts if one.identical is not None]
        return sum(known) if known else None
