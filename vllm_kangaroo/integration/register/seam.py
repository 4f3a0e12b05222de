"""What the register says of one place of vLLM's that this package leans on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Process = Literal["API server", "engine core", "worker"]
How = Literal[
    "wrapped", "overridden", "subclassed", "called", "read", "replaced", "replaced while tracing"
]


@dataclass(frozen=True, slots=True)
class Seam:
    """One point of contact with vLLM.

    ``target`` is ``module:attribute.path``. ``parameters`` are argument names that it must accept, or, of a class, the
    attributes that its instances must have. ``process`` names the processes in which it matters; the offline ``LLM``
    is an API server here. ``upstream`` is vLLM's own issue, pull request or page about it, where one is known.
    ``until`` says when the entry can go. ``live`` names the object of a running engine that has ``parameters``, and
    ``set_later``, which no source of the class shows: ``doctor --live`` looks (:mod:`.live`). ``instead`` is what a patched
    vLLM has in its place (``patches/``), with which it is out of use.
    """

    target: str
    how: How
    why: str
    parameters: tuple[str, ...] = ()
    process: tuple[Process, ...] = ()
    upstream: str = ""
    until: str = ""
    live: str = ""
    set_later: tuple[str, ...] = ()
    instead: str = ""


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a seam in the installed vLLM; ``problem`` is empty if it is as expected."""

    seam: Seam
    problem: str


DRAFTER_RFC = "vllm-project/vllm#36219, a request for one interface of drafters"
CUSTOM_CLASS = "vllm-project/vllm#39487, which brought custom_class"
PLUGGABLE_RFC = "vllm-project/vllm#51212, a request to make the parts of the V2 runner pluggable"
SCHEDULER_RFC = "vllm-project/vllm#51608, a request for scheduling policies as plugins"
SCHEDULER_CLS = "vllm-project/vllm#14466, which brought scheduler_cls"
CPU_EXPAND = "vllm-project/vllm#55005; vllm-project/vllm#55006 mends it"
PLUGINS = "docs/design/plugin_system.md of vLLM"

WITH_DRAFTER_HOOK = (
    "vLLM has a hook for drafters that brings hidden states and options of their own"
)
WITH_SPECULATORS = "vLLM keeps a registry of speculators"
WITH_POLICY_HOOK = "vLLM takes scheduling policies as plugins"
WITH_V1 = "the V1 model runner is served no more"
STAYS = "never: it is vLLM's own interface for this"
