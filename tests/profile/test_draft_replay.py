"""Replayed rounds: by hand, as properties, and against what a real engine does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e.engines import Engines
from tests.e2e.prompts import QUESTIONS, chat
from vllm_kangaroo import tiny_model
from vllm_kangaroo.profile.draft_replay import Guesses, Record, Work, hispec, kangaroo
from vllm_kangaroo.profile.head_reader import Head, Reader
from vllm_kangaroo.training.run.target import Target

pytestmark = pytest.mark.slow


def record(
    target: list[int],
    guesses: dict[str, tuple[list[int], list[float]]],
    max_tokens: int = 1000,
    stop_ids: tuple[int, ...] = (),
) -> Record:
    made = {
        name: Guesses(np.array(tokens), np.array(sure)) for name, (tokens, sure) in guesses.items()
    }
    return Record(np.array(target), made, max_tokens, stop_ids)


def test_a_perfect_exit_is_accepted_whole() -> None:
    tokens = list(range(12))
    one = record(tokens, {"1": (tokens, [0.9] * 12)})
    work = kangaroo(one, "1", drafts=3, threshold=0.5)
    assert (work.tokens, work.verified, work.draft_steps) == (12, [4, 4, 4], 9)
    assert work.acceptance_length == 4


def test_a_hopeless_exit_gains_nothing() -> None:
    one = record([1] * 5, {"1": ([2] * 5, [0.9] * 5)})
    work = kangaroo(one, "1", drafts=2, threshold=0.5)
    assert (work.tokens, work.verified) == (5, [3, 3, 3, 3, 2])
    assert work.accepted == 0


def test_unsure_drafts_end_a_round_and_are_verified() -> None:
    one = record([1, 2, 3, 4, 5], {"1": ([1, 2, 3, 9, 5], [0.9, 0.2, 0.9, 0.9, 0.9])})
    work = kangaroo(one, "1", drafts=4, threshold=0.5)
    # 1 and 2 drafted and right, then the target's 3; 9 is wrong, so that 5 is for nothing; then 5.
    assert (work.verified, work.draft_steps, work.tokens) == ([3, 3, 2], 5, 5)


def test_rounds_end_at_stop_tokens_and_at_the_length_limit() -> None:
    tokens = [1, 2, 3, 4]
    stopping = record(tokens, {"1": (tokens, [1.0] * 4)}, stop_ids=(2,))
    assert kangaroo(stopping, "1", drafts=4, threshold=0.0).verified == [3, 2]
    # 5 tokens may be produced, the prompt's pass gave one: after it 4 are left, 3 of them drafts.
    short = record(tokens, {"1": (tokens, [1.0] * 4)}, max_tokens=5)
    assert kangaroo(short, "1", drafts=4, threshold=0.0).verified == [4]


def test_hispec_by_hand() -> None:
    target = [1, 2, 3, 4, 5, 6, 7]
    drafts = ([1, 9, 3, 4, 5, 6, 7], [1.0] * 7)
    checker = ([1, 2, 3, 8, 5, 6, 7], [1.0] * 7)
    one = record(target, {"1": drafts, "2": checker})
    work = hispec(one, "1", "2", per_round=2, buffer=4)
    # 1, 9 -> 1, 2 (the checker's); 3, 4 -> 3, 8 (the checker's, wrong): 3 tokens and the target's 4.
    # 5, 6, then 7: all right.
    assert work.verified == [5, 4] and work.tokens == 7
    assert work.draft_steps == 2 + 2 + 2 + 1
    assert work.checks == (2 + 1) + (2 + 1)


@st.composite
def records(draw: Any) -> Record:
    count = draw(st.integers(1, 30))
    token = st.integers(0, 3)
    sure = st.floats(0, 1)

    def several(kind: Any) -> Any:
        return draw(st.lists(kind, min_size=count, max_size=count))

    guesses = {name: (several(token), several(sure)) for name in ("1", "2")}
    return record(several(token), guesses, count + 1, (3,))


@given(records(), st.integers(1, 6), st.floats(0, 1), st.integers(1, 4), st.integers(1, 8))
def test_every_token_is_produced_once(
    one: Record, drafts: int, threshold: float, per_round: int, buffer: int
) -> None:
    chained = kangaroo(one, "1", drafts=drafts, threshold=threshold)
    checked = hispec(one, "1", "2", per_round=per_round, buffer=buffer)
    for work, most in ((chained, drafts), (checked, buffer)):
        assert work.tokens == len(one.target)
        assert work.tokens - len(work.verified) <= work.accepted <= work.tokens
        assert all(1 <= each <= most + 1 for each in work.verified)
    assert chained.draft_steps == sum(each - 1 for each in chained.verified)
    same = hispec(one, "1", "1", per_round=drafts, buffer=drafts)
    alike = kangaroo(one, "1", drafts=drafts, threshold=0.0)
    assert (same.verified, same.draft_steps) == (alike.verified, alike.draft_steps)


@pytest.fixture(scope="module")
def engines() -> Iterator[Engines]:
    found = Engines()
    yield found
    found.close()


@pytest.mark.e2e
@pytest.mark.parametrize("method", ["kangaroo", "hispec"])
def test_replay_foretells_the_engine(engines: Engines, method: str) -> None:
    """In float32 rounds, drafts and passes are those that the engine counts."""
    from vllm import SamplingParams

    settings: dict[str, dict[str, Any]] = {
        "kangaroo": {"exit_layer": 2, "num_speculative_tokens": 4, "confidence_threshold": 0.0},
        "hispec": {
            "draft_exit_layer": 2,
            "verify_exit_layer": 6,
            "draft_tokens_per_round": 2,
            "num_speculative_tokens": 4,
        },
    }
    config = {"method": method, **settings[method]}
    engine = engines.get(speculative_config=config)
    prompts = [chat(question) for question in QUESTIONS[:6]]
    params = SamplingParams(temperature=0, max_tokens=40)
    before = engine.runner.early_exit_counters()
    outputs = [
        engine.llm.generate({"prompt_token_ids": p}, params, use_tqdm=False)[0] for p in prompts
    ]
    after = engine.runner.early_exit_counters()
    answers = [list(out.outputs[0].token_ids) for out in outputs]
    target = Target.load(tiny_model(), (2, 6), torch.float32, "cpu")
    reader = Reader(target, [Head(2), Head(6)], "float32", "cpu")
    work = Work()
    for one in reader.record(prompts, answers, 40, {target.config.eos_token_id}):
        if method == "kangaroo":
            work.add(kangaroo(one, "2", drafts=4, threshold=0.0))
        else:
            work.add(hispec(one, "2", "6", per_round=2, buffer=4))
    grown = {name: after[name] - before[name] for name in ("verified", "draft_steps")}
    passes = [new - old for new, old in zip(after["passes"], before["passes"], strict=True)]
    assert work.tokens == sum(len(answer) - 1 for answer in answers) > 60
    assert passes[-1] - len(prompts) == len(work.verified) < work.tokens
    # Where a wrong draft is the end of text, the engine stops there; the record does not know.
    assert work.draft_steps == pytest.approx(grown["draft_steps"], rel=0.1)
    if method == "hispec":
        assert work.checks == pytest.approx(passes[1] - len(prompts), rel=0.1)
