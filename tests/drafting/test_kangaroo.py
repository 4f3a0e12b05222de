"""Kangaroo's drafting round: when it stops, what it keeps, who takes part."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm_kangaroo.drafting.kangaroo import Drafters, Drafts, draft
from vllm_kangaroo.ladder.ladder import Ladder
from vllm_kangaroo.ladder.spans import IntArray
from vllm_kangaroo.ladder.store import State

WIDTH = 9


class Script:
    """A draft pass that says, for request ``r`` and step ``s``, what ``tokens[r][s]`` and ``confidences[r][s]`` say.

    The requests are told apart by their rows, so a batch that is shrunk or ordered wrongly reads the wrong script.
    """

    def __init__(
        self, starts: list[int], tokens: list[list[int]], confidences: list[list[float]]
    ) -> None:
        self.starts, self.tokens, self.confidences = starts, tokens, confidences
        self.passes: list[list[int]] = []
        self.inputs: list[list[int]] = []
        self.opened: list[int] = []

    @contextmanager
    def chain(self, rows: IntArray, starts: IntArray, steps: int) -> Iterator[Script]:
        assert starts.tolist() == self.starts
        self.rows, self.at = rows.tolist(), starts
        self.opened.append(steps)
        yield self

    @property
    def positions(self) -> Tensor:
        return torch.from_numpy(self.at)

    def advance(self) -> None:
        self.at = self.at + 1

    def retain(self, which: IntArray) -> None:
        self.rows = [self.rows[at] for at in which]
        self.at = self.at[which]

    def __call__(
        self, input_ids: Tensor, positions: Tensor, memory: Tensor | None
    ) -> tuple[State, Tensor, Tensor]:
        assert positions.tolist() == self.at.tolist()
        self.passes.append(list(self.rows))
        self.inputs.append(input_ids.tolist())
        steps = [int(at) - self.starts[row] for row, at in zip(self.rows, self.at, strict=True)]
        where = list(zip(self.rows, steps, strict=True))
        # The state names its request and position.
        state = torch.tensor([[row, self.starts[row] + step] for row, step in where]).float()
        return (
            (state, -state),
            torch.tensor([self.tokens[row][step] for row, step in where], dtype=torch.int32),
            torch.tensor([self.confidences[row][step] for row, step in where]),
        )


def refuse(*_: object) -> Tensor:
    raise AssertionError("drafting runs no tier but through its draft pass")


def play(
    script: Script,
    *,
    limits: list[int],
    threshold: float = 0.0,
    stop_ids: list[Collection[int]] | None = None,
) -> tuple[Drafts, Ladder, IntArray]:
    count = len(limits)
    ladder = Ladder(refuse, (), refuse, width=WIDTH, device=torch.device("cpu"))
    slots = ladder.slots([f"r{row}" for row in range(count)])
    ladder.frontiers[slots] = np.array(script.starts)[:, None]
    drafters = Drafters(
        rows=np.arange(count),
        slots=slots,
        starts=np.array(script.starts),
        token_ids=[900 + row for row in range(count)],
        limits=np.array(limits),
        stop_ids=stop_ids or [()] * count,
    )
    return draft(ladder, drafters, script, script, threshold), ladder, slots


def test_stops_at_the_limit_of_each_request_which_then_leaves_the_pass() -> None:
    script = Script([4, 7, 0], [[1] * 8, [2] * 8, [3] * 8], [[0.9] * 8] * 3)
    drafts, ladder, slots = play(script, limits=[3, 1, 2])
    assert drafts.token_ids == [[1, 1, 1], [2], [3, 3]]
    assert script.passes == [[0, 1, 2], [0, 2], [0]]
    assert script.opened == [3]
    assert ladder.frontiers[slots].tolist() == [[7, 4], [8, 7], [2, 0]]
    counters = ladder.counters
    assert (counters.drafted, counters.draft_steps, counters.rounds) == (6, 3, 3)
    assert counters.positions == [6, 0]
    assert counters.passes == [3, 0]


def test_the_token_the_head_was_unsure_of_is_kept_and_is_the_last() -> None:
    script = Script([0, 0], [[1, 2, 3, 4], [5, 6, 7, 8]], [[0.9, 0.59, 0.9, 0.9], [0.6] * 4])
    drafts, _, _ = play(script, limits=[4, 4], threshold=0.6)
    assert drafts.token_ids == [[1, 2], [5, 6, 7, 8]]
    assert drafts.confidences[0] == pytest.approx([0.9, 0.59])
    assert script.passes == [[0, 1], [0, 1], [1], [1]]


def test_at_least_one_token_is_drafted_however_unsure_the_head_is() -> None:
    script = Script([0], [[5] * 4], [[0.01] * 4])
    drafts, _, _ = play(script, limits=[4], threshold=1.0)
    assert drafts.token_ids == [[5]]


def test_a_stop_token_is_drafted_but_nothing_after_it() -> None:
    script = Script([0, 0], [[5, 2, 6], [5, 2, 6]], [[0.9] * 3] * 2)
    drafts, _, _ = play(script, limits=[3, 3], stop_ids=[{2}, {9}])
    assert drafts.token_ids == [[5, 2], [5, 2, 6]]


def test_each_step_feeds_the_tokens_just_drafted() -> None:
    script = Script([0, 0], [[11, 12, 13], [21, 22, 23]], [[0.9, 0.9, 0.9], [0.1, 0.9, 0.9]])
    play(script, limits=[3, 3], threshold=0.5)
    assert script.inputs == [[900, 901], [11], [12]]


def test_states_and_tokens_of_every_position_are_kept_for_verification() -> None:
    script = Script([4, 7], [[11, 12, 13], [21, 22, 23]], [[0.9] * 3, [0.9, 0.1, 0.9]])
    _, ladder, slots = play(script, limits=[3, 3], threshold=0.5)
    store = ladder.stores[0]
    for row, start, fed in ((0, 4, [900, 11, 12]), (1, 7, [901, 21])):
        where = start + np.arange(len(fed))
        hidden, residual = store.get(store.index(np.full(len(fed), slots[row]), where))
        assert hidden.tolist() == [[row, position] for position in where]
        assert residual.tolist() == [[-row, -position] for position in where]
        wanted = np.array([fed + [-2] * (WIDTH - len(fed))])
        kept = store.matching(slots[row : row + 1], where[:1], np.array([WIDTH]), wanted)
        assert kept.tolist() == [len(fed)]


def test_the_store_notes_only_what_was_run_through_the_tier() -> None:
    """The last draft has no state yet, so an entry left there by an earlier round must not look like its own."""
    script = Script([4], [[11, 12, 13]], [[0.9] * 3])
    _, ladder, slots = play(script, limits=[2])
    assert ladder.frontiers[slots].tolist() == [[6, 4]]
    assert ladder.stores[0].token_ids[slots[0], 6 % WIDTH] == -1


@settings(deadline=None)
@given(
    data=st.data(),
    requests=st.integers(1, 5),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_against_one_request_at_a_time(
    data: st.DataObject, requests: int, threshold: float
) -> None:
    table = st.lists(st.integers(0, 5), min_size=8, max_size=8)
    chances = st.lists(st.sampled_from([0.1, 0.25, 0.4, 0.5, 0.9, 1.0]), min_size=8, max_size=8)
    tokens = [data.draw(table) for _ in range(requests)]
    confidences = [data.draw(chances) for _ in range(requests)]
    limits = [data.draw(st.integers(1, 8)) for _ in range(requests)]
    stop_ids = [data.draw(st.frozensets(st.integers(0, 5), max_size=2)) for _ in range(requests)]
    starts = [data.draw(st.integers(0, 40)) for _ in range(requests)]
    script = Script(starts, tokens, confidences)
    drafts, ladder, slots = play(
        script, limits=limits, threshold=threshold, stop_ids=list(stop_ids)
    )
    for row in range(requests):
        expected: list[int] = []
        for token, confidence in zip(tokens[row], confidences[row], strict=True):
            expected.append(token)
            if len(expected) == limits[row] or confidence < threshold or token in stop_ids[row]:
                break
        assert drafts.token_ids[row] == expected
        assert ladder.frontiers[slots[row]].tolist() == [starts[row] + len(expected), starts[row]]
        assert sum(row in taking_part for taking_part in script.passes) == len(expected)
