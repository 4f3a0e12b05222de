"""Answers that the model itself gives to the conversations of the data, by vLLM.

An adapter drafts what its model writes, so text in the model's own words teaches it more than text
of others (arXiv 2404.18911 trains on the latter). Of each conversation one of the user's turns is
drawn; what stands before it is the prompt. Plain texts stay as they are.

vLLM runs in a process of its own, and appends answers to a file as it goes: they are written once,
and a run that is killed loses no more than a chunk of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from vllm_kangaroo.console import Progress
from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.data.drawn_prompts import draw_prompts
from vllm_kangaroo.training.data.errors import DataError
from vllm_kangaroo.training.run.state import ResumeError

ANSWERS_FILE = "on_policy.jsonl"
CHUNK = 64
"""Answers written at a time."""


class AnswerError(ValueError):
    """vLLM could not answer; the message says what it said last."""


def answer_data(
    options: AdapterTrainingOptions, identity: dict[str, Any], console: Console
) -> Path:
    """The file of answers in ``options.out``, made if it is not there or not whole.

    Args:
        identity: what fixes the answers; a file of another identity is refused.

    Raises:
        ResumeError: answers of another run.
        DataError: no conversation in the data.
        AnswerError: vLLM failed.
    """
    path = options.out / ANSWERS_FILE
    part = options.out / f"{ANSWERS_FILE}.part"
    for found in (path, part):
        if found.is_file():
            _check(found, identity)
    if path.is_file():
        return path
    options.out.mkdir(parents=True, exist_ok=True)
    prompts, kept = _prompts(options)
    job = options.out / f"{ANSWERS_FILE}.job"
    with job.open("w", encoding="utf-8") as file:
        settings = {
            "model": options.model,
            "dtype": options.dtype,
            "temperature": options.on_policy_temperature,
            "max_tokens": options.on_policy_tokens,
            "seed": options.seed,
            "chunk": CHUNK,
            "out": str(part),
        }
        file.write(json.dumps(settings) + "\n")
        file.writelines(json.dumps(prompt) + "\n" for prompt in prompts)
    done = _whole_chunks(part, identity)
    _run(job, part, done, len(prompts), console)
    with part.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in kept)
    job.unlink()
    part.replace(path)
    return path


def _check(path: Path, identity: dict[str, Any]) -> None:
    with path.open("rb") as file:
        first = file.readline()
    try:
        found = json.loads(first)["made_from"]
    except (ValueError, KeyError, TypeError):
        return  # torn before its first line was whole; _whole_chunks begins anew
    for key, value in identity.items():
        if found.get(key) != value:
            raise ResumeError(
                f"'{path}' holds answers made with {key}={found.get(key)!r}, this run has "
                f"{value!r}; repeat the old command, or name another --out"
            )


def _prompts(options: AdapterTrainingOptions) -> tuple[list[list[int]], list[dict[str, Any]]]:
    """Token ids of the prompts, and the rows that hold nothing to answer."""
    found = draw_prompts(options.data, options.model, options.seed, options.on_policy_tokens)
    if not found.prompts:
        raise DataError(
            f"the data hold no conversation that leaves room for --on-policy-tokens "
            f"{options.on_policy_tokens}; give conversations, or leave out --on-policy"
        )
    return found.prompts, [{"text": text} for text in found.texts]


def _whole_chunks(part: Path, identity: dict[str, Any]) -> int:
    """Cut a file of answers back to whole chunks; returns how many answers it has."""
    head = json.dumps({"made_from": identity}) + "\n"
    lines = part.read_bytes().splitlines(keepends=True) if part.is_file() else []
    if not lines or lines[0] != head.encode():
        part.write_text(head, encoding="utf-8")
        return 0
    whole = len([line for line in lines[1:] if line.endswith(b"\n")]) // CHUNK * CHUNK
    part.write_bytes(b"".join(lines[: 1 + whole]))
    return whole


def _run(job: Path, part: Path, done: int, count: int, console: Console) -> None:
    """Let another process answer, telling how far it is."""
    command = [
        sys.executable,
        "-m",
        "vllm_kangaroo.training.adapter.answering",
        str(job),
        str(done),
    ]
    log = job.with_suffix(".log")
    with (
        log.open("w+b") as said,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said) as process,
        Progress(console, "answering with vLLM", count, done=done, unit="prompts") as told,
    ):
        try:
            while process.poll() is None:
                time.sleep(0.2)
                told.update(_lines(part) - 1)
        finally:
            process.kill()
        said.seek(0)
        last = said.read().decode(errors="replace").strip().splitlines()[-1:]
    log.unlink()
    if process.returncode or _lines(part) - 1 != count:
        raise AnswerError(
            f"vLLM did not answer for --on-policy ({' '.join(last) or 'it said nothing'}); mend "
            "that, or leave --on-policy out"
        )


def _lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in _blocks(file))


def _blocks(file: Any) -> Iterator[bytes]:
    while block := file.read(1 << 20):
        yield block
