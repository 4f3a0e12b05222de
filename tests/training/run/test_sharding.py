"""A target spread over two processes, as ``train adapter --shard`` has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.models import make_gemma, make_llama
from tests.training.run.sharded_worker import RESULT, TARGETS, train

pytestmark = pytest.mark.slow

MODELS = {"llama": make_llama, "gemma": make_gemma}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, and beside each what two processes made of it together."""
    folder = tmp_path_factory.mktemp("sharding")
    for name, make in MODELS.items():
        make(folder / name)
    root = str(Path(__file__).parents[3])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    worker = ["-m", "tests.training.run.sharded_worker", *(str(folder / name) for name in MODELS)]
    done = subprocess.run(
        [sys.executable, *launch, *worker],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,  # processes that wait for one another would do so for ever
    )
    assert done.returncode == 0, done.stderr
    return folder


def shared(folder: Path, targets: str) -> list[dict[str, Any]]:
    """What each of the two came to."""
    names = [RESULT.format(targets, rank) for rank in (0, 1)]
    return [torch.load(folder / name, weights_only=True) for name in names]


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_two_processes_with_half_a_model_each_train_what_one_does(
    folder: Path, name: str, targets: str
) -> None:
    first, second = shared(folder / name, targets)
    alone = train(folder / name, False, targets)
    for part in ("figures", "bare"):
        assert first[part] == second[part]
        for exit_layer, figures in alone[part].items():
            assert first[part][exit_layer] == pytest.approx(figures, rel=1e-3)
    assert first["config"] == second["config"] == alone["config"]
    for own, other, whole in zip(
        first["weights"], second["weights"], alone["weights"], strict=True
    ):
        for key, tensor in whole.items():
            assert torch.equal(own[key], other[key])
            assert torch.allclose(own[key], tensor, atol=1e-5), key


@pytest.mark.parametrize("name", MODELS)
def test_each_process_holds_half_of_every_layer(folder: Path, name: str) -> None:
    layers, rest = train(folder / name, False, "model")["bytes"]
    for own in shared(folder / name, "model"):
        assert own["bytes"] == (pytest.approx(layers / 2, rel=0.01), rest)


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("name", MODELS)
def test_a_run_that_goes_on_ends_with_the_same_weights(
    folder: Path, name: str, targets: str
) -> None:
    for own in shared(folder / name, targets):
        for whole, resumed in zip(own["weights"], own["resumed"], strict=True):
            assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items())
