"""Traces: numbers that can be, and every other named by file and line."""

from __future__ import annotations

import json
import lzma
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.laps_sd.trace import DEFAULT_TRACE, TraceRequest, read_trace
from vllm_kangaroo.text_inputs import InputError

GOOD: dict[str, Any] = {"prompt": "Name a stone.", "output_tokens": 9}
NUMBERS = (
    st.floats()
    | st.integers()
    | st.booleans()
    | st.none()
    | st.text(max_size=4)
    | st.sampled_from(["1", "0.5", "nan", [1], {}])
)


def trace(folder: Path, *rows: Any) -> Path:
    path = folder / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "changed",
    [
        {"acceptance": 1.7},
        {"acceptance": -0.1},
        {"acceptance": math.nan},
        {"acceptance": math.inf},
        {"acceptance": "0.5"},
        {"acceptance": True},
        {"acceptance": [0.5]},
        {"arrival_s": math.nan},
        {"arrival_s": -math.inf},
        {"arrival_s": math.inf},
        {"arrival_s": -1.0},
        {"arrival_s": "0.0"},
        {"arrival_s": False},
        {"arrival_s": 1.7e18},
        {"output_tokens": 0},
        {"output_tokens": -3},
        {"output_tokens": 2.5},
        {"output_tokens": 9.0},
        {"output_tokens": math.nan},
        {"output_tokens": "9"},
        {"output_tokens": True},
        {"output_tokens": None},
        {"output_tokens": 10**12},
        {"prompt": None},
        {"prompt": 5},
        {"prompt": ["Name", "a", "stone"]},
        {"prompt_token_ids": "1 2 3"},
        {"prompt_token_ids": [1, -2]},
        {"prompt_token_ids": [1, 2.0]},
        {"prompt_token_ids": [1, True]},
        {"prompt_token_ids": [10**30]},
        {"kind": ["qa"]},
    ],
)
def test_impossible_requests_are_named_by_line(tmp_path: Path, changed: dict[str, Any]) -> None:
    path = trace(tmp_path, GOOD, GOOD | changed, GOOD)
    with pytest.raises(LapsSdError, match=f"^line 2 of trace='{path}' has ") as caught:
        read_trace(path)
    assert isinstance(caught.value, InputError)
    assert next(iter(changed)) in str(caught.value)
    assert str(caught.value).endswith(": give JSON lines, each with output_tokens and a prompt.")


@settings(suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(
        st.sampled_from(
            ["output_tokens", "arrival_s", "acceptance", "kind", "prompt", "prompt_token_ids"]
        ),
        NUMBERS | st.lists(NUMBERS, max_size=2),
    )
)
def test_whatever_is_read_can_be_simulated(tmp_path: Path, changed: dict[str, Any]) -> None:
    try:
        request = read_trace(trace(tmp_path, GOOD | changed, GOOD))[0]
    except InputError:
        return
    assert type(request.output_tokens) is int and request.output_tokens >= 1
    assert request.arrival_s is None or 0 <= request.arrival_s < math.inf
    assert request.acceptance is None or 0 <= request.acceptance <= 1
    assert all(type(each) is int and each >= 0 for each in request.prompt_token_ids)
    assert isinstance(request.kind, str)


def test_possible_requests(tmp_path: Path) -> None:
    path = trace(
        tmp_path,
        {"prompt_token_ids": [5, 6], "prompt": None, "output_tokens": 1, "arrival_s": 0},
        {"prompt": "", "output_tokens": 2, "acceptance": 1, "kind": None, "more": math.nan},
        {"prompt_token_ids": [], "output_tokens": 3, "acceptance": 0.0, "kind": 4},
    )
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert read_trace(path) == [
        TraceRequest([5, 6], 1, "", 0.0),
        TraceRequest([], 2, "", None, 1.0),
        TraceRequest([], 3, "4", None, 0.0),
    ]


def test_a_real_engine_needs_the_tokens_of_its_model(tmp_path: Path) -> None:
    tokens = {"prompt_token_ids": [5, 299], "output_tokens": 9}
    assert len(read_trace(trace(tmp_path, tokens, tokens), vocabulary=300)) == 2
    for row, said in (
        (GOOD, "line 2 of .* has no 'prompt_token_ids': a real engine needs"),
        (tokens | {"prompt_token_ids": []}, "line 2 of .* has no 'prompt_token_ids'"),
        (tokens | {"prompt_token_ids": [5, 300]}, "has the token id 300, the model's last is 299"),
    ):
        with pytest.raises(LapsSdError, match=said):
            read_trace(trace(tmp_path, tokens, row), vocabulary=300)


def test_traces_of_text_and_of_tokens(tmp_path: Path):
    file = tmp_path / "trace.jsonl.xz"
    with lzma.open(file, "wt") as out:
        out.write('{"prompt": "Hello, world", "output_tokens": 3, "arrival_s": 0.5}\n')
        out.write('{"prompt_token_ids": [1, 2], "output_tokens": 4, "acceptance": 0.5}\n')
    one, two = read_trace(file)
    assert (len(one.prompt_token_ids), one.output_tokens, one.arrival_s) == (3, 3, 0.5)
    assert (list(two.prompt_token_ids), two.acceptance) == ([1, 2], 0.5)
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text('{"prompt": "a", "output_tokens": 2}\n{"prompt": "b", "output_tokens": 0}\n')
    with pytest.raises(LapsSdError, match="line 2 of"):
        read_trace(wrong)
    with pytest.raises(LapsSdError, match="cannot be read"):
        read_trace(tmp_path / "nowhere.jsonl")


def test_embedded_trace_is_whole():
    trace = read_trace(DEFAULT_TRACE)
    assert len(trace) == 2993
    assert {each.kind for each in trace} >= {"gsm8k", "oasst", "mbpp", "taskmaster4"}
    assert (
        1
        <= min(each.output_tokens for each in trace)
        < 20
        < 1000
        < max(each.output_tokens for each in trace)
    )
