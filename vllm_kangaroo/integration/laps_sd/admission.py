"""What may keep a request out of a step that the policy wants it in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from vllm_kangaroo.laps_sd.engine_time import RequestId

Admissible = Callable[[RequestId], bool]


def admission(scheduler: Any) -> Admissible | None:
    """Whether a request may join the step beside those that run and those admitted so far; None if all may.

    Args:
        scheduler: a :class:`~vllm_kangaroo.integration.laps_sd.scheduler.LapsSdScheduler`.
    """
    requests: dict[RequestId, Request] = scheduler.requests
    paused: dict[str, Request] = scheduler.paused
    only_with_kv = scheduler._pause_state != PauseState.UNPAUSED
    most_adapters = scheduler.lora_config.max_loras if scheduler.lora_config else None
    if not only_with_kv and most_adapters is None and not (scheduler.schedules_ahead and paused):
        return None
    adapters: set[int] = set()
    if most_adapters is not None:
        adapters = {_adapter(requests[name]) for name in scheduler.laps.running} - {0}

    def admissible(name: RequestId) -> bool:
        request = requests[name]
        if request.status == RequestStatus.RUNNING:
            # Its newest tokens are still on the device, in a batch it has left.
            if request.num_output_placeholders > 0 and name in paused:
                return False
        elif only_with_kv:
            return False
        adapter = _adapter(request) if most_adapters is not None else 0
        if adapter and adapter not in adapters:
            if len(adapters) >= (most_adapters or 0):
                return False
            adapters.add(adapter)
        return True

    return admissible


def _adapter(request: Request) -> int:
    return request.lora_request.lora_int_id if request.lora_request else 0
