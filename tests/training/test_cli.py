"""The commands as a user types them."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.testing import CliRunner

from tests.training.models import make_adapter_for, make_llama
from vllm_kangaroo.ladder.adapter_config import AdapterConfig
from vllm_kangaroo.training.cli import enlarge

app = typer.Typer()
app.command("enlarge")(enlarge)

SIZES = ["--hidden", "96", "--ffn", "80", "--heads", "12", "--kv-heads", "4"]


def test_enlarge_with_adapter(tmp_path: Path) -> None:
    make_adapter_for(make_llama(tmp_path / "small"), 1, tmp_path / "adapter")
    paths = [str(tmp_path / "small"), str(tmp_path / "large")]
    result = CliRunner().invoke(app, [*paths, *SIZES, "--adapter", str(tmp_path / "adapter")])
    assert result.exit_code == 0, result.output
    assert AdapterConfig.load(tmp_path / "large" / "kangaroo_adapter").hidden_size == 96


def test_enlarge_refuses_in_one_sentence(tmp_path: Path) -> None:
    make_llama(tmp_path / "small")
    paths = [str(tmp_path / "small"), str(tmp_path / "large")]
    result = CliRunner().invoke(app, [*paths, *SIZES, "--kv-heads", "6"])
    assert result.exit_code == 2
    assert "--kv-heads 6 changes" in result.stderr and result.stderr.count("\n") == 1
    result = CliRunner().invoke(app, [*paths, *SIZES, "--adapter-dst", "x"])
    assert result.exit_code == 2 and "needs --adapter" in result.stderr
