"""``train adapter`` as a user runs it: figures, provenance, interruption, refusals."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer
from typer.testing import CliRunner

from tests.training.models import make_llama
from vllm_kangaroo.demo import demo_model_path
from vllm_kangaroo.ladder.adapter import load_adapter, norm_fingerprint
from vllm_kangaroo.training.cli import train_app
from vllm_kangaroo.training.state import ResumeError

ERRORS = ("DataError", "TargetError", "ResumeError", "ValidationError")
SCRIPT = "from vllm_kangaroo.training.cli import train_app; train_app()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the demo tokenizer, and two data files."""
    folder = tmp_path_factory.mktemp("train")
    make_llama(folder / "model", vocab_size=4096, tied=True)
    AutoTokenizer.from_pretrained(demo_model_path()).save_pretrained(folder / "model")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        rows = [
            {"role": role, "content": " ".join(generator.choice(words, 12))}
            for _ in range(300)
            for role in ("user", "assistant")
        ]
        lines = [json.dumps({"messages": rows[i : i + 2]}) for i in range(0, 600, 2)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    (folder / "c.txt").write_text(" ".join(generator.choice(words, 2000)))
    return folder


def arguments(folder: Path, out: str, steps: int = 30, *more: str) -> list[str]:
    text = (
        f"--model {folder / 'model'} --data {folder / 'a.jsonl'} {folder / 'b.jsonl'} "
        f"--exit-layer 3 --out {folder / out} --steps {steps} --window 32 --batch-size 4 "
        "--dtype float32 --warmup-steps 5 --learning-rate 0.01"
    )
    return ["adapter", *text.split(), *more]


def environment() -> dict[str, str]:
    root = str(Path(__file__).parents[2])
    return {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_adapter(folder).state_dict()


def test_figures_and_provenance(folder: Path) -> None:
    more = ("--held-out", str(folder / "c.txt"), "--eval-every", "10")
    result = CliRunner().invoke(train_app, arguments(folder, "one", 30, *more))
    assert result.exit_code == 0, result.output
    config = load_adapter(folder / "one").config
    target = json.loads((folder / "model" / "config.json").read_text())
    assert config.exit_layer == 3
    assert config.hidden_size == target["hidden_size"] and config.head_dim == 8
    assert config.target.num_hidden_layers == 4
    assert config.target.architecture == "LlamaForCausalLM"
    model = make_llama(folder / "again", vocab_size=4096, tied=True)
    assert config.target.norm_fingerprint == norm_fingerprint(model.model.norm.weight)
    training = config.training
    assert [Path(row["file"]).name for row in training["data"]] == ["a.jsonl", "b.jsonl"]
    digest = hashlib.sha256((folder / "b.jsonl").read_bytes()).hexdigest()
    assert training["data"][1]["sha256"] == digest
    assert training["steps"] == 30 and training["tokens"] == 30 * 4 * 32
    assert training["options"]["seed"] == 0
    assert training["versions"]["torch"] == torch.__version__
    figures = training["figures"]
    for name in ("data", "c"):
        adapter, bare = figures["adapter"][name], figures["bare_exit_head"][name]
        assert adapter["loss"] < bare["loss"]
        assert adapter["expected_acceptance"] > bare["expected_acceptance"] + 0.01
        assert 0 < adapter["top1_agreement"] < 1
    shown = f"acceptance {figures['adapter']['c']['expected_acceptance']:.3f}"
    assert f"adapter, held-out c: loss {figures['adapter']['c']['loss']:.4f}" in result.output
    assert shown in result.output and "step 10, held-out data" in result.output
    assert sorted(p.name for p in (folder / "one").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the order of the subprocess."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_killed_run_goes_on_to_the_same_weights(folder: Path, signal_number: int) -> None:
    name = f"killed{int(signal_number)}"
    whole, part = (arguments(folder, n, 120, "--save-every", "7") for n in ("whole", name))
    if not (folder / "whole").exists():
        assert CliRunner().invoke(train_app, whole).exit_code == 0
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *part], env=environment(), stdout=subprocess.PIPE, text=True
    )
    while not (folder / name / "training_state.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal_number)
    output, _ = process.communicate(timeout=60)
    if signal_number == signal.SIGINT:
        assert process.returncode == 130 and "the same command goes on" in output
    assert not (folder / name / "config.json").exists()
    again = CliRunner().invoke(train_app, part)
    assert again.exit_code == 0 and "going on after step" in again.stdout
    assert not (folder / name / "training_state.pt").exists()
    expected, found = weights(folder / "whole"), weights(folder / name)
    assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())


def test_refusals(folder: Path) -> None:
    def run(*args: str) -> str:
        result = CliRunner().invoke(train_app, list(args))
        assert isinstance(result.exception, ValueError), result.output
        assert type(result.exception).__name__ in ERRORS
        return str(result.exception)

    assert "'nothing.txt' is no file" in run(
        *arguments(folder, "x", 5, "--held-out", "nothing.txt")
    )
    assert "--exit-layer 4 is outside" in run(*arguments(folder, "x", 5, "--exit-layer", "4"))
    assert "window\n" in run(*arguments(folder, "x", 5, "--window", "4"))
    assert "dtype\n" in run(*arguments(folder, "x", 5, "--dtype", "int8"))
    (folder / "done").mkdir()
    (folder / "done" / "config.json").write_text("{}")
    assert "already holds an adapter" in run(*arguments(folder, "done"))
    (folder / "torn").mkdir()
    (folder / "torn" / "training_state.pt").write_bytes(b"torn")
    assert "cannot be read" in run(*arguments(folder, "torn"))


def test_state_of_another_run_is_refused(folder: Path) -> None:
    (folder / "other").mkdir()
    args = arguments(folder, "other", 30)
    code = (
        "from vllm_kangaroo.training import adapter_trainer as t\n"
        "run = t.AdapterTrainer.run\n"
        "def stop(self, after):\n"
        "    self.steps = 8\n"
        "    run(self, after)\n"
        "    raise KeyboardInterrupt\n"
        "t.AdapterTrainer.run = stop\n" + SCRIPT
    )
    first = subprocess.run([sys.executable, "-c", code, *args], env=environment(), check=False)
    assert first.returncode == 130
    result = CliRunner().invoke(train_app, [*args, "--seed", "5"])
    assert isinstance(result.exception, ResumeError)
    assert "of a run with seed=0, this one has 5" in str(result.exception)
