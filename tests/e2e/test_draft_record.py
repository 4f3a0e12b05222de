"""The record of which exit chose each draft, against intermediate verifiers that are known to accept or reject."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.e2e.engines import Engine, Engines
from tests.e2e.prompts import mixed
from vllm_kangaroo.integration.record import DraftRecord

HISPEC = {"method": "hispec", "draft_exit_layer": 1, "verify_exit_layer": 3}
PROMPTS = mixed()[:4]


@pytest.fixture(scope="module")
def ours(engines: Engines) -> Engine:
    return engines.get(speculative_config=HISPEC)


def recorded(engine: Engine) -> dict[str, dict[int, list[int]]]:
    engine.proposer.record = record = DraftRecord()
    engine.generate(PROMPTS)
    engine.proposer.record = None
    return record.rounds


def test_nothing_is_recorded_unless_asked_for(ours: Engine) -> None:
    assert ours.proposer.record is None


def test_every_round_of_every_request_is_recorded(ours: Engine) -> None:
    ours.flush()
    before = ours.ladder.counters.rounds
    rounds = recorded(ours)
    assert len(rounds) == len(PROMPTS)
    for own in rounds.values():
        assert min(own) == 1  # the prompt's own step has brought a token
        assert all(1 <= len(exits) <= 4 for exits in own.values())
    assert sum(len(own) for own in rounds.values()) == ours.ladder.counters.rounds - before
    assert {exit_ for own in rounds.values() for exits in own.values() for exit_ in exits} == {1, 2}


@pytest.mark.parametrize(("shift", "exit_"), [(0, 1), (1, 2)])
def test_tokens_are_the_verifiers_where_it_rejects(
    ours: Engine, monkeypatch: pytest.MonkeyPatch, shift: int, exit_: int
) -> None:
    honest_draft, honest_check = ours.proposer._draft, ours.proposer._check[0]
    drafted: list[Tensor] = []

    def draft(*args: Any) -> Any:
        state, tokens, confidences = honest_draft(*args)
        drafted.append(tokens)
        return state, tokens, confidences

    def check(positions: Tensor, *state: Any) -> Any:
        # One request at a time, so that the chain's tokens stand in order.
        verdicts = (torch.cat(drafted) + shift) % 4096
        drafted.clear()
        return honest_check(positions, *state)[0], verdicts

    monkeypatch.setattr(ours.proposer, "_draft", draft)
    monkeypatch.setattr(ours.proposer, "_check", [check])
    ours.proposer.record = record = DraftRecord()
    ours.generate(PROMPTS[:1])
    ours.proposer.record = None
    (own,) = record.rounds.values()
    assert own
    assert {one for exits in own.values() for one in exits} == {exit_}
