"""Make the environment in ``.venv``, or repair it, or do nothing if it is up to date.

Only the standard library is used, and only syntax that an old Python 3 can parse, so that the wrong
Python is told what is wanted instead of failing on this file.

``.venv/.setup-done`` holds a hash of what was installed and is the last thing to appear. While a
set-up runs it is called ``.venv/.setup-running``; one found at the start was left by a set-up that
did not finish, and the environment is built anew.
"""

import fcntl
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

PYTHON = "3.11"
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
DONE = VENV / ".setup-done"
RUNNING = VENV / ".setup-running"
LOCKS = [ROOT / "requirements" / "cpu.lock", ROOT / "requirements" / "dev.lock"]
PROJECT = ROOT / "pyproject.toml"
UNWANTED = ["torchvision", "torchaudio", "torchcodec", "triton"]
PROBE = """
import importlib.util, json, sys, sysconfig
print(json.dumps({
    "executable": getattr(sys, "_base_executable", sys.executable),
    "version": "%d.%d.%d" % sys.version_info[:3],
    "include": sysconfig.get_paths()["include"],
    "ensurepip": importlib.util.find_spec("ensurepip") is not None,
}))
"""
OFFLINE = re.compile(
    "NewConnectionError|ConnectTimeout|Read timed out|name resolution|Name or service not known"
    "|Network is unreachable|Connection refused|Connection reset|ProxyError|Max retries exceeded",
    re.IGNORECASE,
)


class Refusal(Exception):
    """Why the set-up cannot go on, in one sentence with the remedy."""


def fingerprint() -> "dict[str, str]":
    """What a finished environment was made from; it is tied to its place by its scripts."""

    def of(*paths: Path) -> str:
        parts = [path.read_bytes() for path in paths]
        return hashlib.sha256(b"\0".join([str(VENV).encode(), *parts])).hexdigest()

    return {"packages": of(*LOCKS), "project": of(PROJECT)}


def finished() -> "dict[str, str]":
    """The fingerprint of the environment that is there, empty if there is none to use."""
    try:
        found = json.loads(DONE.read_text())
    except (OSError, ValueError):
        return {}
    return found if (VENV / "bin" / "python").exists() else {}


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


def explain(output: str) -> str:
    """One sentence for a failed pip run from what pip printed; empty if it says something new."""
    if OFFLINE.search(output):
        return (
            "pip could not reach its package index: connect to a network, or name an index or a "
            "directory of wheels within reach with PIP_INDEX_URL or PIP_FIND_LINKS."
        )
    missing = re.search(r"No matching distribution found for (\S+)", output)
    if missing and missing.group(1).startswith("torch=="):
        return (
            f"pip found no {missing.group(1)}: point it at an index that carries PyTorch's CPU "
            "wheels with PIP_EXTRA_INDEX_URL, or at a directory that holds the wheel with "
            "PIP_FIND_LINKS."
        )
    if missing:
        return (
            f"pip found no {missing.group(1)}: point it at an index that carries this version "
            "with PIP_INDEX_URL or PIP_EXTRA_INDEX_URL."
        )
    if "No space left on device" in output:
        return f"The disk is full: free about 4 GB for {VENV} and pip's temporary files."
    return ""


def pip(*arguments: str) -> None:
    """Run the environment's pip quietly; its output goes to a log, and is shown if need be."""
    command = [str(VENV / "bin" / "python"), "-I", "-m", "pip", "--quiet", "--no-input"]
    command += ["--disable-pip-version-check", *arguments]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if run.returncode != 0:
        output = run.stdout.decode(errors="replace")
        (VENV / "pip.log").write_text(output)
        if not explain(output):
            sys.stderr.write(output)
        raise Refusal(explain(output) or "pip failed, for the reason above: correct it, try again.")


def reusable() -> bool:
    """Whether the ``.venv`` that is there can be brought up to date in place."""
    if RUNNING.exists():
        print("The last set-up was not finished: building .venv anew.", flush=True)
        return False
    try:
        lines = (VENV / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        lines = []
    facts = dict(line.split(" = ", 1) for line in lines if " = " in line)
    fits = (VENV / "bin" / "python").exists() and facts.get("version", "").startswith(PYTHON + ".")
    if fits and facts.get("command", "").endswith(str(VENV)):
        return True
    if VENV.exists() and not DONE.exists() and any(VENV.iterdir()):
        raise Refusal(
            f"{VENV} is no environment of this set-up (Python {PYTHON}, made in this place): "
            "remove it, or move it away, and run this again."
        )
    return False


def install(python: str) -> None:
    """Bring ``.venv`` to the locks, from nothing if what is there cannot be reused."""
    keep = reusable()
    VENV.mkdir(exist_ok=True)
    if DONE.exists():
        DONE.replace(RUNNING)
    RUNNING.touch()
    if not keep:
        print(f"[1/4] making .venv with {python}", flush=True)
        for child in VENV.iterdir():
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(str(child))
            elif child != RUNNING:
                child.unlink()
        subprocess.run([python, "-m", "venv", str(VENV)], check=True)
    torch = [line for line in LOCKS[0].read_text().splitlines() if line.startswith("torch==")]
    print(f"[2/4] installing PyTorch ({', '.join(torch)})", flush=True)
    pip("install", "--no-deps", *torch)
    print("[3/4] installing vLLM and what it needs, as pinned", flush=True)
    pip("install", "--no-deps", *[part for lock in LOCKS for part in ("-r", str(lock))])
    if keep:
        pip("uninstall", "--yes", *UNWANTED)


def set_up() -> None:
    """Do what is left to do, one process at a time."""
    check_machine()
    if finished() == fingerprint():
        return
    with LOCKS[0].open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        wanted, found = fingerprint(), finished()
        if found == wanted:
            return
        began = time.monotonic()
        check_compiler()
        python = find_python()
        if found.get("packages") != wanted["packages"]:
            install(python)
        print("[4/4] installing the project itself, editable", flush=True)
        pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
        # The rename comes last: a set-up cut short before it is seen as such by the next.
        RUNNING.write_text(json.dumps(wanted))
        RUNNING.replace(DONE)
        print(f"Set up in {time.monotonic() - began:.0f} s; .venv is reused from here.", flush=True)


def main() -> int:
    """Set up; returns the exit status."""
    try:
        set_up()
    except Refusal as refusal:
        print(f"set-up: {refusal}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"set-up: {shlex.quote(error.cmd[0])} failed, as said above.", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"set-up: {error}: correct this and run again.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up: interrupted; the next run completes it.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
