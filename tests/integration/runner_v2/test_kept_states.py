"""Where the states of a verification's tokens lie, and when they are there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vllm_kangaroo.integration.runner_v2.counters import Counters
from vllm_kangaroo.integration.runner_v2.kept_states import KeptStates

SLOTS, WIDTH, TOKENS = 4, 3, 16


def kept() -> KeptStates:
    like = (torch.zeros(2, 5), torch.zeros(2, 5, dtype=torch.bfloat16))
    return KeptStates(like, SLOTS, WIDTH, TOKENS, torch.device("cpu"))


def state(slot: int, offset: int) -> torch.Tensor:
    return torch.full((1, 5), 10.0 * slot + offset)


def test_each_token_reads_what_was_kept_of_it() -> None:
    store = kept()
    assert [part.dtype for part in store.parts] == [torch.float32, torch.bfloat16]
    for slot in range(SLOTS):
        for offset in range(WIDTH):
            found = state(slot, offset)
            store.write(torch.tensor([slot]), offset, (found, found.bfloat16()))
    index = store.index
    store.route(np.array([2, 0]), np.array([3, 2]), 8)
    first, second = store.read(8)
    assert first[:, 0].tolist() == [20.0, 21.0, 22.0, 0.0, 1.0, 0.0, 0.0, 0.0]
    assert second[:, 0].tolist() == first[:, 0].tolist()
    assert store.index is index, "graphs read it where it is"


def test_rows_that_fill_a_graph_up_touch_nobody() -> None:
    store = kept()
    store.write(torch.tensor([1]), 0, (state(1, 0), state(1, 0).bfloat16()))
    before = store.parts[0][: SLOTS * WIDTH].clone()
    store.write(torch.tensor([store.padding_slot]), 0, (state(9, 9), state(9, 9).bfloat16()))
    assert torch.equal(store.parts[0][: SLOTS * WIDTH], before)
    assert store.nbytes == (SLOTS + 1) * WIDTH * 5 * (4 + 2)


@pytest.mark.parametrize(
    ("noted", "counts", "held"),
    [
        ({}, [1], False),  # a prompt that has ended without a round
        ({1: 3}, [3], True),
        ({1: 3}, [1], True),  # drafts that the scheduler has cut
        ({1: 3, 2: 0}, [3, 1], False),  # a round that vLLM let out
    ],
)
def test_what_is_held(noted: dict[int, int], counts: list[int], held: bool) -> None:
    store = kept()
    for slot, count in noted.items():
        store.note(np.array([slot]), count)
    assert store.held(np.arange(1, 1 + len(counts)), np.array(counts)) is held


def test_counters_are_numbers() -> None:
    counters = Counters.on(torch.device("cpu"), tiers=2)
    counters.proposed.add_(torch.tensor(3))
    counters.ran(0, 4, passes=5)
    counters.ran(-1, 20)
    counters.draftings += 1
    found = counters.as_dict()
    assert (found["proposed"], found["draftings"]) == (3, 1)
    assert (found.pop("positions"), found.pop("passes")) == ([20, 20], [5, 1])
    assert {type(value) for value in found.values()} == {int}
