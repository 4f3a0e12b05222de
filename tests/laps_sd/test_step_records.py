"""Step logs: numbers that can be, and every other named by file and line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.laps_sd.step_records import StepRecord, read_steps
from vllm_kangaroo.text_inputs import InputError

STEP = {"seconds": 0.5, "requests": 1, "tokens": 4, "kv_tokens": 9, "drafts": 3, "prompt_tokens": 0}


def log(folder: Path, *rows: Any) -> Path:
    path = folder / "steps.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {"seconds": math.nan},
        {"seconds": math.inf},
        {"seconds": 0.0},
        {"seconds": "0.5"},
        {"requests": 0},
        {"requests": True},
        {"tokens": 1.5},
        {"kv_tokens": -1},
        {"drafts": "3"},
        {"prompt_tokens": 5},
        {"more": 1},
    ],
)
def test_impossible_steps_are_named_by_line(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = log(tmp_path, STEP, STEP | changed)
    with pytest.raises(LapsSdError, match=f"^line 2 of steps='{path}' has ") as caught:
        read_steps(path)
    assert isinstance(caught.value, InputError)


def test_steps_between_blank_lines(tmp_path: Path) -> None:
    path = log(tmp_path, STEP, STEP)
    path.write_text("\ufeff" + path.read_text().replace("\n", "\n\n"))
    assert read_steps(path) == [StepRecord.model_validate(STEP)] * 2
    with pytest.raises(LapsSdError, match="cannot be read"):
        read_steps(tmp_path / "none.jsonl")
