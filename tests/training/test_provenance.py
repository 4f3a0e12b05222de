"""What a checkpoint says about where it comes from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from vllm_kangaroo.training import provenance


def test_versions_and_files(tmp_path: Path) -> None:
    versions = provenance.package_versions()
    assert versions["torch"] == torch.__version__
    assert versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")
    (tmp_path / "a").write_bytes(b"abc")
    (row,) = provenance.data_files([tmp_path / "a"])
    assert row["file"] == str(tmp_path / "a")
    assert row["sha256"].startswith("ba7816bf8f01cfea")


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
