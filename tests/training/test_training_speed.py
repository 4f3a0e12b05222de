"""What tools/training_speed.py times: its bounds do the work of a training step."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from tests.training.adapter.test_adapter_trainer import adapter, load, options
from tests.training.models import make_llama
from vllm_kangaroo.training.adapter.adapter_trainer import AdapterTrainer


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    path = Path(__file__).parents[2] / "tools" / "training_speed.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("targets", "whole"), [("model", True), ("text", False)])
def test_a_bound_finds_the_gradients_of_a_step(
    tmp_path: Path, tool: Any, targets: str, whole: bool
) -> None:
    make_llama(tmp_path)
    chosen = options(tmp_path, targets=targets, exit_layer=(2,))
    trainer = AdapterTrainer(load(chosen), tool.windows(8, 24, 97), 1, chosen)

    def gradients() -> list[torch.Tensor]:
        found = [p.grad.clone() for p in adapter(trainer).parameters() if p.grad is not None]
        adapter(trainer).zero_grad()
        return found

    tool.plain_step(trainer, whole)
    plain = gradients()
    rows = np.arange(chosen.batch_size)
    trainer._backward(rows, int(trainer.windows.counted[rows].sum()))
    ours = gradients()
    assert len(plain) == len(ours) == 6
    for one, other in zip(plain, ours, strict=True):
        assert one.abs().max() > 1e-5
        assert torch.allclose(one, other, atol=1e-5)


def test_every_contender_is_shown(tmp_path: Path, tool: Any) -> None:
    import typer

    make_llama(tmp_path)
    app = typer.Typer()
    app.command()(tool.main)
    given = f"--model {tmp_path} --exit-layer 1 --window 16 --rounds 1 --batch-size 2".split()
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert result.output.count("tokens/s") == 5 and result.output.count("of its bound") == 3
