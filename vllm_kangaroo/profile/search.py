"""Try every setting on the records, and name the fastest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from vllm_kangaroo.profile.costs import (
    CostModel,
    HeadCost,
    hispec_seconds,
    kangaroo_seconds,
    speedup,
)
from vllm_kangaroo.profile.draft_replay import Record, Work, hispec, kangaroo
from vllm_kangaroo.profile.heads import Head

THRESHOLDS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
PER_ROUND = (1, 2, 3, 4)
BUFFERS = (2, 3, 4, 6, 8, 12)


class Prediction(BaseModel):
    """One setting and what it is expected to do at batch 1, greedy."""

    model_config = ConfigDict(frozen=True)

    speculative_config: dict[str, Any]
    exit_layer: int
    speedup: float
    acceptance_length: float
    drafts_per_round: float


def predict(
    model: CostModel,
    records: Sequence[Record],
    config: Mapping[str, Any],
    head: Head,
    cost: HeadCost | None = None,
) -> Prediction:
    """Of one setting, over some answers; ``cost`` is that of the head's adapter."""
    work = Work()
    if config["method"] == "kangaroo":
        drafts, threshold = config["num_speculative_tokens"], config["confidence_threshold"]
        for record in records:
            work.add(kangaroo(record, head.name, drafts=drafts, threshold=threshold))
        seconds = kangaroo_seconds(model, work, head.exit_layer, cost)
    else:
        exits = config["draft_exit_layer"], config["verify_exit_layer"]
        per_round, buffer = config["draft_tokens_per_round"], config["num_speculative_tokens"]
        for record in records:
            work.add(
                hispec(record, str(exits[0]), str(exits[1]), per_round=per_round, buffer=buffer)
            )
        seconds = hispec_seconds(model, work, exits)
    rounds = max(len(work.verified), 1)
    return Prediction(
        speculative_config=dict(config),
        exit_layer=head.exit_layer,
        speedup=speedup(model, work, seconds, len(records)),
        acceptance_length=work.acceptance_length,
        drafts_per_round=sum(work.verified) / rounds - 1,
    )


def best_kangaroo(
    model: CostModel,
    records: Sequence[Record],
    head: Head,
    cost: HeadCost | None,
    max_drafts: int,
) -> Prediction:
    """Over γ and η at one exit."""
    which = (
        {"exit_layer": head.exit_layer} if head.adapter is None else {"model": str(head.adapter)}
    )
    found = (
        predict(
            model,
            records,
            {
                "method": "kangaroo",
                **which,
                "num_speculative_tokens": drafts,
                "confidence_threshold": threshold,
            },
            head,
            cost,
        )
        for drafts in range(1, max_drafts + 1)
        for threshold in (THRESHOLDS if drafts > 1 else (0.0,))
    )
    return max(found, key=lambda each: each.speedup)


def best_hispec(
    model: CostModel, records: Sequence[Record], drafting: Head, exits: Sequence[int], most: int
) -> Prediction | None:
    """Over Li, N_d and N_i at one drafting exit, None if no deeper exit was measured."""
    found = (
        predict(model, records, config, drafting)
        for config in _hispec_configs(drafting.exit_layer, exits, most)
    )
    return max(found, key=lambda each: each.speedup, default=None)


def _hispec_configs(drafting: int, exits: Sequence[int], most: int) -> Iterator[dict[str, Any]]:
    for checking in exits:
        if checking <= drafting:
            continue
        for buffer in BUFFERS:
            for per_round in PER_ROUND:
                if per_round <= buffer <= 2 * most:
                    yield {
                        "method": "hispec",
                        "draft_exit_layer": drafting,
                        "verify_exit_layer": checking,
                        "draft_tokens_per_round": per_round,
                        "num_speculative_tokens": buffer,
                    }
