"""Kangaroo's :class:`vllm_kangaroo.profile.method_search.MethodSearch`: over γ and η at one exit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm_kangaroo.profile.costs import CostModel, HeadCost, kangaroo_seconds
from vllm_kangaroo.profile.draft_replay import Record, Work, kangaroo
from vllm_kangaroo.profile.head_reader import Head

if TYPE_CHECKING:
    from vllm_kangaroo.profile.time_passes import EngineTimer

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def exit_of(head: Head) -> dict[str, Any]:
    """The option that says where to draft."""
    return {"exit_layer": head.exit_layer} if head.adapter is None else {"model": str(head.adapter)}


def config(drafts: int, threshold: float, head: Head) -> dict[str, Any]:
    """One setting."""
    return {
        "method": "kangaroo",
        **exit_of(head),
        "num_speculative_tokens": drafts,
        "confidence_threshold": threshold,
    }


def configs(
    costs: CostModel, head: Head, exits: Sequence[int], most: int
) -> Iterator[dict[str, Any]]:
    """See :class:`vllm_kangaroo.profile.method_search.MethodSearch`, as the others."""
    for drafts in range(1, most + 1):
        for threshold in THRESHOLDS if drafts > 1 else (0.0,):
            yield config(drafts, threshold, head)


def timed(costs: CostModel, timer: EngineTimer) -> CostModel:
    return costs


def replay(record: Record, head: Head, config: Mapping[str, Any]) -> Work:
    drafts, threshold = config["num_speculative_tokens"], config["confidence_threshold"]
    return kangaroo(record, head.name, drafts=drafts, threshold=threshold)


def seconds(
    costs: CostModel, work: Work, head: Head, config: Mapping[str, Any], cost: HeadCost | None
) -> float:
    return kangaroo_seconds(costs, work, head.exit_layer, cost)


def short(config: Mapping[str, Any]) -> str:
    return f"γ {config['num_speculative_tokens']} η {config['confidence_threshold']}"
