"""Write requirements/cpu.lock and requirements/dev.lock from the environment that runs this.

The runtime lock is what vLLM's CPU build and this package need, followed through the metadata of
the installed distributions; the development lock is what the `dev` extra adds to it. See
requirements/README.md for when and how.
"""

import argparse
import sys
import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = {
    "torchaudio": "its builds do not load beside the CPU build of torch, and transformers fails",
    "torchcodec": "as torchaudio",
    "torchvision": "as torchaudio",
    "triton": "a compiler for GPUs, of no use to a CPU build",
    "fastapi-cloud-cli": "a deployment client that nothing here imports",
}


def installed() -> dict[str, Distribution]:
    """Every distribution of this environment, by canonical name."""
    return {canonicalize_name(found.metadata["Name"]): found for found in distributions()}


def needed(roots: list[str], have: dict[str, Distribution]) -> set[str]:
    """Names of everything ``roots`` need, themselves included, less :data:`LEFT_OUT`.

    Raises:
        SystemExit: if a needed distribution is not installed.
    """
    seen: dict[str, set[str]] = {}
    todo = [Requirement(root) for root in roots]
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        extras = {"", *requirement.extras}
        if name in LEFT_OUT or extras <= seen.get(name, set()):
            continue
        if name not in have:
            sys.exit(f"{requirement} is needed but not installed: install it, then run this again.")
        seen.setdefault(name, set()).update(extras)
        for line in have[name].requires or []:
            found = Requirement(line)
            marker = found.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(found)
    return set(seen)


def pins(names: set[str], have: dict[str, Distribution]) -> str:
    """One ``name==version`` line for each name, sorted."""
    return "".join(f"{name}=={have[name].version}\n" for name in sorted(names))


def main() -> None:
    """Write both locks into ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "requirements")
    out: Path = parser.parse_args().out

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    have = installed()
    build = ["setuptools"]
    runtime = needed([*project["dependencies"], *extras["cpu"], *build], have)
    tools = [line for name in ("test", "dev") for line in extras[name]]
    tools = [line for line in tools if not line.startswith(project["name"])]
    development = needed(tools, have) - runtime

    out.mkdir(parents=True, exist_ok=True)
    left_out = "".join(f"#   {name}: {why}\n" for name, why in LEFT_OUT.items())
    made = f"# Made by tools/make_lock.py under Python {sys.version_info[0]}.{sys.version_info[1]}"
    (out / "cpu.lock").write_text(
        f"{made}; install with `pip install --no-deps -r`.\n# Left out on purpose:\n{left_out}"
        + pins(runtime, have)
    )
    (out / "dev.lock").write_text(
        f"{made}; what tests and linters need beside cpu.lock.\n" + pins(development, have)
    )
    print(f"{out}: {len(runtime)} pins for running, {len(development)} more for development")


if __name__ == "__main__":
    main()
