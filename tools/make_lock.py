"""Write requirements/*.lock with uv: one universal set of pins, with hashes, for every Python supported.

Pins that are there are kept; ``--upgrade`` and ``--upgrade-package NAME`` move them. Arguments that
this script does not know go to ``uv pip compile``: see requirements/README.md for when and how.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "requirements"
LOWEST = "3.11"


def compile_lock(
    name: str, source: str, extra: list[str], text: str = "", left_out: str = "left-out.txt"
) -> None:
    """Run ``uv pip compile`` on ``source`` ("-": ``text``) and write ``requirements/name``.

    Raises:
        SystemExit: with uv's status, if it fails; uv has said why.
    """
    command = ["uv", "pip", "compile", source, "--universal", "--python-version", LOWEST]
    command += ["--generate-hashes", "--no-build", "--annotation-style", "line", "--no-header"]
    command += ["--excludes", str(FOLDER / left_out), "--index-strategy", "unsafe-best-match"]
    command += ["--quiet", "--output-file", str(FOLDER / name), *extra]
    run = subprocess.run(command, cwd=ROOT, input=text, text=True, check=False)
    if run.returncode:
        sys.exit(run.returncode)


def pinned(name: str) -> dict[str, str]:
    """Version by distribution name, as in a lock of ``requirements/``."""
    return dict(re.findall(r"^([a-z0-9.-]+)==([^\s;]+)", (FOLDER / name).read_text(), re.M))


def finish(name: str, head: str) -> None:
    """Take the marker of the one machine that locks are for off each pin, and write ``head``."""
    path = FOLDER / name
    pins = path.read_text()
    # Only uv's spelling of `tool.uv.environments` stands alone on most pins; a narrower marker stays.
    markers = re.findall(r"^\S+==\S+ ; (.*?)(?: \\)?$", pins, re.M)
    if markers:
        pins = pins.replace(f" ; {max(markers, key=markers.count)} \\\n", " \\\n")
    path.write_text(f"# Made by tools/make_lock.py: {head}\n{pins}")


def main() -> None:
    """Write the locks of the CPU build, or that of the build for CUDA."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuda", action="store_true", help="write cuda.lock and no other")
    arguments, extra = parser.parse_known_args()
    if shutil.which("uv") is None:
        sys.exit("make_lock: uv was not found: install it with `pip install uv`.")
    if arguments.cuda:
        compile_lock(
            "cuda.lock", "pyproject.toml", ["--extra", "cuda", *extra], left_out="left-out-cuda.txt"
        )
        finish(
            "cuda.lock", "what running needs on CUDA; left-out-cuda.txt names what it does without."
        )
        print(f"{FOLDER / 'cuda.lock'}: {len(pinned('cuda.lock'))} pins")
        return
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tools = [line for name in ("ray", "test", "dev") for line in extras[name]]
    tools = [line for line in tools if not line.startswith(project["name"])]

    beside = str(FOLDER / "beside.in")
    compile_lock("cpu.lock", "pyproject.toml", ["--extra", "cpu", beside, *extra])
    runtime = pinned("cpu.lock")
    kept = [part for name in runtime for part in ("--no-emit-package", name)]
    more = ["--constraints", str(FOLDER / "cpu.lock"), *kept, *extra]
    compile_lock("dev.lock", "-", more, "\n".join(tools))
    compile_lock("demo.lock", "-", more, "\n".join(extras["demo"]))
    finish("cpu.lock", "what running needs; left-out.txt names what it does without.")
    finish("dev.lock", "what tests and linters need beside cpu.lock.")
    finish("demo.lock", "the model of the demo.")
    for name in ("cpu.lock", "dev.lock", "demo.lock"):
        print(f"{FOLDER / name}: {len(pinned(name))} pins")


if __name__ == "__main__":
    main()
