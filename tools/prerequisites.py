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

PYTHON = "3.11"
PROBE = """
import importlib.util, json, sys, sysconfig
print(json.dumps({
    "executable": getattr(sys, "_base_executable", sys.executable),
    "version": "%d.%d.%d" % sys.version_info[:3],
    "include": sysconfig.get_paths()["include"],
    "ensurepip": importlib.util.find_spec("ensurepip") is not None,
}))
"""


class Refusal(Exception):
    """Why the set-up cannot go on, in one sentence with the remedy."""


def find_python() -> str:
    """A Python 3.11 that can make virtual environments and compile against its headers."""
    asked = os.environ.get("PYTHON")
    here = "{}.{}".format(*sys.version_info[:2])
    if not asked and here == PYTHON:
        found = sys.executable
    else:
        found = shutil.which(asked or "python" + PYTHON) or ""
    if not found:
        wanted = "PYTHON=" + asked if asked else "python" + PYTHON
        raise Refusal(
            f"{wanted} was not found (python3 is {here}): install Python {PYTHON}, or name one "
            f"with PYTHON=/path/to/python{PYTHON}."
        )
    try:
        said = subprocess.run([found, "-c", PROBE], stdout=subprocess.PIPE, check=True).stdout
        facts = json.loads(said.decode())
    except (OSError, ValueError, subprocess.CalledProcessError):
        raise Refusal(
            f"{found} does not answer as a Python {PYTHON} would: name a working one with "
            f"PYTHON=/path/to/python{PYTHON}."
        ) from None
    if not facts["version"].startswith(PYTHON + "."):
        raise Refusal(
            f"{found} is Python {facts['version']}, but the pinned packages are for {PYTHON}: "
            f"install Python {PYTHON}, or name one with PYTHON=/path/to/python{PYTHON}."
        )
    if not facts["ensurepip"]:
        raise Refusal(
            f"{found} cannot make virtual environments: install its venv package "
            f"(python{PYTHON}-venv on Debian and Ubuntu)."
        )
    if not Path(facts["include"], "Python.h").exists():
        raise Refusal(
            f"Python.h is missing from {facts['include']}, and vLLM's CPU build compiles against "
            f"it: install Python's headers (python{PYTHON}-dev on Debian and Ubuntu)."
        )
    # Never the one inside .venv, which may be emptied under it.
    return str(facts["executable"])


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
