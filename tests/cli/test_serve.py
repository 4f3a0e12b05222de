"""``vllm-kangaroo serve``: the line that it prints is the command that it becomes."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from tests.adapters.test_reference import make_adapter, make_config
from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.adapters.checkpoint import save_adapter
from vllm_kangaroo.adapters.config import TargetInfo
from vllm_kangaroo.cli.main import app
from vllm_kangaroo.demo import smollm2

VLLM = [sys.executable, "-P", "-m", "vllm.entrypoints.cli.main"]


class Run(list[str]):
    """Arguments that took the place of the process."""


@pytest.fixture
def became(monkeypatch: pytest.MonkeyPatch) -> Run:
    run = Run()
    monkeypatch.setattr(os, "execv", lambda path, command: run.extend(command))
    return run


def serve(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["serve", *arguments])


def served(run: Run, result: Result) -> tuple[str, dict[str, Any]]:
    """Model and drafting of the command, which was printed first."""
    assert result.exit_code == 0, result.output
    assert shlex.split(result.stdout.splitlines()[0]) == ["vllm", *run[len(VLLM) :]]
    assert run[: len(VLLM)] == VLLM
    assert run[len(VLLM)] == "serve"
    config = run[run.index("--speculative-config") + 1]
    return run[len(VLLM) + 1], json.loads(config)


def strangers(folder: Path, name: str) -> Path:
    config = make_config(
        target=TargetInfo(name_or_path=name, architecture="A", model_type="a", num_hidden_layers=4)
    )
    save_adapter(make_adapter(config), config, folder)
    return folder


def test_the_demo(became: Run) -> None:
    model, drafting = served(became, serve("demo", "--model", "tiny", "--port", "81"))
    assert model == tiny_model()
    assert drafting == {
        "method": "kangaroo",
        "num_speculative_tokens": 5,
        "confidence_threshold": 0.05,
    }
    assert became[-2:] == ["--port", "81"]
    assert became[became.index("--host") + 1] == "127.0.0.1"


def test_a_flag_of_the_users_own_is_the_only_one_of_its_kind(became: Run) -> None:
    given = ["--dtype=float16", "--host", "::", "--served-model-name", "mine", "--enforce-eager"]
    model, _ = served(became, serve("demo", "--model", "tiny", *given))
    assert model == tiny_model()
    for flag in ("--dtype", "--host", "--served-model-name", "--enforce-eager"):
        assert sum(argument.startswith(flag) for argument in became) == 1


def test_the_larger_model_by_default(became: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm2, "model", lambda: Path("/cache/smollm2"))
    model, drafting = served(became, serve("demo"))
    assert model == "/cache/smollm2"
    assert drafting["model"] == smollm2.adapter()
    assert "--enforce-eager" in became


@pytest.mark.parametrize(
    "drafting",
    [["--speculative-model", "hispec"], ["--speculative-config={}"], ["-sc", "{}"]],
)
def test_drafting_of_the_users_own_takes_the_place_of_ours(
    became: Run, drafting: list[str]
) -> None:
    result = serve("demo", "--model", "tiny", *drafting)
    assert result.exit_code == 0, result.output
    assert became[-len(drafting) :] == drafting
    assert "kangaroo" not in "".join(became[len(VLLM) + 2 :])


def test_an_adapter_in_its_models_directory(became: Run) -> None:
    model, drafting = served(became, serve(tiny_adapter()))
    assert model == tiny_model()
    assert drafting == {"method": "kangaroo", "model": tiny_adapter()}


def test_an_adapter_that_names_a_model_on_a_hub(became: Run, tmp_path: Path) -> None:
    adapter = strangers(tmp_path / "adapter", "org/a-model_1.5")
    model, drafting = served(became, serve(str(adapter), "--max-model-len=4096"))
    assert model == "org/a-model_1.5"
    assert drafting["model"] == str(adapter)


def test_an_adapter_of_the_demos_other_model(
    became: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smollm2, "model", lambda: Path("/cache/smollm2"))
    shutil.copytree(smollm2.adapter(), tmp_path / "copy")
    for adapter in (smollm2.adapter(), str(tmp_path / "copy")):
        became.clear()
        assert served(became, serve(adapter))[0] == "/cache/smollm2"


def test_a_model_named_beside(became: Run, tmp_path: Path) -> None:
    adapter = strangers(tmp_path / "adapter", "my-model")
    model, _ = served(became, serve(str(adapter), "--model", "/models/my-model"))
    assert model == "/models/my-model"


@pytest.mark.parametrize(
    "name",
    [
        "my-model",
        "/etc",
        "../secret",
        "../../a/b",
        "a/../b",
        "~/x",
        "a/b/c",
        "-x/y",
        "x/..",
        "",
        "./a",
    ],
)
def test_no_path_is_taken_from_an_adapter(became: Run, tmp_path: Path, name: str) -> None:
    """Not even one that is there."""
    adapter = strangers(tmp_path / "adapter", name)
    (tmp_path / "my-model").mkdir()
    result = serve(str(adapter))
    assert result.exit_code == 2
    assert f"was trained for {name!r}, which is no name on a hub" in result.stderr
    assert "name the model with --model" in result.stderr
    assert not became


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["demo", "--model", "huge"],
            "--model huge is no model of the demo: give one of smollm2, tiny.",
        ),
        (["nowhere"], "adapter directory 'nowhere' does not exist"),
        ([tiny_model()], "config.json of adapter"),
    ],
)
def test_what_is_neither_is_refused(became: Run, arguments: list[str], said: str) -> None:
    result = serve(*arguments)
    assert result.exit_code == 2
    assert said in result.stderr
    assert result.stderr.count("\n") == 1
    assert not became
