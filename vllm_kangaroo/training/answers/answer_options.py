"""Everything a user can set for ``train answers``: one field, one flag."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from vllm_kangaroo.training.run.training_options import DataOptions


class AnswerOptions(DataOptions):
    """Options of ``vllm-kangaroo train answers``; the flags are the field names with dashes."""

    model: str = Field(description="local checkpoint directory of the target")
    data: tuple[Path, ...] = Field(
        min_length=1,
        description=".jsonl files of conversations, also .xz or .gz; one turn of each is asked",
    )
    out: Path = Field(
        description="directory to write to; the same command goes on where it stopped"
    )
    exit_layer: tuple[int, ...] = Field(
        min_length=1, description="keep the states of these exits; may be given several times"
    )
    sampled_share: float = Field(
        default=0.25, ge=0, le=1, description="share of answers at temperature 1; others are greedy"
    )
    max_tokens: int = Field(default=192, ge=1, description="most tokens of an answer")
    max_prompt_tokens: int = Field(
        default=224, ge=1, description="prompts that are longer are left out"
    )
    answer_tokens: int | None = Field(
        default=None, ge=1, description="stop once so many tokens of answers are there"
    )
    batch_size: int = Field(default=64, ge=1, description="requests that vLLM serves at a time")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        default="auto",
        description="of the model; auto is bfloat16 where the device multiplies in it, else float32",
    )
    seed: int = Field(default=0, ge=0, description="order of the prompts, and the samples")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.exit_layer)) < len(self.exit_layer):
            raise ValueError(f"--exit-layer {self.exit_layer} names an exit twice; name it once")
        return self

    def identity(self) -> dict[str, Any]:
        """What fixes the answers: a run with other values is another run."""
        return self.model_dump(
            mode="json", exclude={"out", "answer_tokens", "batch_size", "sampled_share", "dtype"}
        )
