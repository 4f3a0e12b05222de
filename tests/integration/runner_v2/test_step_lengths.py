"""Goodput control beside a scheduler of V2: what it is asked, and what it is taught."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.integration.config.test_runner_choice import plan
from vllm_kangaroo.goodput.cost_model import Load
from vllm_kangaroo.integration.runner_v2.counters import Counters
from vllm_kangaroo.integration.runner_v2.figures import SpeculatorFigures
from vllm_kangaroo.integration.runner_v2.step_lengths import StepLengthControl

MOST = 3


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def control(*contexts: int) -> tuple[StepLengthControl, Clock]:
    requests = {
        f"r{at}": SimpleNamespace(num_computed_tokens=context)
        for at, context in enumerate(contexts)
    }
    scheduler = SimpleNamespace(running=list(requests.values()), requests=requests)
    clock = Clock()
    found = plan(goodput=True, num_speculative_tokens=MOST)
    return StepLengthControl(scheduler, found, clock), clock


def step(made: int, **requests: tuple[int, int, int]) -> tuple[Any, Any]:
    """A step of requests that ran so many tokens, so many drafts among them, and got so many; then ``made`` are drafted."""
    scheduled = SimpleNamespace(
        num_scheduled_tokens={name: ran for name, (ran, _, _) in requests.items()},
        scheduled_spec_decode_tokens={
            name: [-1] * drafts for name, (_, drafts, _) in requests.items() if drafts
        },
        num_spec_tokens_to_schedule=made,
    )
    output = SimpleNamespace(
        req_id_to_index={name: at for at, name in enumerate(requests)},
        sampled_token_ids=[[7] * got for _, _, got in requests.values()],
    )
    return scheduled, output


def test_the_load_is_that_of_the_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = control(30, 12)
    asked: list[Load] = []
    monkeypatch.setattr(found.lengths, "choose", lambda load: asked.append(load) or 2)
    assert found[2] == 2
    assert asked == [Load(2, 42)]


def test_a_step_is_told_with_the_drafts_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found, clock = control(30, 12)
    seen: list[Any] = []
    monkeypatch.setattr(found.lengths, "observe", lambda *each: seen.append(each))
    verified: list[Any] = []
    monkeypatch.setattr(
        found.lengths, "verified", lambda *each: verified.append([a.tolist() for a in each])
    )
    clock.now = 5.0
    found.observe(*step(2, r0=(20, 0, 1)))
    assert not seen, "how long the engine stood still before is no step's time"
    clock.now = 5.25
    found.observe(*step(3, r0=(3, 2, 2), r1=(12, 0, 0)))
    clock.now = 5.75
    found.observe(*step(0, r0=(4, 3, 4), r1=(1, 0, 1)))
    assert seen == [
        (0.25, Load(2, 42, 11), 4, 2, 2),
        (0.5, Load(2, 42, 0), 5, 3, 5),
    ]
    assert verified[1] == [[30], [2], [1]], "a prompt's piece has got nothing"
    assert verified[2] == [[30, 12], [3, 0], [3, 0]]


def test_skipped_drafts_have_taken_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = control(30)
    seen: list[Any] = []
    monkeypatch.setattr(found.lengths, "observe", lambda *each: seen.append(each[3]))
    for skipped in (True, False, False):
        scheduled, output = step(2, r0=(1, 0, 1))
        scheduled.skip_drafts = skipped
        found.observe(scheduled, output)
    assert seen == [0, 2]


def test_a_request_that_has_gone_is_no_trouble() -> None:
    found, clock = control(30)
    for _ in range(3):
        clock.now += 0.1
        found.observe(*step(1, r0=(2, 1, 2), gone=(2, 1, 1)))
    assert found.lengths.stats.steps == 2
    assert 0 <= found[2] <= MOST
    found.observe(*step(0))
    assert np.isfinite(found.lengths.goodput)


def test_what_the_tiers_did_is_told() -> None:
    counters = Counters.on(torch.device("cpu"), tiers=3)
    counters.ran(0, 4, passes=5)
    counters.ran(1, 8, passes=2)
    counters.ran(-1, 20)
    counters.reused, counters.drafters = 20, 4
    counters.checked.add_(8)
    counters.agreed.add_(5)
    counters.proposed.add_(9)
    speculator: Any = SimpleNamespace(
        counters=counters,
        kept=SimpleNamespace(nbytes=64),
        req_states=SimpleNamespace(req_id_to_index={"a": 0}),
    )
    told = SpeculatorFigures(speculator, lambda: 0.0)
    assert told.take() == {
        "tier.positions.1": 20,
        "tier.positions.2": 16,
        "tier.positions.3": 20,
        "tier.passes.1": 5,
        "tier.passes.2": 2,
        "tier.passes.3": 1,
        "tier.reused.1": 20,
        "tier.reused.2": 20,
        "tier.offered.2": 8,
        "tier.accepted.2": 5,
        "source.rounds.exit": 4,
        "source.drafted.exit": 9,
        "gauge.requests": 1,
        "gauge.store_bytes": 64,
    }
