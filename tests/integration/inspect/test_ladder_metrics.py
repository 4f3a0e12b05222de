"""The ladder's figures on their way from its counters to Prometheus."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.e2e.dashboard import Registered
from vllm_kangaroo.integration.config.compile_key import PLAN_KEY
from vllm_kangaroo.integration.inspect.ladder_figures import CHANNEL, LadderFigures
from vllm_kangaroo.integration.inspect.ladder_metrics import LadderProm, take_out
from vllm_kangaroo.ladder.ladder import Ladder


def ladder(middle: int) -> Ladder:
    tier: Any = None
    return Ladder(tier, [tier] * middle, tier, width=3, device=torch.device("cpu"))


def metrics(*exits: int) -> tuple[LadderProm, Registered]:
    logger = Registered()
    logger.vllm_config = SimpleNamespace(additional_config={PLAN_KEY: {"exits": exits}})
    return LadderProm(logger), logger


def stats(figures: dict[str, int] | None, offered: int = 0, accepted: int = 0) -> Any:
    """A step's, as they arrive at the front end."""
    told = {CHANNEL.prefix + key: value for key, value in (figures or {}).items()}
    counted = SimpleNamespace(num_draft_tokens=offered, num_accepted_tokens=accepted)
    return SimpleNamespace(
        num_kv_fetch_reqs_by_stage=told | {"vllm's own": 1},
        spec_decoding_stats=counted if offered else None,
    )


def test_each_tier_has_its_own_and_the_last_what_vllm_counts() -> None:
    found, clock = ladder(1), [0.0]
    told = LadderFigures(found, True, lambda: clock[0])
    prom, logger = metrics(2, 4, 12)
    counters = found.counters
    counters.positions[:] = 9, 7, 5
    counters.passes[:] = 4, 3, 2
    counters.dropped[:] = 4, 2, 0
    counters.tier_seconds[:] = 0.25, 0.5, 1.0
    counters.checked, counters.agreed, counters.rounds, counters.defects = 6, 5, 3, 2
    found.slots(["a", "b"])
    first = stats(told.take(), offered=8, accepted=1)
    prom.record(take_out(first), 0)
    assert first.num_kv_fetch_reqs_by_stage == {"vllm's own": 1}
    assert told.take() is None, "told again at once"
    prom.record(take_out(stats(told.take(), offered=2, accepted=2)), 0)
    clock[0] = 1.0
    counters.positions[1] += 10
    found.close("a")
    prom.record(take_out(stats(told.take())), 0)

    def value(name: str, **labels: str) -> float | None:
        every = {"model_name": "demo", "engine": "0"} | labels
        return logger.registry.get_sample_value(f"vllm:early_exit_{name}", every)

    def by_tier(name: str) -> list[float | None]:
        return [value(name, tier=str(tier)) for tier in (1, 2, 3)]

    assert by_tier("positions_total") == [9, 17, 5]
    assert by_tier("passes_total") == [4, 3, 2]
    assert by_tier("dropped_positions_total") == [4, 2, None]
    assert by_tier("pass_seconds_total") == [0.25, 0.5, 1.0]
    assert by_tier("offered_drafts_total") == [None, 6, 10]
    assert by_tier("accepted_drafts_total") == [None, 5, 3]
    assert value("rounds_total", source="exit") == 3
    assert value("defects_total") == 2
    assert value("requests") == 1
    assert value("store_bytes") == sum(store.nbytes for store in found.stores)


@pytest.mark.parametrize(("exit_drafts", "tiers"), [(True, {"1", "2"}), (False, {"1"})])
def test_a_model_that_is_run_whole_has_one_tier(exit_drafts: bool, tiers: set[str]) -> None:
    found = ladder(0)
    found.counters.positions[:] = 5, 5
    found.counters.lookup_rounds = 2
    prom, logger = metrics(*((2, 12) if exit_drafts else (12, 12)))
    told = LadderFigures(found, exit_drafts, lambda: 0.0).take()
    prom.record(take_out(stats(told, offered=3, accepted=1)), 0)
    seen: dict[str, set[str]] = {}
    for family in logger.registry.collect():
        for sample in family.samples:
            if "tier" in sample.labels:
                seen.setdefault(family.name, set()).add(sample.labels["tier"])
    assert seen["vllm:early_exit_positions"] == tiers
    assert seen["vllm:early_exit_offered_drafts"] == {max(tiers)}
    rounds = {"model_name": "demo", "engine": "0", "source": "text"}
    assert logger.registry.get_sample_value("vllm:early_exit_rounds_total", rounds) == 2


def test_defects_are_shown_before_there_are_any() -> None:
    _, logger = metrics(2, 12)
    labels = {"model_name": "demo", "engine": "0"}
    assert logger.registry.get_sample_value("vllm:early_exit_defects_total", labels) == 0
