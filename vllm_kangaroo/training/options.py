"""Everything a user can set for adapter training: one field, one flag."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AdapterTrainingOptions(BaseModel):
    """Options of ``vllm-kangaroo train adapter``; the flags are the field names with dashes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(description="local checkpoint directory of the target")
    data: tuple[Path, ...] = Field(
        min_length=1, description=".txt or .jsonl files, also .xz; a file named twice counts twice"
    )
    held_out: tuple[Path, ...] = Field(
        default=(), description="files to measure on, one figure each, beside a split of the data"
    )
    exit_layer: int = Field(description="layers of the target that draft")
    out: Path = Field(description="directory to write the adapter to")
    steps: int | None = Field(
        default=None, ge=1, description="optimizer steps; one pass over the data if not given"
    )
    batch_size: int = Field(default=8, ge=1, description="windows a step")
    window: int = Field(default=256, ge=8, description="tokens a window")
    learning_rate: float = Field(
        default=2e-3, gt=0, description="peak; 5e-5 suits 7B targets, small ones take more"
    )
    warmup_steps: int = Field(
        default=50, ge=0, description="linear warm-up, then cosine to a tenth"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of the matrices")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm")
    init: Literal["next-layer", "random"] = Field(
        default="next-layer",
        description="start attention from that of the target's layer after the exit, or at random",
    )
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="of the target, of the adapter's products, as stored"
    )
    device: str = Field(default="cpu", description="cpu, cuda, ...")
    seed: int = Field(default=0, ge=0, description="order of data, split and initial weights")
    held_out_fraction: float = Field(
        default=0.02, gt=0, lt=1, description="windows of the data kept for measuring"
    )
    held_out_windows: int = Field(
        default=64, ge=1, description="most windows measured on, of the data and of each file"
    )
    eval_every: int = Field(default=200, ge=1, description="steps between measurements")
    save_every: int = Field(default=100, ge=1, description="steps between saves of the state")
