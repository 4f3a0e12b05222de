"""HiSpec's :class:`vllm_kangaroo.profile.method_search.MethodSearch`: over Li, N_d and N_i at one drafting exit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vllm_kangaroo.profile.costs import CostModel, HeadCost, hispec_seconds, with_checks
from vllm_kangaroo.profile.draft_replay import Record, Work, hispec
from vllm_kangaroo.profile.head_reader import Head

if TYPE_CHECKING:
    from vllm_kangaroo.profile.time_passes import EngineTimer

PER_ROUND = (1, 2, 3, 4)
BUFFERS = (2, 3, 4, 6, 8, 12)


def configs(
    costs: CostModel, head: Head, exits: Sequence[int], most: int
) -> Iterator[dict[str, Any]]:
    """See :class:`vllm_kangaroo.profile.method_search.MethodSearch`, as the others."""
    if head.adapter is not None or costs.check_base is None:
        return
    for checking in exits:
        if checking <= head.exit_layer:
            continue
        for buffer in BUFFERS:
            for per_round in PER_ROUND:
                if per_round <= buffer <= 2 * most:
                    yield {
                        "method": "hispec",
                        "draft_exit_layer": head.exit_layer,
                        "verify_exit_layer": checking,
                        "draft_tokens_per_round": per_round,
                        "num_speculative_tokens": buffer,
                    }


def timed(costs: CostModel, timer: EngineTimer) -> CostModel:
    low, high = timer.exits[0], timer.exits[-1]
    if high == low:
        return costs
    config: dict[str, Any] = {
        "method": "hispec",
        "draft_exit_layer": low,
        "verify_exit_layer": high,
        "draft_tokens_per_round": 2,
        "num_speculative_tokens": 4,
    }
    times = timer.run(f"HiSpec, exits {low} and {high}", config)
    return with_checks(costs, (low, high), config["draft_tokens_per_round"], times.learnt)


def replay(record: Record, head: Head, config: Mapping[str, Any]) -> Work:
    per_round, buffer = config["draft_tokens_per_round"], config["num_speculative_tokens"]
    drafting, checking = map(str, _exits(config))
    return hispec(record, drafting, checking, per_round=per_round, buffer=buffer)


def seconds(
    costs: CostModel, work: Work, head: Head, config: Mapping[str, Any], cost: HeadCost | None
) -> float:
    return hispec_seconds(costs, work, _exits(config))


def short(config: Mapping[str, Any]) -> str:
    return (
        f"Li {config['verify_exit_layer']} N_d {config['draft_tokens_per_round']} "
        f"N_i {config['num_speculative_tokens']}"
    )


def _exits(config: Mapping[str, Any]) -> tuple[int, int]:
    return config["draft_exit_layer"], config["verify_exit_layer"]
