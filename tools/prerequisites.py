"""What a machine must have before the environment can be made: system, Python, compiler.

As in bootstrap.py, only what an old Python 3 can parse.
"""

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

PYTHONS = ("3.11", "3.12", "3.13")
SUPPORTED = "3.11, 3.12 or 3.13"
NAME_ONE = "PYTHON=/path/to/python3.12"
PROBE = """
import importlib.util, json, sys, sysconfig
print(json.dumps({
    "executable": getattr(sys, "_base_executable", sys.executable),
    "version": "%d.%d" % sys.version_info[:2],
    "release": "%d.%d.%d" % sys.version_info[:3],
    "include": sysconfig.get_paths()["include"],
    "ensurepip": importlib.util.find_spec("ensurepip") is not None,
}))
"""


class Refusal(Exception):
    """Why the set-up cannot go on, in one sentence with the remedy."""


class Python(NamedTuple):
    """An interpreter to make environments with; never the one inside .venv, which may be emptied under it."""

    executable: str
    version: str  # major and minor


def find_python() -> Python:
    """A supported Python that can make virtual environments and compile against its headers.

    PYTHON names one; else it is the one that runs this, else the newest on PATH.
    """
    asked = os.environ.get("PYTHON")
    here = "{}.{}".format(*sys.version_info[:2])
    if asked:
        facts = ask(asked)
        if facts["version"] not in PYTHONS:
            raise Refusal(
                f"{asked} is Python {facts['release']}, but the pinned packages are for "
                f"{SUPPORTED}: install one of them, or name one with {NAME_ONE}."
            )
    elif here in PYTHONS:
        facts = ask(sys.executable)
    else:
        facts = on_path(here)
    version = facts["version"]
    if not facts["ensurepip"]:
        raise Refusal(
            f"{facts['executable']} cannot make virtual environments: install its venv package "
            f"(python{version}-venv on Debian and Ubuntu)."
        )
    if not Path(facts["include"], "Python.h").exists():
        raise Refusal(
            f"Python.h is missing from {facts['include']}, and vLLM's CPU build compiles against "
            f"it: install Python's headers (python{version}-dev on Debian and Ubuntu)."
        )
    return Python(facts["executable"], version)


def ask(python: str) -> "dict[str, Any]":
    """What the interpreter ``python`` (a path, or a name on PATH) says of itself."""
    found = shutil.which(python)
    if found is None:
        raise Refusal(
            f"{python} was not found: install Python {SUPPORTED}, or name one with {NAME_ONE}."
        )
    try:
        command = [found, "-c", PROBE]
        said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=True)
        return dict(json.loads(said.stdout.decode()))
    except (OSError, ValueError, subprocess.CalledProcessError):
        raise Refusal(
            f"{found} does not answer as a Python would: name a working one with {NAME_ONE}."
        ) from None


def on_path(here: str) -> "dict[str, Any]":
    """The newest supported Python on PATH; version managers leave names there that do not answer."""
    for version in reversed(PYTHONS):
        try:
            facts = ask("python" + version)
        except Refusal:
            continue
        if facts["version"] == version:
            return facts
    raise Refusal(
        f"python3 is Python {here}, but the pinned packages are for {SUPPORTED}: install one of "
        f"them, or name one with {NAME_ONE}."
    )


def check_machine() -> None:
    """Refuse a machine that the pinned packages are not made for."""
    system, machine = platform.system(), platform.machine()
    if system != "Linux" or machine not in ("x86_64", "AMD64"):
        raise Refusal(
            f"This is {system} on {machine}, but the pinned packages are for Linux on x86_64: "
            "install vLLM by its own instructions and then this project (docs/installation.md)."
        )


def check_compiler() -> None:
    """Refuse a machine without the compiler that vLLM needs when an engine starts."""
    compiler = (shlex.split(os.environ.get("CXX", "")) or ["g++"])[0]
    if shutil.which(compiler) is None:
        raise Refusal(
            f"The C++ compiler {compiler!r} was not found, and vLLM's CPU build compiles its "
            "graphs with it at start-up: install g++ (build-essential on Debian and Ubuntu), or "
            "name another compiler with CXX."
        )
