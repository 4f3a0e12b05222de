"""Copies of the installed vLLM's sources, to apply patches to."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from packaging.version import Version

from vllm_kangaroo.integration.register.versions import installed_vllm

PATCHES = Path(__file__).resolve().parents[2] / "patches"


def installed_release() -> str:
    """Major and minor version, as the folders of patches are named."""
    found = installed_vllm()
    assert found is not None
    version = Version(found[1])
    return f"{version.major}.{version.minor}"


def sources() -> Path:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def files_of(patch: Path) -> list[str]:
    """What a patch changes."""
    return re.findall(r"^\+\+\+ b/(\S+)$", patch.read_text(), re.M)


def touched(patch: Path, place: Path) -> None:
    """Copies of the files that a patch changes, below ``place``."""
    for name in files_of(patch):
        copied(name, place)


def copied(name: str, place: Path) -> None:
    """A copy of one of vLLM's files below ``place``."""
    target = place / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(sources().parent / name, target)


def apply(patch: Path, place: Path, *options: str) -> subprocess.CompletedProcess[str]:
    # No repository above the copy may be taken for the one that is meant.
    command = ["git", "apply", *options, str(patch)]
    env = {"GIT_CEILING_DIRECTORIES": str(place.parent), "PATH": "/usr/local/bin:/usr/bin:/bin"}
    return subprocess.run(command, cwd=place, env=env, capture_output=True, text=True, check=False)


def patched(patches: Sequence[Path], place: Path) -> None:
    """A whole vLLM below ``place`` with the patches in it: links to the installed one, but for what is changed."""
    shutil.copytree(sources(), place / "vllm", copy_function=_link, ignore=_compiled)
    for name in {name for patch in patches for name in files_of(patch)}:
        (place / name).unlink()
        copied(name, place)
    for patch in patches:
        done = apply(patch, place)
        assert done.returncode == 0, done.stderr


def _link(source: str, target: str) -> str:
    Path(target).symlink_to(source)
    return target


def _compiled(folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__"}
