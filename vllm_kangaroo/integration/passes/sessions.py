"""Requests whose prompt comes in turns (vLLM's streaming inputs), each going on from the KV of the one before.

vLLM counts every accepted draft as computed, those behind a turn's end included: a stop token or the length asked for
may stand before the last of them. Going on from there it would take as many tokens of the next turn for computed, and
keep an end that it drops when nothing is drafted. A turn of vLLM alone ends before its last token; so do ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm_kangaroo.integration.register import patching
from vllm_kangaroo.integration.register.patching import Patch

TARGET = "vllm.v1.core.sched.scheduler:Scheduler._handle_stopped_request"


def install() -> None:
    """Have this process's schedulers end turns where vLLM alone does.

    Raises:
        SeamError: if vLLM is not as the register says.
    """
    patching.apply(Patch(TARGET, _handle_stopped_request, "sessions"))


def _handle_stopped_request(original: Callable[..., bool]) -> Callable[..., bool]:
    def handle_stopped_request(self: Any, request: Any) -> bool:
        if request.resumable:
            most = request.num_tokens - 1 + request.num_output_placeholders
            request.num_computed_tokens = min(request.num_computed_tokens, most)
        return original(self, request)

    return handle_stopped_request
