"""Where the model is that an adapter names as its target. This module imports no torch."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vllm_kangaroo.adapters.config import CONFIG_FILE, AdapterConfig, AdapterError, TargetInfo
from vllm_kangaroo.text_inputs import shown

_ON_A_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
REMEDY = "name the model with --model"


def target_of(directory: Path, config: AdapterConfig) -> str:
    """The model to serve with an adapter: the one it lies in, one that comes with this package, or one on a hub.

    A checkpoint may come from anybody, so that no path is taken from it: trained on a model in a directory, an adapter
    keeps the directory's name alone.

    Args:
        directory: of the adapter.
        config: what is in it.

    Returns:
        A directory, or a name on a hub.

    Raises:
        AdapterError: if it names none that can be found by it.
    """
    around = directory.resolve().parent
    if _is_the(config.target, around / CONFIG_FILE):
        return str(around)
    name = config.target.name_or_path
    if (shipped := _shipped(directory, name)) is not None:
        return shipped
    if _ON_A_HUB.fullmatch(name) and ".." not in name:
        return name
    raise AdapterError(
        f"adapter '{directory}' was trained for {shown(name)}, which is no name on a hub, and does not lie in its "
        f"directory; {REMEDY}"
    )


def _is_the(target: TargetInfo, path: Path) -> bool:
    """Whether a model's ``config.json`` is of the target's kind; its weights are looked at when they are served."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        architectures, layers = found["architectures"], found["num_hidden_layers"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return target.architecture in architectures and layers == target.num_hidden_layers


def _shipped(directory: Path, name: str) -> str | None:
    """The model that the demo's own adapters are for, whose weights are converted when they are asked for."""
    from vllm_kangaroo.demo import smollm2

    ours = directory.resolve().is_relative_to(smollm2.ADAPTERS.resolve())
    return str(smollm2.model()) if ours or name == smollm2.NAME else None
