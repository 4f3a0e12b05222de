"""What a package loads when all its modules are imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import vllm_kangaroo

ROOT = Path(vllm_kangaroo.__file__).parents[1]
SCRIPT = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
names = [each.name for each in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    importlib.import_module(name)
print(json.dumps([names, sorted(sys.modules)]))
"""


def loaded_by(package: str) -> tuple[set[str], set[str]]:
    """Modules of ``package``, and all that an interpreter has loaded once it has imported them."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, package],
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    names, loaded = json.loads(done.stdout)
    return set(names), set(loaded)
