"""Where a checkpoint comes from: command, code, packages and data."""

from __future__ import annotations

import hashlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = ("vllm-kangaroo", "torch", "transformers", "tokenizers", "safetensors", "numpy")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_files(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Name and SHA-256 of each file, in order."""
    return [{"file": str(path), "sha256": file_sha256(path)} for path in paths]


def git_commit() -> str | None:
    """Commit of the checkout this package runs from, ``+`` if its files differ; None if none."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(here), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not git("ls-files", Path(__file__).name):
            return None  # installed inside somebody else's checkout
        commit = git("rev-parse", "HEAD")
        return commit + ("+" if git("status", "--porcelain", "-uno", "--", str(here)) else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the weights."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def provenance() -> dict[str, Any]:
    """Command line, commit and versions of the running process."""
    command = [Path(sys.argv[0]).name, *sys.argv[1:]]
    return {"command": shlex.join(command), "commit": git_commit(), "versions": package_versions()}
