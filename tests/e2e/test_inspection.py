"""What a worker can be asked about drafting, and told.

The record of which exit chose each draft is held against intermediate verifiers that are known to accept or reject.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.e2e.engines import Engine, Engines, difference, tokens_of
from tests.e2e.prompts import mixed
from vllm_kangaroo.integration.inspect.inspection import Inspection
from vllm_kangaroo.integration.inspect.record import DraftRecord
from vllm_kangaroo.options import OptionError

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
    passes = ours.proposer.model.passes
    honest_draft, honest_check = passes.draft, passes.verifier[0]
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

    monkeypatch.setattr(passes, "draft", draft)
    monkeypatch.setattr(passes, "verifier", [check])
    ours.proposer.record = record = DraftRecord()
    ours.generate(PROMPTS[:1])
    ours.proposer.record = None
    (own,) = record.rounds.values()
    assert own
    assert {one for exits in own.values() for one in exits} == {exit_}


def test_shorter_rounds_are_drafted_when_asked_for_and_change_no_token(ours: Engine) -> None:
    worker: Any = SimpleNamespace(model_runner=ours.runner)
    expected = tokens_of(ours.generate(PROMPTS))
    for buffer, per_round in ((1, 1), (3, 1), (3, 3), (4, 2)):
        Inspection.set_draft_lengths(worker, buffer, per_round)
        ours.flush()
        before = ours.ladder.counters.as_dict()
        ours.proposer.record = record = DraftRecord()
        assert tokens_of(ours.generate(PROMPTS)) == expected
        ours.proposer.record = None
        lengths = {len(exits) for own in record.rounds.values() for exits in own.values()}
        assert max(lengths) == buffer
        gain = difference(ours.ladder.counters.as_dict(), before)
        assert gain["draft_steps"] > 0
        if per_round == 1:  # every draft is checked by itself
            assert gain["passes"][1] >= gain["draft_steps"]
    with pytest.raises(OptionError, match="started for 4"):
        Inspection.set_draft_lengths(worker, 5, 2)
    with pytest.raises(OptionError, match="draft_tokens_per_round=3"):
        Inspection.set_draft_lengths(worker, 2, 3)


def test_a_table_and_a_bandit_choose_lengths_and_change_no_token(ours: Engine) -> None:
    worker: Any = Inspection()
    worker.model_runner = ours.runner
    options: dict[str, Any] = {"max_tokens": 48, "ignore_eos": True}
    expected = tokens_of(ours.generate(PROMPTS, **options))

    def lengths(prompts: Any) -> list[int]:
        ours.proposer.record = record = DraftRecord()
        assert tokens_of(ours.generate(prompts, **options)) == expected[: len(prompts)]
        ours.proposer.record = None
        return [len(exits) for own in record.rounds.values() for exits in own.values()]

    Inspection.set_draft_lengths(worker, 4, 1)
    worker.set_draft_table([[1, 1, 3], [2, 16, 0]])
    assert max(lengths(PROMPTS[:1])) == 3
    assert not lengths(PROMPTS), "drafted at every batch size"
    worker.set_draft_bandit([0, 1, 4])
    learning = ours.proposer.lengths
    assert {1, 4} <= set(lengths(PROMPTS)) <= {1, 2, 3, 4}
    worker.set_draft_bandit([0, 1, 4])
    assert ours.proposer.lengths is learning, "what was learnt is lost"
    Inspection.set_draft_lengths(worker, 4, 2)
    assert ours.proposer.lengths is None


def test_drafts_are_accepted_by_chance_when_asked_for(ours: Engine) -> None:
    worker: Any = SimpleNamespace(model_runner=ours.runner)
    options: dict[str, Any] = {"max_tokens": 48, "ignore_eos": True}
    expected = tokens_of(ours.generate(PROMPTS, **options))

    def steps(rate: float | None) -> tuple[int, bool]:
        Inspection.accept_by_chance(worker, rate)
        ours.flush()
        ours.proposer.record = record = DraftRecord()
        same = tokens_of(ours.generate(PROMPTS, **options)) == expected
        ours.proposer.record = None
        return sum(len(own) for own in record.rounds.values()), same

    none, some, every = steps(0.0), steps(0.5), steps(1.0)
    assert none[1], "what is not accepted is the model's own choice"
    assert not every[1], "the model judged"
    # A step brings one token; or 1 + 1/2 + 1/4 + 1/8 + 1/16; or five.
    assert none[0] > 1.5 * some[0] > 2.2 * every[0] > 0
    assert none[0] == pytest.approx(5 * every[0], rel=0.2)
    assert steps(None)[1], "it goes on after it was to end"
