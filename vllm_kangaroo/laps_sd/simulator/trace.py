"""Requests to simulate: prompts and the lengths of their answers, from a file."""

from __future__ import annotations

import gzip
import json
import lzma
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

from vllm_kangaroo.laps_sd.policy_options import LapsSdError

DEFAULT_TRACE = Path(__file__).parent / "data" / "trace.jsonl.xz"


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request of a trace."""

    prompt_token_ids: Sequence[int]
    output_tokens: int
    kind: str = ""
    arrival_s: float | None = None
    acceptance: float | None = None
    """Chance that a draft is accepted, where it was measured."""


def read_trace(file: Path) -> list[TraceRequest]:
    """Read JSON lines, plain or compressed by gzip or xz.

    Each has ``output_tokens`` and either ``prompt_token_ids`` or ``prompt``, a text; ``kind``, ``arrival_s`` and
    ``acceptance`` are optional.

    Raises:
        LapsSdError: naming the line that is wrong.
    """
    found = []
    try:
        for number, line in enumerate(_lines(file), 1):
            try:
                found.append(_request(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise LapsSdError(
                    f"line {number} of {file} is no request ({error}): each line needs output_tokens and a prompt."
                ) from error
    except (OSError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise LapsSdError(
            f"trace={str(file)!r} cannot be read ({error}): name a file of JSON lines."
        ) from error
    if len(found) < 2:
        raise LapsSdError(f"trace={str(file)!r} has {len(found)} requests: it needs at least 2.")
    return found


def _lines(file: Path) -> Iterator[str]:
    opener: Any = {".xz": lzma.open, ".gz": gzip.open}.get(file.suffix, open)
    with opener(file, "rt", encoding="utf-8") as source:
        yield from (line for line in source if line.strip())


def _request(row: dict[str, Any]) -> TraceRequest:
    tokens = row.get("prompt_token_ids")
    if tokens is None:
        tokens = [
            crc32(word.encode()) & 0xFFFFF for word in re.findall(r"\w+|[^\w\s]", row["prompt"])
        ]
    output = int(row["output_tokens"])
    if output < 1:
        raise ValueError(f"output_tokens={output}")
    return TraceRequest(
        tokens, output, str(row.get("kind", "")), row.get("arrival_s"), row.get("acceptance")
    )
