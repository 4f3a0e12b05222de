"""The commands as a user types them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tests.training.models import make_adapter_for, make_llama
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.cli.train import enlarge
from vllm_kangaroo.training.checkpoints.enlarge import EnlargeError

app = typer.Typer()
app.command("enlarge")(enlarge)

SIZES = ["--hidden", "96", "--ffn", "80", "--heads", "12", "--kv-heads", "4"]


def test_enlarge_with_adapter(tmp_path: Path) -> None:
    make_adapter_for(make_llama(tmp_path / "small"), 1, tmp_path / "adapter")
    paths = [str(tmp_path / "small"), str(tmp_path / "large")]
    result = CliRunner().invoke(app, [*paths, *SIZES, "--adapter", str(tmp_path / "adapter")])
    assert result.exit_code == 0, result.output
    assert AdapterConfig.load(tmp_path / "large" / "kangaroo_adapter").hidden_size == 96


def test_enlarge_refuses(tmp_path: Path) -> None:
    make_llama(tmp_path / "small")
    paths = [str(tmp_path / "small"), str(tmp_path / "large")]
    for more, message in (
        (["--kv-heads", "6"], "--kv-heads 6 changes"),
        (["--adapter-dst", "x"], "--adapter-dst x needs --adapter"),
    ):
        result = CliRunner().invoke(app, [*paths, *SIZES, *more])
        assert isinstance(result.exception, EnlargeError) and message in str(result.exception)


@pytest.mark.slow
def test_a_user_sees_one_sentence() -> None:
    command = [sys.executable, "-m", "vllm_kangaroo.cli", "enlarge", "none", "x", *SIZES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "'none' has no readable config.json" in done.stderr
    assert done.stderr.strip().count("\n") == 0
