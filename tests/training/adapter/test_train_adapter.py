"""``train adapter`` as a user runs it: figures, provenance, interruption, refusals."""

from __future__ import annotations

import csv
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
from tests.training.stopping import slow_script, wait_for
from vllm_kangaroo import tiny_model
from vllm_kangaroo.adapters.checkpoint import load_adapter, norm_fingerprint
from vllm_kangaroo.cli.train import train_app
from vllm_kangaroo.training.run.state import ResumeError

pytestmark = pytest.mark.slow

FILES = ["config.json", "curve.csv", "curve.png", "model.safetensors"]
ERRORS = ("DataError", "TargetError", "ResumeError", "ShardingError", "ValidationError")
SCRIPT = slow_script("adapter.adapter_trainer.AdapterTrainer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the demo tokenizer, and two data files."""
    folder = tmp_path_factory.mktemp("train")
    make_llama(folder / "model", vocab_size=4096, tied=True)
    AutoTokenizer.from_pretrained(tiny_model()).save_pretrained(folder / "model")
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
    root = str(Path(__file__).parents[3])
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
    lines = result.output.splitlines()
    assert "training: 0 of 30 steps" in lines
    assert any(line.startswith("training: 30 of 30 steps, loss ") for line in lines)
    assert sorted(p.name for p in (folder / "one").iterdir()) == FILES


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in the order of the subprocess."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(args: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, *args]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, torch.Tensor]:
    """Weights of a run that nobody stopped."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert CliRunner().invoke(train_app, arguments(folder, "whole", 120)).exit_code == 0
    torch.set_num_threads(threads)
    return weights(folder / "whole")


@pytest.mark.usefixtures("one_thread")
def test_run_killed_again_and_again_ends_with_the_same_weights(
    folder: Path, whole: dict[str, torch.Tensor]
) -> None:
    out = folder / "killed"
    part = arguments(folder, "killed", 120, "--save-every", "1")
    # While the first state is written, while a later one is, and somewhere between.
    for number, delay in enumerate((0.0, 0.0, 0.013)):
        process = start(part)
        if number:
            # Its first save of its own: what the killed one left half written is replaced.
            (out / ".training_state.pt").unlink(missing_ok=True)
            wait_for(process, out / "training_state.pt")
        wait_for(process, out / ".training_state.pt")
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=60)
        assert not (out / "config.json").exists()
    assert (out / "training_state.pt").exists()
    again = CliRunner().invoke(train_app, part)
    assert again.exit_code == 0 and "going on after step" in again.stdout
    assert sorted(p.name for p in out.iterdir()) == FILES
    found = weights(out)
    assert all(torch.equal(tensor, found[key]) for key, tensor in whole.items())


@pytest.mark.usefixtures("one_thread")
def test_interrupted_run_says_how_to_go_on(folder: Path, whole: dict[str, torch.Tensor]) -> None:
    part = arguments(folder, "interrupted", 120, "--save-every", "7")
    process = start(part)
    wait_for(process, folder / "interrupted" / "training_state.pt")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in output
    again = CliRunner().invoke(train_app, part)
    assert again.exit_code == 0 and "going on after step" in again.stdout
    found = weights(folder / "interrupted")
    assert all(torch.equal(tensor, found[key]) for key, tensor in whole.items())


def test_a_run_killed_while_it_writes_the_adapter_is_finished(
    folder: Path, whole: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = arguments(folder, "late", 10)

    def dies(*_: object) -> None:
        raise SystemExit(9)

    with monkeypatch.context() as patch:
        patch.setattr("vllm_kangaroo.training.run.loop.remove_state", dies)
        assert CliRunner().invoke(train_app, args).exit_code == 9
    (folder / "late" / ".model.safetensors.1").write_bytes(b"torn")
    first = weights(folder / "late")
    assert CliRunner().invoke(train_app, args).exit_code == 0
    assert sorted(p.name for p in (folder / "late").iterdir()) == FILES
    again = weights(folder / "late")
    assert all(torch.equal(tensor, again[key]) for key, tensor in first.items())


def test_the_text_teaches(folder: Path) -> None:
    more = ("--targets", "text", "--exit-layer", "1", "--cache-gib", "0.01")
    result = CliRunner().invoke(train_app, arguments(folder, "text", 30, *more))
    assert result.exit_code == 0, result.output
    assert "exit states: 384 bytes a token" in result.output  # two exits of 48 float32, no end
    for layer in (3, 1):
        training = load_adapter(folder / "text" / f"exit-{layer}").config.training
        assert training["options"]["targets"] == "text"
        assert 0 < training["figures"]["adapter"]["data"]["top1_agreement"] < 1


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("more", [(), ("--shard",)])
def test_two_processes_train_what_one_does(
    folder: Path, whole: dict[str, torch.Tensor], more: tuple[str, ...]
) -> None:
    out = "-".join(("two", *more))
    args = arguments(folder, out, 120, "--save-every", "50", *more)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launch, "-m", "vllm_kangaroo.cli", "train", *args]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("adapter, held-out data") == 1  # the first one alone speaks
    config = load_adapter(folder / out).config
    assert config.training["processes"] == 2
    assert config.training["options"]["shard"] == bool(more)
    alone = load_adapter(folder / "whole").config.training["figures"]["adapter"]["data"]
    ours = config.training["figures"]["adapter"]["data"]
    assert ours == pytest.approx(alone, abs=2e-3)
    found = weights(folder / out)
    for name, tensor in whole.items():
        assert torch.allclose(tensor, found[name], atol=5e-3), name


def test_curve_and_best_step(folder: Path) -> None:
    # A rate that spoils what the first steps have learnt.
    more = ("--learning-rate", "0.5", "--eval-every", "2", "--exit-layer", "1")
    result = CliRunner().invoke(train_app, arguments(folder, "curve", 20, *more))
    assert result.exit_code == 0, result.output
    with (folder / "curve" / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows[::2]] == list(range(2, 21, 2))
    assert (folder / "curve" / "curve.png").read_bytes()[1:4] == b"PNG"
    for layer in (3, 1):
        config = load_adapter(folder / "curve" / f"exit-{layer}").config
        own = [row for row in rows if int(row["exit_layer"]) == layer]
        best = max(own, key=lambda row: float(row["expected_acceptance"]))
        assert config.exit_layer == layer
        assert config.training["best_step"] == int(best["step"]) < 20
        acceptance = config.training["figures"]["adapter"]["data"]["expected_acceptance"]
        assert acceptance == pytest.approx(float(best["expected_acceptance"]), abs=1e-4)
        assert float(own[-1]["expected_acceptance"]) < acceptance


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
    assert "names an exit twice" in run(*arguments(folder, "x", 5, "--exit-layer", "3"))
    assert "--accumulate 5 is more" in run(*arguments(folder, "x", 5, "--accumulate", "5"))
    assert "--shard has 1 process" in run(*arguments(folder, "x", 5, "--shard"))
    cached = ("--shard", "--cache-gib", "0.5")
    assert "--cache-gib 0.5 would" in run(*arguments(folder, "x", 5, *cached))
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
        "from vllm_kangaroo.training.adapter import adapter_trainer as t\n"
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
    result = CliRunner().invoke(train_app, [*args, "--targets", "text"])
    assert isinstance(result.exception, ResumeError)
    assert "of a run with targets='model', this one has 'text'" in str(result.exception)
