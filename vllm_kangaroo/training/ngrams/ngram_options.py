"""Everything a user can set for ``train ngrams``: one field, one flag."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class NgramOptions(BaseModel):
    """Options of ``vllm-kangaroo train ngrams``; the flags are the field names with dashes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    answers: tuple[Path, ...] = Field(
        min_length=1,
        description="directories of 'train answers', of the model that is to be served",
    )
    out: Path = Field(
        description="file to write; as ngrams.safetensors in an adapter's directory it is found there"
    )
    least_count: int = Field(
        default=2, ge=1, description="leave out what was seen less often after a context"
    )
    least_probability: float = Field(
        default=0.15, ge=0, lt=1, description="leave out what is less likely than this"
    )
    contexts: int = Field(
        default=2**18, ge=1, le=2**22, description="most contexts, those that help the most often"
    )
