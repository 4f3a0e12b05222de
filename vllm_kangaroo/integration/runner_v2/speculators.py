"""The seam by which vLLM's V2 runner gets a speculator of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_kangaroo.integration.config.compile_key import PLAN_KEY
from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch

HOLDERS = (
    "vllm.v1.worker.gpu.spec_decode:init_speculator",
    "vllm.v1.worker.gpu.model_runner:init_speculator",
)
"""Modules that hold the function: where it is, and where the runner has imported it."""


def install() -> None:
    """Wrap ``init_speculator`` in both modules, over whatever is there.

    Raises:
        SeamError: if it is not as the register says.
    """
    patching.apply(*(Patch(target, _init_speculator, "early exits") for target in HOLDERS))


def _init_speculator(original: Callable[..., Any]) -> Callable[..., Any]:
    def init_speculator(vllm_config: Any, device: Any, req_states: Any) -> Any:
        additional = vllm_config.additional_config
        if not (isinstance(additional, dict) and PLAN_KEY in additional):
            return original(vllm_config, device, req_states)
        from vllm_kangaroo.integration.runner_v2.speculator import KangarooSpeculator

        return KangarooSpeculator(vllm_config, device, req_states)

    return init_speculator
