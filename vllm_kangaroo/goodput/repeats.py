"""Steps that draft like the one before them without being looked at: to look takes time too, much of a small model's step."""

from __future__ import annotations

from dataclasses import dataclass

from vllm_kangaroo.goodput.acceptance import Ints
from vllm_kangaroo.goodput.draft_round import Starters, Verification
from vllm_kangaroo.goodput.least_squares import Floats

LOOK_EVERY = 0.05
"""Seconds between two steps that are looked at."""
LEARNING = 256
"""Steps that are looked at all the same, before any is repeated: little is known then."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A choice by which all drafted, and what it was made for."""

    slots: bytes
    limits: bytes
    who: Ints
    """Places of the requests: all of them."""
    chains: Floats
    """Theirs, ``[who, positions]``."""
    before: Verification
    """As it was before anything was drafted; not to be changed."""
    seconds: float
    """Of such a step."""


class Repeats:
    """The newest choice, for as long as it may be made again unseen.

    By predicted seconds rather than a clock, so that all ranks of an engine repeat alike.
    """

    def __init__(self) -> None:
        self._kept: Kept | None = None
        self._steps = 0
        self._looks = 0
        self._unseen = 0.0
        self._left = 0.0
        """Predicted seconds until the next look."""

    def keep(self, choice: Kept | None) -> None:
        """A step has been looked at; None if it is none to be repeated."""
        self._looks += 1
        self._kept = choice if self._looks >= LEARNING else None
        self._left = LOOK_EVERY - (choice.seconds if choice is not None else 0.0)

    def again(self, slots: Ints, contexts: Ints, limits: Ints) -> tuple[Ints, Starters] | None:
        """Who drafts once more, as :meth:`GoodputController.choose` says it; None if it is to be asked."""
        kept = self._kept
        if kept is None or self._left < kept.seconds:
            return None
        if slots.tobytes() != kept.slots or limits.tobytes() != kept.limits:
            return None
        self._left -= kept.seconds
        self._steps += 1
        self._unseen += kept.seconds
        before = kept.before
        verification = Verification(before.load, before.tokens, before.expected)
        return kept.who, Starters(verification, slots, contexts, limits, kept.chains)

    def taken(self) -> tuple[int, float]:
        """How many steps were repeated since the last call, and their predicted seconds."""
        found = self._steps, self._unseen
        self._steps, self._unseen = 0, 0.0
        return found
