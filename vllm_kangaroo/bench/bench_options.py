"""What the commands beside ``bench`` itself take; each field is a flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from vllm_kangaroo.bench.engines import EngineSettings, speculative_config
from vllm_kangaroo.demo.models import MEASURED, WHICH, served
from vllm_kangaroo.options import OptionError


class EngineOptions(BaseModel):
    """What all engines of a command have in common."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(default=MEASURED.name, description=f"Model to measure: {WHICH}.")
    dtype: str = Field(default="bfloat16", description="bfloat16, float32, ... or auto.")
    eager: bool = Field(default=False, description="Compile no engine.")
    batch_size: int = Field(default=1, ge=1, description="Prompts generated at once.")
    out: Path | None = Field(default=None, description="Write the figures here, as JSON.")

    def settings(self) -> EngineSettings:
        """Of the engines."""
        return EngineSettings(
            model=served(self.model),
            dtype=self.dtype,
            eager=self.eager,
            max_num_seqs=self.batch_size,
        )


class RunOptions(EngineOptions):
    """What is generated, and how often."""

    prompts: Path | None = Field(
        default=None,
        description="Spec-Bench question.jsonl, or a JSON list of {name, messages}. Default: the demo's.",
    )
    num_prompts: int | None = Field(
        default=None, ge=1, description="Take this many, evenly over categories."
    )
    max_tokens: int = Field(default=128, ge=1, description="Tokens per prompt, all generated.")
    temperature: float = Field(default=0.0, ge=0.0, description="0 for greedy decoding.")
    rounds: int = Field(default=3, ge=1, description="Runs of each engine, in turns.")


class GoodputBenchOptions(RunOptions):
    """``bench goodput``."""

    batch_size: tuple[int, ...] = Field(  # type: ignore[assignment]
        default=(1, 2, 4, 8, 16, 32, 64),
        description="Requests at once, others waiting to follow; may be repeated.",
    )
    lengths: tuple[int, ...] = Field(
        default=(1, 2, 4, 6),
        description="Fixed numbers of drafts to compare with, beside 0; may be repeated.",
    )
    rate: tuple[float, ...] = Field(
        default=(0.1, 0.5, 0.8, 1.0, 1.2),
        description="Request rates, in what vLLM alone can serve; may be repeated. 0 runs none.",
    )
    requests: int = Field(default=48, ge=1, description="Requests of each rate; greedy.")
    starts: int = Field(
        default=1,
        ge=1,
        description="Start the engines anew so many times: two processes of the same engine differ.",
    )
    synthetic_acceptance: float | None = Field(
        default=None,
        ge=0.0,
        le=1.0,
        description="Accept each draft with this probability, whatever it is: real costs at an acceptance of choice.",
    )
    speculative_config: str = Field(
        default='{"method": "kangaroo"}', description="As vLLM takes it, in JSON, without goodput."
    )
    png: Path | None = Field(default=None, description="Draw the picture here.")

    def settings(self) -> EngineSettings:
        """Of the engines."""
        self._check()
        return EngineSettings(
            model=served(self.model),
            dtype=self.dtype,
            eager=self.eager,
            max_num_seqs=max(self.batch_size),
        )

    def drafting(self) -> dict[str, Any]:
        """The ``speculative_config``, of a method of ours.

        Raises:
            OptionError: if it is wrong.
        """
        found = speculative_config(whole=self.speculative_config)
        if "goodput" in found:
            raise OptionError(
                f"--speculative-config {self.speculative_config} sets goodput, which this command does by itself: leave it "
                "out."
            )
        return found

    def _check(self) -> None:
        for flag, values in (("batch-size", self.batch_size), ("lengths", self.lengths)):
            if min(values, default=0) < 1:
                raise OptionError(f"--{flag} {min(values, default=0)} is below 1: give 1 or more.")
        for rate in self.rate:
            if not 0.0 <= rate <= 10.0:
                raise OptionError(f"--rate {rate} is no share of the capacity: give 0 to 10.")


class MemoryOptions(EngineOptions):
    """``bench memory``."""

    speculative_config: str = Field(
        default='{"method": "hispec"}', description="As vLLM takes it, in JSON."
    )


class CompareOptions(RunOptions):
    """``bench compare``."""

    config: tuple[str, ...] = Field(
        min_length=1,
        description="NAME=JSON, a speculative_config, ours or vLLM's own, and what to call it; may be repeated.",
    )

    def configs(self) -> dict[str, dict[str, Any]]:
        """By name, in the order given.

        Raises:
            OptionError: if one has no name, or a name is given twice, or a method of ours refuses a config.
        """
        found: dict[str, dict[str, Any]] = {}
        for given in self.config:
            name, equals, whole = given.partition("=")
            if not equals or not name or name in found:
                raise OptionError(
                    f"--config {given} has no name of its own: give NAME=JSON, such as "
                    'hispec={"method": "hispec"}.'
                )
            found[name] = speculative_config(whole=whole, of_vllm=True)
        return found


class SweepOptions(RunOptions):
    """``bench sweep``."""

    rounds: int = Field(default=2, ge=1, description="Runs of each point.")
    draft_exits: tuple[int, ...] = Field(
        default=(1, 2), description="Draft exits, Ld; may be repeated."
    )
    verify_exits: tuple[int, ...] = Field(
        default=(3, 4, 6, 0),
        description="Intermediate exits, Li; may be repeated. 0 is single-layer speculation.",
    )
    draft_tokens: tuple[int, ...] = Field(
        default=(1, 2, 4), description="Drafts per round, N_d; may be repeated."
    )
    speculative_tokens: tuple[int, ...] = Field(
        default=(2, 4, 6), description="Sizes of the buffer, N_i; may be repeated."
    )
    confidence_threshold: float = Field(default=0.0, ge=0.0, le=1.0, description="For all points.")
    draft_adapter: Path | None = Field(
        default=None,
        description="Adapter to draft with, of the one draft exit that is then to be named.",
    )
    png: Path | None = Field(default=None, description="Draw the heat map here.")
