"""Flags of ``demo`` that exclude each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from vllm_kangaroo.cli import main as cli
from vllm_kangaroo.cli.demo import Method, speculative_configs
from vllm_kangaroo.demo.models import SMOLLM2, TINY


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--method", "all"], "--chat and --method all exclude each other"),
        (["--prompt", "Hello"], "--chat and --prompt exclude each other"),
        (["--rounds", "3"], "--chat and --rounds exclude each other"),
        (["--json", "x"], "--chat and --json exclude each other"),
        (["--svg", "x"], "--chat and --svg exclude each other"),
    ],
)
def test_what_is_for_the_comparison_alone_is_refused_in_a_chat(flags: list[str], said: str) -> None:
    result = CliRunner().invoke(cli.app, ["demo", "--chat", "--model", "tiny", *flags])
    assert result.exit_code == 2, result.output
    assert said in result.stderr


def test_own_flags_go_before_the_demos_settings() -> None:
    drafting = {"kangaroo": {"model": "theirs", "num_speculative_tokens": 5}}

    def configs(adapter: Path | None = None, exit_layer: int | None = None) -> dict[str, object]:
        return speculative_configs(
            Method.KANGAROO, None, drafting=drafting, adapter=adapter, exit_layer=exit_layer
        )["kangaroo"]

    base = {"method": "kangaroo", "num_speculative_tokens": 5}
    assert configs() == base | {"model": "theirs"}
    assert configs(adapter=Path("ours")) == base | {"model": "ours"}
    assert configs(exit_layer=3) == base | {"exit_layer": 3}


def test_a_model_is_shown_with_the_methods_that_it_has_settings_for() -> None:
    assert "hispec" not in SMOLLM2.drafting()
    found = speculative_configs(
        Method.ALL, None, drafting=SMOLLM2.drafting(), adapter=None, exit_layer=None
    )
    assert "kangaroo" in found and "hispec" not in found
    done = CliRunner().invoke(cli.app, ["demo", "--model", "smollm2", "--method", "hispec"])
    assert done.exit_code == 2
    assert "--method hispec has no adapter or exits for smollm2 here" in done.stderr
    assert "--model tiny" in done.stderr


def test_all_methods_have_their_own_settings() -> None:
    found = speculative_configs(
        Method.ALL, None, drafting=TINY.drafting(), adapter=None, exit_layer=2
    )
    assert list(found) == ["kangaroo", "hispec"]
    assert found["kangaroo"]["exit_layer"] == 2
    assert "exit_layer" not in found["hispec"]
