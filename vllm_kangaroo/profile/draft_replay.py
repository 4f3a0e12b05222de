"""What drafting would have done on recorded text: the methods replayed without a model.

A record holds, for each token that greedy decoding produced, what every exit would have drafted in
its place and how sure it was. Up to the first wrong draft of a round that is exactly what the engine
sees. Drafts after a wrong one are rejected whatever they are; how many of them there are is taken
from the confidences along the true text.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Guesses:
    """Of one exit head along an answer: tokens ``[n]`` and their probabilities ``[n]``."""

    token_ids: NDArray[np.int64]
    confidences: NDArray[np.float64]


@dataclass(frozen=True)
class Record:
    """An answer of ``n + 1`` tokens, the first of which the prompt's pass gave.

    ``target [n]`` are the others. ``guesses`` are by exit head: the exit's number, or an adapter's
    name.
    """

    target: NDArray[np.int64]
    guesses: dict[str, Guesses]
    max_tokens: int
    stop_ids: Collection[int] = ()

    def limit(self, done: int, most: int) -> int:
        """Most drafts of the round that begins after ``done`` of `target`."""
        return max(0, min(most, self.max_tokens - done - 2))


@dataclass
class Work:
    """What replayed rounds would have cost, in passes."""

    tokens: int = 0
    """Tokens produced by verification."""
    verified: list[int] = field(default_factory=list)
    """Positions that each round's verification ran: its drafts and one."""
    draft_steps: int = 0
    checks: int = 0
    """Passes of the middle tier."""
    accepted: int = 0

    def add(self, other: Work) -> None:
        """Count another replay's work too."""
        self.tokens += other.tokens
        self.verified += other.verified
        self.draft_steps += other.draft_steps
        self.checks += other.checks
        self.accepted += other.accepted

    @property
    def acceptance_length(self) -> float:
        """Tokens per round, the target's own included."""
        return self.tokens / len(self.verified) if self.verified else 0.0


def chain(
    guesses: Guesses, start: int, most: int, threshold: float, stop_ids: Collection[int]
) -> list[int]:
    """The drafts of a round that begins at ``start``, as Kangaroo's second early exit ends it."""
    drafts: list[int] = []
    for at in range(start, min(start + most, len(guesses.token_ids))):
        token = int(guesses.token_ids[at])
        drafts.append(token)
        if guesses.confidences[at] < threshold or token in stop_ids:
            break
    return drafts


def _agreeing(drafts: list[int], target: NDArray[np.int64], start: int) -> int:
    for at, token in enumerate(drafts):
        if start + at >= len(target) or token != target[start + at]:
            return at
    return len(drafts)


def kangaroo(record: Record, head: str, *, drafts: int, threshold: float) -> Work:
    """Replay Kangaroo (arXiv 2404.18911): at most ``drafts`` a round, until one is below ``threshold``."""
    work, done = Work(), 0
    while done < len(record.target):
        most = record.limit(done, drafts)
        chained = chain(record.guesses[head], done, most, threshold, record.stop_ids)
        done = _verify(work, record, chained, done)
        work.draft_steps += len(chained)
    return work


def hispec(
    record: Record, head: str, checker: str, *, per_round: int, buffer: int, threshold: float = 0.0
) -> Work:
    """Replay HiSpec (arXiv 2510.01336): rounds of ``per_round`` drafts until ``buffer`` is full.

    ``threshold`` ends a round's drafting early as in `kangaroo`; 0 is off.
    """
    work, done = Work(), 0
    while done < len(record.target):
        capacity = record.limit(done, buffer)
        gathered: list[int] = []
        while len(gathered) < capacity and not (gathered and gathered[-1] in record.stop_ids):
            at = done + len(gathered)
            most = min(per_round, capacity - len(gathered))
            drafts = chain(record.guesses[head], at, most, threshold, record.stop_ids)
            if not drafts:
                break  # beyond what is recorded
            work.draft_steps += len(drafts)
            work.checks += 1
            own = record.guesses[checker].token_ids
            agreed = _agreeing(drafts, own, at)
            gathered += drafts[:agreed]
            if agreed < len(drafts):
                gathered.append(int(own[at + agreed]))
        work.checks += bool(gathered)  # verification runs the middle tier over the last token
        done = _verify(work, record, gathered, done)
    return work


def _verify(work: Work, record: Record, drafts: list[int], done: int) -> int:
    accepted = _agreeing(drafts, record.target, done)
    gained = min(accepted + 1, len(record.target) - done)
    work.accepted += min(accepted, gained)
    work.verified.append(len(drafts) + 1)
    work.tokens += gained
    return done + gained
