"""Everything a user can set for profiling: one field, one flag."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class ProfileOptions(BaseModel):
    """Options of ``vllm-kangaroo profile``; the flags are the field names with dashes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="local checkpoint directory")
    data: tuple[Path, ...] = Field(
        min_length=1,
        description="held-out .txt or .jsonl files, also .xz or .gz, as train adapter reads",
    )
    out: Path = Field(description="directory to write profile.json and profile.png to")
    exit_layer: tuple[int, ...] = Field(
        default=(), description="candidate exits; if none is given, up to 8 of the first half"
    )
    adapter: tuple[Path, ...] = Field(
        default=(), description="adapters to measure beside the bare exit heads"
    )
    prompts: int = Field(
        default=32, ge=4, description="prompts answered; half choose, half are left to --verify"
    )
    tokens: int = Field(default=96, ge=8, description="most tokens of an answer")
    windows: int = Field(default=32, ge=1, description="windows of 256 tokens of text measured on")
    max_drafts: int = Field(default=6, ge=2, le=16, description="largest number of drafts tried")
    repeats: int = Field(default=3, ge=1, description="timed runs, of which the median one counts")
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        default="bfloat16", description="of model and engines"
    )
    eager: bool = Field(default=False, description="compile no engine, as --enforce-eager does")
    device: str = Field(default="cpu", description="where transformers runs: cpu, cuda, ...")
    seed: int = Field(default=0, ge=0, description="choice of prompts")
    finalists: int = Field(
        default=3,
        ge=0,
        description="settings of the highest predictions that are run before one is chosen; 0 trusts "
        "the predictions",
    )
    verify: bool = Field(
        default=False, description="run the best settings and compare with the prediction"
    )
