"""Try every setting on the records, and name the fastest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from vllm_kangaroo.profile.costs import CostModel, HeadCost, speedup
from vllm_kangaroo.profile.draft_replay import Record, Work
from vllm_kangaroo.profile.head_reader import Head
from vllm_kangaroo.profile.method_search import searches


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
    search = searches()[config["method"]]
    work = Work()
    for record in records:
        work.add(search.replay(record, head, config))
    seconds = search.seconds(model, work, head, config, cost)
    rounds = max(len(work.verified), 1)
    return Prediction(
        speculative_config=dict(config),
        exit_layer=head.exit_layer,
        speedup=speedup(model, work, seconds, len(records)),
        acceptance_length=work.acceptance_length,
        drafts_per_round=sum(work.verified) / rounds - 1,
    )


def best_of_each(
    model: CostModel,
    records: Sequence[Record],
    head: Head,
    cost: HeadCost | None,
    exits: Sequence[int],
    most: int,
) -> dict[str, Prediction | None]:
    """The fastest setting of each method with one head, by method; None where it has none to try.

    Args:
        exits: those that bare heads were measured at.
        most: the largest number of drafts.
    """
    found: dict[str, Prediction | None] = {}
    for name, search in searches().items():
        tried = (
            predict(model, records, config, head, cost)
            for config in search.configs(model, head, exits, most)
        )
        found[name] = max(tried, key=lambda each: each.speedup, default=None)
    return found
