"""Engines in one process that take turns."""

from __future__ import annotations

from typing import Any


def hold(llm: Any) -> None:
    """Stop an engine of this process between two steps: the time that passes now is none of its requests'."""
    llm.llm_engine.engine_core.engine_core.pause_scheduler("keep", clear_cache=False)


def go_on(llm: Any) -> None:
    """After :func:`hold`."""
    llm.llm_engine.engine_core.engine_core.resume_scheduler()
