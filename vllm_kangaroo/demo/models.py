"""The models that demo and benchmarks know by name, and what each is shown with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_kangaroo import demo_model, tiny_model
from vllm_kangaroo.demo import smollm2
from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.options import parse_options

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class DemoModel:
    """A model with prompts that it answers and settings that it drafts well with."""

    name: str
    """What ``--model`` calls it."""
    path: Callable[[], str]
    """Its directory, made if need be."""
    prompts: Path
    drafting: Callable[[], Mapping[str, Mapping[str, Any]]]
    """A ``speculative_config`` by method, without ``method``."""
    rounds: int
    """Runs of each prompt that a demo has the patience for."""
    eager: bool = False
    """Whether a demo would wait longer for compiled engines than it gains by them."""


def _tiny_drafting() -> dict[str, Mapping[str, Any]]:
    return {name: each.tiny for name, each in METHODS.items() if each.tiny is not None}


TINY = DemoModel("tiny", tiny_model, _HERE / "prompts.json", _tiny_drafting, rounds=2)
SMOLLM2 = DemoModel(
    "smollm2", demo_model, _HERE / "smollm2_prompts.json", smollm2.drafting, rounds=1, eager=True
)
MODELS = {one.name: one for one in (SMOLLM2, TINY)}
WHICH = f"{', '.join(MODELS)}, a directory or a name on the hub"
"""What ``--model`` takes, in words."""

SHOWN = SMOLLM2
"""What the demo shows when no model is named."""
MEASURED = TINY
"""What benchmarks run when no model is named: compiled engines of it start within a minute."""


def known(model: str) -> DemoModel | None:
    """The model that ``--model`` names, that of benchmarks if it names none; None if it is another's."""
    return MODELS.get(model) if model else MEASURED


def served(model: str) -> str:
    """What vLLM is to load for ``--model``: the directory of a model known here, else what was given."""
    found = known(model)
    return model if found is None else found.path()


def label(path: str) -> str | None:
    """The name to report for a model that ``path`` is of, None if it is none of those here."""
    return {tiny_model(): TINY.name, str(smollm2.folder()): smollm2.NAME}.get(path)


def completed(path: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``speculative_config`` with the adapter shipped for SmolLM2, which does not lie beside the model.

    Args:
        path: of the model, as vLLM is to load it.
        config: of a method of ours.
    """
    wanted = parse_options(config).adapter_wanted()
    if wanted is not None and path == str(smollm2.folder()):
        return {**config, wanted: smollm2.adapter()}
    return dict(config)
