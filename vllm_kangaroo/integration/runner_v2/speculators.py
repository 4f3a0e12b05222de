"""The seam by which vLLM's V2 runner gets a speculator of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.worker.gpu import spec_decode

from vllm_kangaroo.integration.config.compile_key import PLAN_KEY
from vllm_kangaroo.integration.config.plan import SPECULATOR
from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch

HOLDERS = (
    "vllm.v1.worker.gpu.spec_decode:init_speculator",
    "vllm.v1.worker.gpu.model_runner:init_speculator",
)
"""Modules that hold the function: where it is, and where the runner has imported it."""


def install() -> None:
    """Register our speculator; where vLLM has no registry, wrap ``init_speculator`` in both modules, over what is there.

    Raises:
        SeamError: if it is not as the register says.
    """
    register = getattr(spec_decode, "register_speculator", None)
    if register is not None:
        register(SPECULATOR, _make)
        return
    patching.apply(*(Patch(target, _init_speculator, "early exits") for target in HOLDERS))


def _make(vllm_config: Any, device: Any, req_states: Any) -> Any:
    from vllm_kangaroo.integration.config.plan import plan_of
    from vllm_kangaroo.integration.runner_v2.hispec_speculator import HiSpecSpeculator
    from vllm_kangaroo.integration.runner_v2.speculator import KangarooSpeculator

    # Without an intermediate verification HiSpec drafts as Kangaroo does.
    checks = plan_of(vllm_config).tokens_per_round is not None
    kind = HiSpecSpeculator if checks else KangarooSpeculator
    return kind(vllm_config, device, req_states)


def _init_speculator(original: Callable[..., Any]) -> Callable[..., Any]:
    def init_speculator(vllm_config: Any, device: Any, req_states: Any) -> Any:
        additional = vllm_config.additional_config
        if not (isinstance(additional, dict) and PLAN_KEY in additional):
            return original(vllm_config, device, req_states)
        return _make(vllm_config, device, req_states)

    return init_speculator
