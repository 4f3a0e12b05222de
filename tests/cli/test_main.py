"""The command line: quick to list, loud in one sentence."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError
from typer.testing import CliRunner

from vllm_kangaroo.adapters.config import AdapterConfig, AdapterError
from vllm_kangaroo.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]


def fails(folder: Path) -> None:
    """A command that reads an adapter."""
    AdapterConfig.load(folder)


def trips(text: str) -> None:
    """A command with a slip in it."""
    int(text)


def waits(folder: Path) -> None:
    """A command with something to take down."""
    try:
        (folder / "begun").touch()
        time.sleep(60)
    finally:
        (folder / "taken down").touch()


@pytest.fixture(autouse=True)
def _commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("fails", "trips"):
        entry = cli.Entry(f"tests.cli.test_main:{name}", name, runs_engine=False)
        monkeypatch.setitem(cli.COMMANDS, name, entry)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_terminated_takes_its_engines_down(tmp_path: Path, number: int):
    script = (
        "import signal, sys; from vllm_kangaroo.cli import main as cli\n"
        f"signal.signal({int(number)}, signal.SIG_DFL)\n"  # whoever runs the tests may have it ignored
        "cli.COMMANDS['waits'] = cli.Entry('tests.cli.test_main:waits', 'waits', runs_engine=False)\n"
        "cli.main()"
    )
    run = subprocess.Popen([sys.executable, "-c", script, "waits", str(tmp_path)], cwd=ROOT)
    while not (tmp_path / "begun").exists() and run.poll() is None:
        time.sleep(0.05)
    run.send_signal(number)
    assert run.wait(60) == 128 + number
    assert (tmp_path / "taken down").exists()


def test_help_loads_nothing_heavy():
    script = (
        "import sys; from vllm_kangaroo.cli.main import main; sys.argv[1:] = ['--help']\n"
        "try: main()\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'vllm', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in ("demo", "train", "enlarge", "convert", "profile", "bench", "doctor"):
        assert name in run.stdout


@pytest.mark.parametrize(
    "name", ["demo", "train", "enlarge", "convert", "profile", "bench", "doctor"]
)
def test_every_command_is_there(name: str):
    result = CliRunner().invoke(cli.app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert cli.load(name).name == name


def test_error_for_the_user_is_one_sentence(tmp_path: Path):
    result = CliRunner().invoke(cli.app, ["fails", str(tmp_path)])
    assert result.exit_code == 2
    assert result.stderr.startswith("vllm-kangaroo: ")
    assert result.stderr.count("\n") == 1
    assert str(tmp_path) in result.stderr


def test_debug_shows_the_traceback(tmp_path: Path):
    result = CliRunner().invoke(cli.app, ["--debug", "fails", str(tmp_path)])
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "AdapterError" in result.stderr


def test_slip_of_the_program_is_not_dressed_up():
    result = CliRunner().invoke(cli.app, ["trips", "x"])
    assert result.exit_code == 1
    assert type(result.exception) is ValueError


def test_complaint_of_a_model_names_key_and_value():
    class Options(BaseModel):
        depth: int

    with pytest.raises(ValidationError) as caught:
        Options.model_validate({"depth": "deep"})
    said = cli.explain(caught.value)
    assert said is not None
    assert "depth='deep'" in said
    assert cli.explain(AdapterError("one\n sentence.")) == "one sentence."
    assert cli.explain(ModuleNotFoundError(name="nothing")) is None
    assert "not installed" in str(cli.explain(ModuleNotFoundError(name="vllm")))


def test_a_flag_before_a_subcommand_is_not_lost_in_silence():
    result = CliRunner().invoke(cli.app, ["bench", "--rounds", "2", "memory"])
    assert result.exit_code == 2
    assert "--rounds 2 stands before memory" in result.stderr
