"""What a step did for each request, as the policy wants to hear it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm_kangaroo.laps_sd.service import Progress


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A step on its way through the engine."""

    started: float
    """Seconds of the monotonic clock."""
    kv_tokens: int


def progress_of(output: Any, results: Any, requests: Mapping[str, Any]) -> list[Progress]:
    """Progress of every request of a step.

    Args:
        output: vLLM's ``SchedulerOutput``.
        results: the ``ModelRunnerOutput`` that belongs to it, not yet taken in by the scheduler.
        requests: the scheduler's, by id. One that has ended meanwhile still took its share of the step.
    """
    drafts = output.scheduled_spec_decode_tokens
    invalid = output.num_invalid_spec_tokens or {}
    sampled, index = results.sampled_token_ids, results.req_id_to_index
    step = []
    for name, scheduled in output.num_scheduled_tokens.items():
        drafted = len(drafts[name]) if name in drafts else 0
        at = index.get(name)
        new = len(sampled[at]) if sampled and at is not None else 0
        if new and scheduled == drafted + 1:
            real = drafted - invalid.get(name, 0)
            step.append(Progress(name, 0, 1, real, min(new - 1, real), new))
        else:
            step.append(Progress(name, scheduled, new_tokens=new))
    return step
