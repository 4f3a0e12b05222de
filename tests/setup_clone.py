"""A small project to set up: the real script, wheels of its own, no network."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# A build backend in the project's own tree. It waits if told to, to be killed in the middle.
BACKEND = """
import os, pathlib, sys, time
def build_editable(directory, config_settings=None, metadata_directory=None):
    here = pathlib.Path(__file__).parent
    if (here / "wait").exists():
        (here / "reached").touch()
        time.sleep(600)
    sys.path.insert(0, str(here))
    from setup_clone import make_wheel
    return make_wheel(pathlib.Path(directory), "small", "0").name
"""
PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""


def make_wheel(folder: Path, name: str, version: str, code: str = "") -> Path:
    """A wheel with one module."""
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {f"{name}.py": code, f"{info}/METADATA": metadata, f"{info}/WHEEL": tags}
    record = "".join(f"{file},,\n" for file in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(wheel, "w") as archive:
        for file, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(file, text)
    return wheel


class Clone:
    """A project with the set-up script, a lock of two packages and a directory of wheels."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.wheels = root / "wheelhouse"
        for folder in ("tools", "requirements", "wheelhouse"):
            (root / folder).mkdir(parents=True)
        for script in ("bootstrap.py", "prerequisites.py"):
            shutil.copy(ROOT / "tools" / script, root / "tools")
        (root / "pyproject.toml").write_text(PYPROJECT + "[project]\nname='small'\nversion='0'\n")
        (root / "backend.py").write_text(BACKEND)
        shutil.copy(__file__, root / "setup_clone.py")
        for lock in ("dev.lock", "demo.lock"):
            (root / "requirements" / lock).write_text("# none\n")
        self.lock(
            make_wheel(self.wheels, "tiny", "1.0"), make_wheel(self.wheels, "torch", "2.0+cpu")
        )

    def lock(self, *wheels: Path) -> None:
        """Pin ``wheels``, each with a hash of its own and that of a file for another machine."""
        text = ""
        for wheel in wheels:
            name, version = wheel.name.split("-")[:2]
            found = hashlib.sha256(wheel.read_bytes()).hexdigest()
            text += f"{name}=={version} \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{found}\n"
            text += "    # via small\n"
        (self.root / "requirements" / "cpu.lock").write_text(text)

    def environ(self, **changes: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not re.match("PIP_|PYTHON|CXX|VIRTUAL", k)}
        offline = {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
        return {**kept, **offline, "PIP_FIND_LINKS": str(self.wheels), **changes}

    def command(self) -> list[str]:
        return [sys.executable, str(self.root / "tools" / "bootstrap.py")]

    def set_up(self, *before: str, **changes: str) -> subprocess.CompletedProcess[str]:
        environ = {k: v for k, v in self.environ(**changes).items() if v}
        return subprocess.run(
            [*before, *self.command()], env=environ, capture_output=True, text=True, check=False
        )

    def refusal(self, *before: str, **changes: str) -> str:
        """Run a set-up that has to fail; returns its one sentence."""
        run = self.set_up(*before, **changes)
        assert run.returncode == 1, run.stdout + run.stderr
        assert "Traceback" not in run.stderr
        assert run.stderr.count("\n") == 1
        said = run.stderr.strip()
        assert said.startswith("set-up: ")
        assert said.endswith(".")
        assert not (self.root / ".venv" / ".setup-done").exists()
        return said

    def installed(self) -> set[str]:
        found = self.root.glob(".venv/lib/python3.*/site-packages/*.dist-info")
        return {path.name.partition("-")[0] for path in found}
