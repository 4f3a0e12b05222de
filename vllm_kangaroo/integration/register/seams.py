"""The register of seams: every place of vLLM's internals this package leans on, and whether the installed vLLM has it.

:func:`check` looks them up in vLLM's modules, so that a moved seam is reported by name (``vllm-kangaroo doctor``, and a
test) instead of failing somewhere deep.
"""

from __future__ import annotations

import importlib
import inspect
from types import ModuleType
from typing import Any

from vllm_kangaroo.integration.register import attributes
from vllm_kangaroo.integration.register.entries import (
    config_seams,
    inspection_seams,
    laps_sd_seams,
    passes_seams,
    ray_seams,
    runner_v1_seams,
    runner_v2_seams,
    sampling_seams,
)
from vllm_kangaroo.integration.register.seam import Finding, Seam

SEAMS: tuple[Seam, ...] = (
    *config_seams.SEAMS,
    *runner_v1_seams.SEAMS,
    *runner_v2_seams.SEAMS,
    *passes_seams.SEAMS,
    *sampling_seams.SEAMS,
    *laps_sd_seams.SEAMS,
    *inspection_seams.SEAMS,
    *ray_seams.SEAMS,
)


CPU_BACKEND = "vllm.v1.worker.cpu"
"""What modules of vLLM's CPU workers begin with. To import one takes CUDA's streams out of PyTorch."""


def check(seams: tuple[Seam, ...] = SEAMS) -> list[Finding]:
    """Look every seam of this platform up in the installed vLLM."""
    return [Finding(seam, problem(seam)) for seam in seams if _is_here(seam)]


def _is_here(seam: Seam) -> bool:
    """Whether a seam is one of the platform that vLLM runs on."""
    # Not before plugins, of which this is one, have been asked for theirs.
    from vllm.platforms import current_platform

    return not seam.target.startswith(CPU_BACKEND) or bool(current_platform.is_cpu())


def problem(seam: Seam) -> str:
    """What is wrong with a seam in the installed vLLM; empty if nothing is."""
    module_name, _, path = seam.target.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for name in path.split("."):
            # Modules make some of their names on demand.
            look_up = getattr if isinstance(found, ModuleType) else inspect.getattr_static
            found = look_up(found, name)
    except (ImportError, AttributeError) as error:
        return f"not found: {error}"
    known = _names_of(getattr(found, "__func__", found))
    return "" if known is None else _lacks([name for name in seam.parameters if name not in known])


def out_of_use(seam: Seam) -> bool:
    """Whether the installed vLLM has what makes the seam needless."""
    return bool(seam.instead) and not problem(Seam(seam.instead, "called", seam.why))


def _names_of(found: Any) -> frozenset[str] | None:
    """Arguments of a function, attributes of anything else; None if a function takes any argument."""
    if isinstance(found, type):
        return attributes.of_class(found)
    if not inspect.isroutine(found):
        return frozenset(dir(found))
    parameters = inspect.signature(found).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return None  # another plugin's wrapper, maybe: it hands on what it gets
    return frozenset(parameters)


def _lacks(missing: list[str]) -> str:
    return f"lacks {', '.join(missing)}" if missing else ""
