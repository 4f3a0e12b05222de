"""What follows a few tokens in the answers of all requests of an engine, counted as they are written.

Suffix decoding keeps a tree of earlier answers (arXiv 2411.04975); here each context keeps one token, the one that a
majority vote over its followers leaves (Boyer and Moore), so that a token costs a handful of steps and a context a hundred bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from vllm_kangaroo.drafting.ngram_table import DISCOUNT, LONGEST, UNSEEN, hashed

ONCE = (0.0, 0.1, 0.2, 0.3, 0.4)
"""Probability of what was seen once, by length of context: of SmolLM2's answers to 306 prompts."""


class SharedNgrams:
    """Contexts of one to :data:`vllm_kangaroo.drafting.ngram_table.LONGEST` tokens of answers, the newest of them.

    Args:
        most: contexts that are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._follows: dict[int, tuple[int, int, int]] = {}
        """By hash, those touched last at the end: token, its votes over the others', and how often any followed."""

    def __len__(self) -> int:
        return len(self._follows)

    def learn(self, tokens: Sequence[int], start: int) -> None:
        """Count the tokens of a text from position ``start`` on, those before being contexts alone."""
        follows = self._follows
        for at in range(start, len(tokens)):
            token, context = tokens[at], 0
            for back in range(1, min(LONGEST, at) + 1):
                context = hashed(context, tokens[at - back])
                held, votes, seen = follows.pop(context, (token, 0, 0))
                if held == token:
                    votes += 1
                elif votes > 1:
                    votes -= 1
                else:
                    held, votes = token, 1
                follows[context] = held, votes, seen + 1
        while len(follows) > self._most:
            del follows[next(iter(follows))]

    def after(self, tokens: Sequence[int]) -> tuple[int, float] | None:
        """What follows the longest context that ``tokens`` end in, and its probability; None if none is known."""
        found, length, context = None, 0, 0
        for at in range(1, min(LONGEST, len(tokens)) + 1):
            context = hashed(context, tokens[-at])
            longer = self._follows.get(context)
            if longer is not None:
                found, length = longer, at
        if found is None:
            return None
        token, votes, seen = found
        return token, ONCE[length] if seen == 1 else (votes - DISCOUNT) / (seen + UNSEEN)
