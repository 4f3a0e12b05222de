"""``vllm-kangaroo doctor``, and the register on the objects of a running engine."""

from __future__ import annotations

import dataclasses

import pytest
from typer.testing import CliRunner

from vllm_kangaroo.cli.main import app
from vllm_kangaroo.integration.register import live, seams


@pytest.mark.e2e
def test_a_running_engine_has_what_the_register_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    with live.engine() as llm:
        objects = live.objects(llm)
    assert [found for found in seams.check_live(objects) if found.problem] == []
    looked_at = {seam.live for seam in seams.SEAMS if seam.live}
    assert looked_at <= {name for name, found in objects.items() if found is not None}
    # An attribute that no object has would be seen, whichever entry it stands in.
    for seam in seams.SEAMS:
        if seam.live:
            wrong = dataclasses.replace(seam, parameters=(*seam.parameters, "no_such_attribute"))
            (found,) = seams.check_live(objects, (wrong,))
            assert found.problem == "lacks no_such_attribute"


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
    assert "install a vLLM >=0.32,<0.33." in done.output


def test_the_register_can_be_read() -> None:
    done = CliRunner().invoke(app, ["doctor", "--register"])
    assert done.exit_code == 0
    for seam in seams.SEAMS:
        for text in (seam.target, seam.why, seam.until, seam.upstream):
            assert text in done.output
