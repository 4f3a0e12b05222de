"""Requests to simulate: prompts and the lengths of their answers, from a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from zlib import crc32

from pydantic import BaseModel, ConfigDict, Field

from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.text_inputs import InputError, Line, TextInput, shown

DEFAULT_TRACE = Path(__file__).parent / "data" / "trace.jsonl.xz"
LONGEST = 10_000_000
"""Tokens of an answer; no model writes as many, and a simulation of them would fill the memory."""
LATEST = 1e10
"""Seconds; a clock that counts from 1970 has not come so far, and beyond it a round would be lost in rounding."""


class TraceError(InputError, LapsSdError):
    """A trace that cannot be used; the message names file, line and remedy."""


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace."""

    prompt_token_ids: Sequence[int]
    output_tokens: int
    kind: str = ""
    arrival_s: float | None = None
    acceptance: float | None = None
    """Chance that a draft is accepted, where it was measured."""


class _Row(BaseModel):
    """A line of a trace; what else stands in it is not used."""

    model_config = ConfigDict(allow_inf_nan=False)

    output_tokens: int = Field(ge=1, le=LONGEST)
    prompt: str | None = None
    prompt_token_ids: list[Annotated[int, Field(ge=0, lt=2**31)]] | None = None
    kind: str | int | None = None
    arrival_s: float | None = Field(default=None, ge=0.0, le=LATEST)
    acceptance: float | None = Field(default=None, ge=0.0, le=1.0)


def read_trace(file: Path, vocabulary: int | None = None) -> list[TraceRequest]:
    """Read JSON lines, plain or packed by gzip or xz.

    Each has ``output_tokens`` and either ``prompt_token_ids`` or ``prompt``, a text; ``kind``, ``arrival_s`` and
    ``acceptance`` are optional.

    Args:
        vocabulary: token ids there are in the model that is to serve the requests; None if none is.

    Raises:
        TraceError: naming the line that is wrong.
    """
    source = TextInput(
        file,
        TraceError,
        f"trace={str(file)!r}",
        ": give JSON lines, each with output_tokens and a prompt.",
    )
    found = [_request(line, vocabulary) for line in source.lines()]
    if len(found) < 2:
        raise source.fault(f"has {len(found)} requests", ": it needs at least 2.")
    return found


def _request(line: Line, vocabulary: int | None) -> TraceRequest:
    row = line.read_as(_Row)
    tokens = row.prompt_token_ids
    if vocabulary is not None:
        _check_servable(line, tokens, vocabulary)
    if tokens is None:
        if row.prompt is None:
            raise line.fault("has neither 'prompt' nor 'prompt_token_ids'")
        tokens = [crc32(word.encode()) & 0xFFFFF for word in re.findall(r"\w+|[^\w\s]", row.prompt)]
    return TraceRequest(
        tokens,
        row.output_tokens,
        "" if row.kind is None else str(row.kind),
        row.arrival_s,
        row.acceptance,
    )


def _check_servable(line: Line, tokens: list[int] | None, vocabulary: int) -> None:
    remedy = ": a real engine needs prompt_token_ids of its model's tokenizer."
    if not tokens:
        raise line.fault("has no 'prompt_token_ids'", remedy)
    if max(tokens) >= vocabulary:
        raise line.fault(
            f"has the token id {shown(max(tokens))}, the model's last is {vocabulary - 1}", remedy
        )
