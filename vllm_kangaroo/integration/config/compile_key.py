"""vLLM's key of compiled code, without the settings of ours that change no compiled pass."""

from __future__ import annotations

import copy
from typing import Any

from vllm.config import VllmConfig

from vllm_kangaroo.methods import METHODS

PLAN_KEY = "vllm_kangaroo"
LAPS_SD_KEY = "laps_sd"
DRAFTING_ONLY = {"num_speculative_tokens", "confidence_threshold", "lookup", "goodput"}
"""Options of every plan that change no compiled pass: a user who tries others need not compile anew."""


def shaping(additional: dict[str, Any]) -> dict[str, Any]:
    """Of ``additional_config``, what may change a compiled pass: none of a scheduler's options does."""
    found = {key: value for key, value in additional.items() if key != LAPS_SD_KEY}
    if PLAN_KEY in found:
        plan = found[PLAN_KEY]
        left_out = DRAFTING_ONLY | METHODS[plan["method"]].drafting_only
        found[PLAN_KEY] = {key: value for key, value in plan.items() if key not in left_out}
    return found


class PluginVllmConfig(VllmConfig):
    """A ``VllmConfig`` with settings of ours in its ``additional_config``."""

    def compute_hash(self, *args: Any, **kwargs: Any) -> str:
        """vLLM's key of compiled code, in which of our settings only what shapes the compiled passes counts."""
        twin = copy.copy(self)
        if isinstance(self.additional_config, dict):
            twin.additional_config = shaping(self.additional_config)
        return VllmConfig.compute_hash(twin, *args, **kwargs)
