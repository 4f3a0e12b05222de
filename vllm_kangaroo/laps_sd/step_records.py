"""Measured steps of an engine, and the files of them that the scheduler writes."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.text_inputs import InputError, Line, TextInput


class StepLogError(InputError, LapsSdError):
    """A step log that cannot be used; the message names file, line and remedy."""


class StepRecord(BaseModel):
    """One measured step of an engine."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    seconds: float = Field(gt=0.0)
    requests: int = Field(ge=1)
    tokens: int = Field(ge=1)
    """Positions run through the model, drafts included."""
    kv_tokens: int = Field(ge=0)
    """Positions whose keys and values are read, summed over requests."""
    drafts: int = Field(default=0, ge=0)
    """Drafting passes made one after another in the step, each over all requests that decode."""
    prompt_tokens: int = Field(default=0, ge=0)
    """Those of the positions that are prompts."""


def read_steps(file: Path) -> list[StepRecord]:
    """Measured steps from a file of JSON lines, as ``step_log`` has the scheduler write it.

    Raises:
        StepLogError: if a line is no step.
    """
    source = TextInput(file, StepLogError, f"steps={str(file)!r}", ": name a step log.")
    return [_step(line) for line in source.lines()]


def _step(line: Line) -> StepRecord:
    step = line.read_as(StepRecord)
    if step.prompt_tokens > step.tokens:
        raise line.fault(f"has {step.prompt_tokens} prompt_tokens among {step.tokens} tokens")
    return step
