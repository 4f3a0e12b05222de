"""Everything a user can set for early-exit training: one field, one flag."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from vllm_kangaroo.training.run.training_options import TrainingOptions


class ExitTrainingOptions(TrainingOptions):
    """Options of ``vllm-kangaroo train exits``; the flags are the field names with dashes."""

    out: Path = Field(description="directory to write the checkpoint to")
    model: str | None = Field(
        default=None, description="local checkpoint directory of a model to train on"
    )
    config: Path | None = Field(
        default=None, description="config.json of a model to train from scratch, instead of --model"
    )
    tokenizer: str | None = Field(
        default=None, description="local directory of the tokenizer; that of --model if not given"
    )
    exit_layer: tuple[int, ...] = Field(
        default=(),
        description="exits trained in rotation, one of them each step; all of them if not given",
    )
    random_exits: int = Field(
        default=1, ge=0, description="further exits trained each step, drawn from all"
    )
    exit_scale: float = Field(
        default=0.5, ge=0, description="weight of the exits' mean loss beside the full model's 1"
    )
    exit_weights: Literal["uniform", "depth"] = Field(
        default="uniform", description="weights of exits among themselves"
    )
    layer_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="of the last layer; earlier ones are dropped less"
    )
    dropout_ramp: bool = Field(
        default=False,
        description="let layer dropout grow over the run, as from scratch in LayerSkip",
    )
    loss_on: Literal["all", "answers"] = Field(
        default="all", description="tokens of conversations that the loss counts"
    )
    long_window: int | None = Field(
        default=None, ge=8, description="tokens a window in some of the steps, of as many tokens"
    )
    long_share: float = Field(default=0.15, ge=0, le=1, description="share of those steps")
    optimizer: Literal["adamw", "muon"] = Field(
        default="adamw", description="muon: for the layers' matrices, AdamW for the rest"
    )
    learning_rate: float = Field(default=2e-5, gt=0, description="peak, of AdamW")
    muon_learning_rate: float = Field(default=0.02, gt=0, description="peak, of Muon")
    warmup_steps: int = Field(default=60, ge=0, description="linear warm-up")
    decay_share: float = Field(
        default=0.3,
        ge=0,
        le=1,
        description="last share of the steps, over which the rates fall to 0",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="of the layers' matrices")
    clip: float = Field(default=1.0, gt=0, description="largest gradient norm, of AdamW's part")
    dtype: Literal["bfloat16", "float32"] = Field(
        default="bfloat16", description="of products, and as stored; weights train in float32"
    )
    seed: int = Field(default=0, ge=0, description="order of data, dropout, exits, initial weights")
    held_out_fraction: float = Field(
        default=0.01, gt=0, lt=1, description="windows of the data kept for measuring"
    )
    eval_every: int = Field(default=500, ge=1, description="steps between measurements")
    save_every: int = Field(default=500, ge=1, description="steps between saves of the state")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.model is None) == (self.config is None):
            raise ValueError(
                f"--model {self.model} and --config {self.config}: give one of the two, a model to "
                "train on or the config of one to train from scratch"
            )
        if self.config is not None and self.tokenizer is None:
            raise ValueError(f"--config {self.config} needs --tokenizer; name its directory")
        if self.long_window is not None and self.batch_size * self.window % self.long_window:
            raise ValueError(
                f"--long-window {self.long_window} does not divide the {self.batch_size} x "
                f"{self.window} tokens of a step; give one that does"
            )
        return self
