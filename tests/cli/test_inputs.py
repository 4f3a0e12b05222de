"""What a user sees of a wrong input: one sentence with file and line, status 2, and no engine started."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from vllm_kangaroo import tiny_model
from vllm_kangaroo.cli import main as cli
from vllm_kangaroo.training.adapter import on_policy

pytestmark = pytest.mark.slow

CASES = Path(__file__).parents[1] / "cases"
WRONG = {
    "empty_conversation": "holds a conversation without a turn",
    "lone_surrogate": r"holds '\ud83d', half of a surrogate pair",
    "text_null": "has text=null",
    "token_beyond_table": "gives the token id 70000, and the model's last is 4095",
}
RIGHT = ["assistant_first", "byte_order_mark", "content_parts", "tool_call_null", "unknown_roles"]
TRACES = {
    "acceptance_above_one": "has acceptance=1.7",
    "arrival_nan": "has arrival_s=nan",
    "arrival_text": "has arrival_s='0.0'",
}
UNKNOWN_ROLE = {"messages": [{"role": "narrator", "content": "Once upon a time."}]}


class EngineStarted(Exception):
    """An engine would have been started."""


def no_engine(*_: object, **__: object) -> None:
    raise EngineStarted


def refusal(*arguments: str | Path) -> str:
    """What a command says that ends with status 2."""
    result = CliRunner().invoke(cli.app, list(map(str, arguments)))
    assert result.exit_code == 2, (result.output, result.exception)
    said = [line for line in result.stderr.splitlines() if line.startswith("vllm-kangaroo: ")]
    assert len(said) == 1 and result.stderr.splitlines()[-1] == said[0]
    return said[0]


def train(data: Path, out: Path, *more: str | Path) -> list[str | Path]:
    settings = [
        "--exit-layer",
        "1",
        "--steps",
        "1",
        "--window",
        "32",
        "--batch-size",
        "2",
        "--dtype",
        "float32",
    ]
    return [
        *["train", "adapter", "--model"],
        tiny_model(),
        "--data",
        data,
        "--out",
        out,
        *settings,
        *more,
    ]


@pytest.mark.parametrize("name", RIGHT)
def test_training_on_rows_as_data_sets_have_them(name: str, tmp_path: Path) -> None:
    arguments = train(CASES / "data" / f"{name}.jsonl", tmp_path / "out")
    result = CliRunner().invoke(cli.app, list(map(str, arguments)))
    assert result.exit_code == 0, (result.output, result.exception)
    assert (tmp_path / "out" / "config.json").is_file()
    assert ("1 answers do not count: they call tools" in result.output) == (
        name == "tool_call_null"
    )


@pytest.mark.parametrize(("name", "said"), WRONG.items())
@pytest.mark.parametrize("command", ["adapter", "exits", "profile"])
def test_wrong_rows(
    name: str, said: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_kangaroo.profile.timing.engine", no_engine)
    path = CASES / "data" / f"{name}.jsonl"
    arguments: list[str | Path] = [
        "profile",
        "--model",
        tiny_model(),
        "--data",
        path,
        "--out",
        tmp_path,
    ]
    if command != "profile":
        arguments = train(path, tmp_path / "out")
        arguments[1] = command
    assert f"line 21 of '{path}' {said}" in refusal(*arguments)


@pytest.mark.parametrize(("name", "said"), TRACES.items())
def test_wrong_traces(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.LLM", no_engine)
    path = CASES / "traces" / f"{name}.jsonl"
    for command in ("simulate", "replay"):
        assert f"line 1 of trace='{path}' {said}" in refusal(command, "--trace", path)


def test_wrong_numbers_of_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm.LLM", no_engine)
    for value in ("nan", "inf", "0", "-1"):
        assert "load=" in refusal("simulate", "--load", value)
        assert "load=" in refusal("replay", "--load", value)
    for value in ("nan", "inf", "1.7", "-0.1"):
        assert "mean=" in refusal("simulate", "--acceptance", value)
    steps = tmp_path / "steps.jsonl"
    steps.write_text('{"seconds": NaN, "requests": 1, "tokens": 1, "kv_tokens": 0}\n')
    assert f"line 1 of steps='{steps}' has seconds=nan" in refusal("simulate", "--steps", steps)


def test_wrong_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_kangaroo.bench.engines.engine", no_engine)
    monkeypatch.setattr("vllm_kangaroo.bench.sweep.engine", no_engine)
    good = (CASES / "prompts" / "line_separator.jsonl").read_text()
    path = tmp_path / "question.jsonl"
    compare = ["bench", "compare", "--config", 'one={"method": "kangaroo"}', "--prompts", path]
    commands: list[list[Any]] = [
        ["bench", "--prompts", path],
        compare,
        ["bench", "sweep", "--prompts", path],
    ]
    for command in commands:
        path.write_text(good + '{"category": "qa", "turns": [null], "question_id": 4}\n')
        assert f"line 5 of --prompts {path} has turns[0]=None" in refusal(*command)
        path.write_text(good)
        result = CliRunner().invoke(cli.app, list(map(str, command)))
        assert isinstance(result.exception, EngineStarted)


def test_all_inputs_of_on_policy_training_are_read_before_an_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_policy, "_run", no_engine)
    good, wrong = CASES / "data" / "content_parts.jsonl", tmp_path / "wrong.jsonl"
    more = ("--on-policy", "--on-policy-tokens", "8")
    result = CliRunner().invoke(cli.app, list(map(str, train(good, tmp_path / "a", *more))))
    assert isinstance(result.exception, EngineStarted)
    for row, said in (
        (UNKNOWN_ROLE, "has the unknown role 'narrator' in turn 1"),
        ({"text": None}, "has text=null"),
        ({"token_ids": [4096], "answer_start": 0}, "gives the token id 4096"),
    ):
        wrong.write_text(good.read_text() + json.dumps(row))
        for arguments in (
            train(wrong, tmp_path / "b", *more),
            train(good, tmp_path / "c", "--held-out", wrong, *more),
        ):
            assert f"line 42 of '{wrong}' {said}" in refusal(*arguments)


def test_all_inputs_of_a_profile_are_read_before_an_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vllm_kangaroo.profile.timing.engine", no_engine)
    arguments: list[str | Path] = ["profile", "--model", tiny_model(), "--out", tmp_path, "--data"]
    good, wrong = CASES / "data" / "content_parts.jsonl", tmp_path / "wrong.jsonl"
    result = CliRunner().invoke(cli.app, [*map(str, arguments), str(good)])
    assert isinstance(result.exception, EngineStarted)
    wrong.write_text(good.read_text() + json.dumps(UNKNOWN_ROLE))
    said = refusal(*arguments, wrong)
    assert f"line 42 of '{wrong}' has the unknown role 'narrator' in turn 1" in said
    questions = [
        {"messages": [{"role": "user", "content": f"Who is {at}?" * 9}]} for at in range(9)
    ]
    wrong.write_text("".join(json.dumps(row) + "\n" for row in questions))
    assert "no token of the data is an assistant's" in refusal(*arguments, wrong)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_files_that_are_no_text(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    for content, said in (
        (b"", "holds no "),
        ("Once upon a time".encode("utf-16"), "is text in UTF-16"),
        (b'{"text": "\xff"}', "is no UTF-8"),
    ):
        path.write_bytes(content)
        assert f"'{path}' {said}" in refusal(*train(path, tmp_path / "out"))


def test_two_figures_of_one_name(tmp_path: Path) -> None:
    good = CASES / "data" / "content_parts.jsonl"
    for name in ("data.jsonl", "content_parts.jsonl"):
        (tmp_path / name).write_text(good.read_text())
        both = ("--held-out", good, "--held-out", tmp_path / name)
        said = f"--held-out '{tmp_path / name}' has the name of other figures"
        assert said in refusal(*train(good, tmp_path / "out", *both))


@pytest.mark.parametrize(
    "arguments",
    [
        ["simulate", "--trace", str(CASES / "traces" / "arrival_nan.jsonl"), "--arrivals", "trace"],
        list(map(str, train(CASES / "data" / "text_null.jsonl", Path("unused")))),
    ],
)
def test_a_process_ends_with_status_2_and_one_sentence(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "vllm_kangaroo.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 2
    *_, last = done.stderr.splitlines()
    assert last.startswith("vllm-kangaroo: line ") and "Traceback" not in done.stderr
