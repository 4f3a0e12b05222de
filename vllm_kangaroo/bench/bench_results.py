"""The figures of one benchmark, as they are printed and written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, computed_field

from vllm_kangaroo.bench.ladder_cost import LadderCost
from vllm_kangaroo.bench.statistics import Acceptance, Spread, paired_ratios
from vllm_kangaroo.provenance import Provenance


class Speed(BaseModel):
    """Tokens generated and the wall time they took, prefill included; and what of it came after first tokens."""

    tokens: int = 0
    seconds: float = 0.0
    decode_tokens: int = 0
    """Those after each request's first."""
    decode_seconds: float = 0.0
    """From each request's first token to its last, added up over requests."""

    def __add__(self, other: Speed) -> Speed:
        return Speed(
            tokens=self.tokens + other.tokens,
            seconds=self.seconds + other.seconds,
            decode_tokens=self.decode_tokens + other.decode_tokens,
            decode_seconds=self.decode_seconds + other.decode_seconds,
        )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def tokens_per_second(self) -> float:
        """Zero if nothing was generated."""
        return self.tokens / self.seconds if self.seconds else 0.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def decode_tokens_per_second(self) -> float:
        """Of a request, after its first token: one over vLLM's time per output token."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


def speedups(plain: Sequence[Speed], ours: Sequence[Speed]) -> Spread:
    """Tokens per second over another's, of runs taken side by side."""
    theirs, own = ([one.tokens_per_second for one in speeds] for speeds in (plain, ours))
    return Spread.of(paired_ratios(theirs, own))


def decode_speedups(plain: Sequence[Speed], ours: Sequence[Speed]) -> Spread | None:
    """The same after first tokens; None where there were no more."""
    theirs, own = ([one.decode_tokens_per_second for one in speeds] for speeds in (plain, ours))
    return Spread.of(paired_ratios(theirs, own)) if all(theirs) else None


class Round(BaseModel):
    """Every prompt once on each engine, one engine after the other."""

    drafting_first: bool
    plain: Speed
    drafting: Speed

    @computed_field  # type: ignore[prop-decorator]
    @property
    def speedup(self) -> float:
        """Ratio of the two engines' tokens per second."""
        return self.drafting.tokens_per_second / self.plain.tokens_per_second

    @computed_field  # type: ignore[prop-decorator]
    @property
    def decode_speedup(self) -> float | None:
        """The same after first tokens, of which there may be no more."""
        plain = self.plain.decode_tokens_per_second
        return self.drafting.decode_tokens_per_second / plain if plain else None


class Divergence(BaseModel):
    """Where a prompt's two outputs part."""

    prompt: str
    index: int
    """Which of the prompts that is, from 0."""
    round: int
    """The first round in which they part, from 0."""
    token: int
    """Index of the first output token that differs."""
    of: int
    margin: float | None = None
    """Between the two tokens' log-probabilities in vLLM alone, in nats. None if one output had ended
    there, or one token is far from likely."""


class Equality(BaseModel):
    """How many outputs of the two engines were identical, token for token, in every round."""

    prompts: int
    identical: int
    divergences: list[Divergence]
    plain_repeats: int
    """Outputs that vLLM alone gave alike in every round: a bound on what can be asked of drafting."""


class Category(BaseModel):
    """The figures of one kind of prompts."""

    name: str
    prompts: int
    speedup: Spread | None
    """Over the rounds; None where prompts shared a batch and no category has a time of its own."""
    plain: Speed | None
    drafting: Speed | None
    acceptance: Acceptance
    identical: int | None


class RunSetup(BaseModel):
    """What was measured, but for how it drafts."""

    model: str
    architecture: str
    layers: int
    hidden_size: int
    dtype: str
    mode: str
    """``compiled`` as vLLM would by itself, or ``eager``."""
    batch_size: int
    max_tokens: int
    temperature: float
    prompts: int
    skipped_too_long: int


class Setup(RunSetup):
    """What was measured."""

    speculative_config: dict[str, Any]


class BenchResult(BaseModel):
    """One run of ``vllm-kangaroo bench``."""

    setup: Setup
    rounds: list[Round]
    speedup: Spread
    """Median and range of the rounds' ratios."""
    acceptance: Acceptance
    ladder: LadderCost | None
    """None with a method of vLLM's own."""
    equality: Equality | None
    """None when sampling: the outputs then agree in distribution only."""
    categories: list[Category]
    provenance: Provenance

    @computed_field  # type: ignore[prop-decorator]
    @property
    def plain_tokens_per_second(self) -> Spread:
        """Of vLLM alone, over the rounds."""
        return Spread.of([one.plain.tokens_per_second for one in self.rounds])

    @computed_field  # type: ignore[prop-decorator]
    @property
    def drafting_tokens_per_second(self) -> Spread:
        """With drafting, over the rounds."""
        return Spread.of([one.drafting.tokens_per_second for one in self.rounds])

    @computed_field  # type: ignore[prop-decorator]
    @property
    def decode_speedup(self) -> Spread | None:
        """After first tokens: the speed-up without the time of prompts, which drafting does not shorten."""
        return decode_speedups(
            [one.plain for one in self.rounds], [one.drafting for one in self.rounds]
        )
