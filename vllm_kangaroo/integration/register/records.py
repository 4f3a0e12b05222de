"""What every seam looks like in a release of vLLM: its signature, and a hash of the source that is leant on.

The records of the releases that are served lie in the repository (``make check-seams`` writes them), and a test compares the
installed vLLM with the record of its release: a seam that has moved, or whose source is another, is told by name.

    python -m vllm_kangaroo.integration.register.records

prints the record of the installed vLLM, as a process of its own: vLLM and others exchange functions in running ones.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

from vllm_kangaroo.integration.register.seam import Seam
from vllm_kangaroo.integration.register.seams import SEAMS

Record = Mapping[str, Mapping[str, str]]
"""By the target of a seam: ``signature`` and ``source`` where it has them, ``missing`` where it is not there."""


def record(seams: tuple[Seam, ...] = SEAMS) -> dict[str, dict[str, str]]:
    """The installed vLLM's."""
    names: dict[str, set[str]] = {}
    for seam in seams:
        names.setdefault(seam.target, set()).update(seam.parameters)
    return {target: _entry(target, sorted(names[target])) for target in sorted(names)}


def differences(expected: Record, found: Record) -> Iterator[str]:
    """A line for each seam that is not as it was recorded; those without a record have nothing to be compared with."""
    for target in sorted({*expected} & {*found}):
        old, new = expected[target], found[target]
        for key in ("missing", "signature", "source"):
            if old.get(key) != new.get(key):
                yield f"{target}: {key} was {old.get(key)}, is {new.get(key)}"


def _entry(target: str, names: list[str]) -> dict[str, str]:
    module, _, path = target.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            look_up = getattr if isinstance(found, ModuleType) else inspect.getattr_static
            found = look_up(found, name)
    except (ImportError, AttributeError) as error:
        return {"missing": str(error)}
    if isinstance(found, type):
        return _of_class(found, names)
    function = _function(found)
    return {} if function is None else {"signature": _signature(function), **_hash([function])}


def _of_class(cls: type, names: list[str]) -> dict[str, str]:
    """A class is leant on by its names: of those that are functions, the source counts."""
    members = (inspect.getattr_static(cls, name, None) for name in names)
    functions = [function for each in members if (function := _function(each)) is not None]
    return _hash(functions) if functions else {}


def _function(member: Any) -> Any:
    inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    if not callable(inner) or isinstance(inner, type):
        return None
    inner = inspect.unwrap(inner)
    return inner if inspect.isfunction(inner) else None


def _signature(function: Any) -> str:
    return ", ".join(map(str, inspect.signature(function).parameters))


def _hash(functions: list[Any]) -> dict[str, str]:
    try:
        sources = [inspect.getsource(each) for each in functions]
    except (OSError, TypeError):  # made by code
        return {}
    return {"source": hashlib.sha256("\0".join(sources).encode()).hexdigest()[:16]}


if __name__ == "__main__":
    json.dump(record(), sys.stdout, indent=1)
