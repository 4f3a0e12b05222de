"""Steps that draft like the one before them, unseen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vllm_kangaroo.goodput.cost_model import Load
from vllm_kangaroo.goodput.draft_round import Verification
from vllm_kangaroo.goodput.repeats import LEARNING, LOOK_EVERY, Kept, Repeats

SLOTS, CONTEXTS, LIMITS = np.array([3, 5, 8]), np.array([70, 80, 90]), np.array([4, 4, 2])
KEPT = Kept(
    slots=SLOTS.tobytes(),
    limits=LIMITS.tobytes(),
    who=np.arange(3),
    chains=np.array([[0.8, 0.7], [0.7, 0.6], [0.6, 0.5]]),
    before=Verification(Load(3, 240), 3, 3.0),
    seconds=LOOK_EVERY / 5.01,
)


def learnt() -> Repeats:
    found = Repeats()
    for _ in range(LEARNING - 1):
        found.keep(KEPT)
        assert found.again(SLOTS, CONTEXTS, LIMITS) is None, "little is known yet"
    return found


def test_some_steps_follow_each_that_is_looked_at() -> None:
    repeats = learnt()
    for _ in range(3):
        repeats.keep(KEPT)
        for _ in range(4):
            found = repeats.again(SLOTS, CONTEXTS + 7, LIMITS)
            assert found is not None
            who, starters = found
            assert who.tolist() == [0, 1, 2]
            assert starters.slots.tolist() == [3, 5, 8]
            assert starters.contexts.tolist() == [77, 87, 97]
            assert starters.limits.tolist() == [4, 4, 2]
            starters.verification.expected += 1.0  # as drafting does
            assert KEPT.before.expected == 3.0
        assert repeats.again(SLOTS, CONTEXTS, LIMITS) is None, "a look is due"
        steps, seconds = repeats.taken()
        assert (steps, round(seconds / KEPT.seconds)) == (4, 4)
        assert repeats.taken() == (0, 0.0)


def test_steps_that_take_long_are_all_looked_at() -> None:
    repeats = learnt()
    repeats.keep(replace(KEPT, seconds=0.6 * LOOK_EVERY))
    assert repeats.again(SLOTS, CONTEXTS, LIMITS) is None


def test_another_batch_is_looked_at() -> None:
    repeats = learnt()
    repeats.keep(KEPT)
    assert repeats.again(SLOTS[:2], CONTEXTS[:2], LIMITS[:2]) is None
    assert repeats.again(np.array([3, 5, 9]), CONTEXTS, LIMITS) is None
    assert repeats.again(SLOTS, CONTEXTS, np.array([4, 3, 2])) is None
    assert repeats.again(SLOTS, CONTEXTS, LIMITS) is not None
    repeats.keep(None)
    assert repeats.again(SLOTS, CONTEXTS, LIMITS) is None, (
        "the newest choice is none to be repeated"
    )
