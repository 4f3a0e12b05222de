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
"""By the target of a seam: ``signature`` and ``source`` of a function, ``source of NAME`` of each method of a class that is leant
on, ``missing`` where it is not there."""


def record(seams: tuple[Seam, ...] = SEAMS) -> dict[str, dict[str, str]]:
    """The installed vLLM's."""
    names: dict[str, set[str]] = {}
    for seam in seams:
        names.setdefault(seam.target, set()).update(seam.parameters)
    return {target: _entry(target, sorted(names[target])) for target in sorted(names)}


def differences(expected: Record, found: Record) -> Iterator[str]:
    """A line for each seam that is not as it was recorded; what has no record yet has nothing to be compared with."""
    for target in sorted({*expected} & {*found}):
        old, new = expected[target], found[target]
        for key in sorted({*old} & {*new} | {"missing"}):
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
    if function is None:
        return {}
    hashed = _hash(function)
    return {"signature": _signature(function)} | ({"source": hashed} if hashed else {})


def _of_class(cls: type, names: list[str]) -> dict[str, str]:
    """A class is leant on by its names: of those that are functions, the source counts."""
    found: dict[str, str] = {}
    for name in names:
        function = _function(inspect.getattr_static(cls, name, None))
        if function is not None and (hashed := _hash(function)):
            found[f"source of {name}"] = hashed
    return found


def _function(member: Any) -> Any:
    inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
    if not callable(inner) or isinstance(inner, type):
        return None
    inner = inspect.unwrap(inner)
    return inner if inspect.isfunction(inner) else None


def _signature(function: Any) -> str:
    return ", ".join(map(str, inspect.signature(function).parameters))


def _hash(function: Any) -> str:
    try:
        source = inspect.getsource(function)
    except (OSError, TypeError):  # made by code
        return ""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


if __name__ == "__main__":
    json.dump(record(), sys.stdout, indent=1)
