"""Provenance says enough to repeat a run, and of a measurement nothing of where files lie."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from vllm_kangaroo import provenance
from vllm_kangaroo.provenance import cpu_model, portable_command


def test_paths_are_cut_to_their_last_part(tmp_path: Path) -> None:
    argv = [
        "/somewhere/bin/vllm-kangaroo",
        "bench",
        "--model",
        "organisation/model",
        "--prompts",
        str(tmp_path / "question.jsonl"),
        f"--json={tmp_path}/out.json",
        "--prompt",
        "either/or, then?",
    ]
    command = portable_command(argv)
    assert command == (
        "vllm-kangaroo bench --model organisation/model --prompts question.jsonl "
        "--json=out.json --prompt 'either/or, then?'"
    )


def test_relative_path_of_a_file_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "large").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    command = portable_command(["x", "bench", "--model", "models/large"])
    assert command == "vllm-kangaroo bench --model large"


def test_machine_and_versions_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", str(tmp_path / "libiomp5.so"))
    found = provenance.of_measurement("CPU", ["x", "bench"])
    assert found.preloaded == ["libiomp5.so"]
    assert found.cores >= 1
    assert {"vllm-kangaroo", "torch"} <= set(found.versions)
    assert str(tmp_path) not in found.model_dump_json()


def test_processor_is_read_where_the_system_tells_it(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name\t: Quick Processor 3000\nflags : a b\n")
    assert cpu_model(cpuinfo) == "Quick Processor 3000"
    assert cpu_model(tmp_path / "nothing")


def test_a_checkpoint_names_command_versions_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/vllm-kangaroo", "train", "--data", "a b"])
    origin = provenance.of_checkpoint()
    assert origin["command"] == "vllm-kangaroo train --data 'a b'"
    assert origin["commit"] == provenance.git_commit()
    versions = origin["versions"]
    assert versions["torch"] == version("torch")
    assert versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    (tmp_path / "a").write_bytes(b"abc")
    (row,) = provenance.data_files([tmp_path / "a"])
    assert row["file"] == str(tmp_path / "a")
    assert row["sha256"].startswith("ba7816bf8f01cfea")


def test_nothing_of_this_machine_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    told = {
        "out": str(tmp_path / "out"),
        "data": [{"file": "here/b"}, {"file": "../else/c.jsonl"}, {"file": "~/d"}],
        "model": "organisation/model",
        "steps": 3,
        "note": "either/or\n/x",
    }
    assert provenance.portable(told) == {
        "out": "out",
        "data": [{"file": "b"}, {"file": "c.jsonl"}, {"file": "d"}],
        "model": "organisation/model",
        "steps": 3,
        "note": "either/or\n/x",
    }
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "x"), "train", "--out", str(tmp_path / "y")])
    assert str(tmp_path) not in str(provenance.of_checkpoint())


def test_commit_of_a_checkout_only(tmp_path: Path) -> None:
    """A copy outside any checkout has no commit; one that git tracks has, and a mark if edited."""
    source = Path(provenance.__file__)
    package = tmp_path / "copy"
    package.mkdir()
    (package / "provenance.py").write_text(source.read_text())
    code = "import provenance; print(provenance.git_commit())"

    def commit() -> str:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, cwd=package, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), "-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert commit() == "None"
    git("init", "-q")
    assert commit() == "None"
    git("add", "provenance.py")
    git("commit", "-qm", "a")
    head = git("rev-parse", "HEAD")
    assert commit() == head
    with (package / "provenance.py").open("a") as file:
        file.write("\n")
    assert commit() == head + "+"
