"""Options that the commands which train, or write data to train on, have in common: one field, one flag."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class DataOptions(BaseModel):
    """From data to a directory of results."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(default=None, description="local checkpoint directory")
    data: tuple[Path, ...] = Field(
        min_length=1,
        description=".txt or .jsonl files, also .xz or .gz; a file named twice counts twice",
    )
    out: Path = Field(description="directory to write to")
    batch_size: int = Field(default=8, ge=1, description="windows a step")
    seed: int = Field(default=0, ge=0, description="order of data, and all that is drawn")


class TrainingOptions(DataOptions):
    """Of a training run over windows of data."""

    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="of products, and as stored"
    )
    held_out: tuple[Path, ...] = Field(
        default=(), description="files to measure on, one figure each, beside a split of the data"
    )
    steps: int | None = Field(
        default=None, ge=1, description="optimizer steps; one pass over the data if not given"
    )
    accumulate: int = Field(
        default=1, ge=1, description="parts in which a step's windows are computed, to save memory"
    )
    window: int = Field(default=256, ge=8, description="tokens a window")
    warmup_steps: int = Field(default=50, ge=0, description="linear warm-up")
    weight_decay: float = Field(default=0.0, ge=0, description="of the matrices")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    device: str = Field(default="cpu", description="cpu, cuda, ...")
    held_out_fraction: float = Field(
        default=0.02, gt=0, lt=1, description="windows of the data kept for measuring"
    )
    held_out_windows: int = Field(
        default=64, ge=1, description="most windows measured on, of the data and of each file"
    )
    eval_every: int = Field(default=200, ge=1, description="steps between measurements")
    save_every: int = Field(default=100, ge=1, description="steps between saves of the state")

    @model_validator(mode="after")
    def _parts_of_a_step(self) -> Self:
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"--accumulate {self.accumulate} is more than the {self.batch_size} windows of a "
                "step; give a larger --batch-size or a smaller --accumulate"
            )
        return self
