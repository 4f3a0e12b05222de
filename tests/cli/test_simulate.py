"""``simulate`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner


@pytest.mark.slow
def test_command_prints_writes_and_draws(tmp_path: Path):
    from vllm_kangaroo.cli.main import app

    file, plots = tmp_path / "figures.json", tmp_path / "plots"
    arguments = [
        "simulate",
        "--requests",
        "150",
        "--predictor",
        "empirical",
        "--policies",
        "fcfs,laps-sd",
    ]
    run = CliRunner().invoke(app, [*arguments, "--json", str(file), "--plots", str(plots)])
    assert run.exit_code == 0, run.output
    assert "laps-sd" in run.output
    # Two policies; with the plots, at six loads as well, and once and at eight bounds of waiting.
    lines = run.output.splitlines()
    assert lines[0] == f"simulating: 0 of {150 * 23} requests"
    assert any(
        line.startswith(f"simulating: {150 * 23} of {150 * 23} requests, took") for line in lines
    )
    found = json.loads(file.read_text())["policies"]
    assert found["laps-sd"]["mean_latency_s"] > 0
    assert {path.name for path in plots.iterdir()} == {"latency.png", "load.png", "max-wait.png"}
    wrong = CliRunner().invoke(app, ["simulate", "--policies", "fifo"])
    assert wrong.exit_code == 2
    assert "policies has no 'fifo'" in wrong.output
    wrong = CliRunner().invoke(app, ["simulate", "--predictor", "magic"])
    assert wrong.exit_code == 2
    assert "predictor" in wrong.output
