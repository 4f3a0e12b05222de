"""``vllm-kangaroo doctor``."""

from __future__ import annotations

import dataclasses

import pytest
from typer.testing import CliRunner

from vllm_kangaroo.cli.main import app
from vllm_kangaroo.integration.register import seams

pytestmark = pytest.mark.slow


def test_nothing_is_wrong_here() -> None:
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 0, done.output
    assert "nothing wrong" in done.output
    for seam in seams.SEAMS:
        assert seam.target in done.output
    assert "lacks" not in done.output


def test_a_moved_seam_ends_it_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = dataclasses.replace(seams.SEAMS[-1], target="vllm.config:VllmConfig.gone")
    monkeypatch.setattr(seams.check, "__defaults__", ((moved,),))
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "wrong: vllm.config:VllmConfig.gone has moved (not found" in done.output
    assert "install a vLLM >=0.32,<0.34." in done.output


def test_the_register_can_be_read() -> None:
    done = CliRunner().invoke(app, ["doctor", "--register"])
    assert done.exit_code == 0
    for seam in seams.SEAMS:
        for text in (seam.target, seam.why, seam.until, seam.upstream):
            assert text in done.output
