"""Count what follows each few tokens in a model's answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from vllm_kangaroo.drafting.ngram_file import save_ngrams
from vllm_kangaroo.drafting.ngram_table import CERTAIN, DISCOUNT, LONGEST, UNSEEN, hashed_along
from vllm_kangaroo.training.answers.shards import Shard, ShardError, shards
from vllm_kangaroo.training.ngrams.ngram_options import NgramOptions


class Followers(NamedTuple):
    """The most frequent follower of each context, contexts ascending: vectors ``[contexts]``."""

    contexts: NDArray[np.uint64]
    tokens: NDArray[np.int32]
    counts: NDArray[np.int64]
    """How often this token followed."""
    seen: NDArray[np.int64]
    """How often any did."""

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """That the follower comes, ``[contexts]``."""
        found: NDArray[np.float64] = (self.counts - DISCOUNT) / (self.seen + UNSEEN)
        return found


def train_ngrams(options: NgramOptions, console: Console) -> None:
    """Write a table of the n-grams in the answers.

    Raises:
        ShardError: a directory that holds no answers, or none that says anything twice.
    """
    contexts, tokens = [], []
    answered = 0
    for directory in options.answers:
        for shard in shards(directory):
            for order, (context, following) in enumerate(_pairs(shard), 1):
                contexts.append(context)
                tokens.append(following)
                answered += len(following) if order == 1 else 0
    names = ", ".join(f"'{directory}'" for directory in options.answers)
    if not answered:
        raise ShardError(f"{names} holds no answers; make some with 'vllm-kangaroo train answers'")
    found = most_frequent(np.concatenate(contexts), np.concatenate(tokens))
    kept = chosen(found, options)
    if not len(kept.contexts):
        raise ShardError(
            f"nothing follows a context {options.least_count} times in the answers of {names}; make more answers, "
            "or lower --least-count"
        )
    stored = np.rint(kept.probabilities * CERTAIN).astype(np.uint8)
    metadata = {
        "format": "vllm-kangaroo n-grams 1",
        "answer_tokens": str(answered),
        "least_count": str(options.least_count),
        "least_probability": str(options.least_probability),
    }
    save_ngrams(options.out, kept.contexts, kept.tokens, stored, metadata)
    console.print(f"{len(kept.contexts)} contexts of {answered} answer tokens")


def _pairs(shard: Shard) -> Iterator[tuple[NDArray[np.uint64], NDArray[np.int32]]]:
    """By length of context: the context before each token of an answer, and that token."""
    tokens = shard.token_ids
    starts = np.cumsum(shard.lengths) - shard.lengths
    begins = np.repeat(starts, shard.lengths)
    at = np.arange(len(tokens))
    answered = at - begins >= np.repeat(shard.answer_starts, shard.lengths)
    at, begins = at[answered], begins[answered]
    context = np.zeros(len(at), dtype=np.uint64)
    for back in range(1, LONGEST + 1):
        inside = at - back >= begins
        at, begins, context = at[inside], begins[inside], context[inside]
        context = hashed_along(context, tokens[at - back])
        yield context, tokens[at]


def most_frequent(contexts: NDArray[np.uint64], tokens: NDArray[np.int32]) -> Followers:
    """Of pairs ``[n]``, the token that follows each context most often, the least of equals."""
    order = np.lexsort((tokens, contexts))
    contexts, tokens = contexts[order], tokens[order]
    new_context = np.concatenate(([True], contexts[1:] != contexts[:-1]))
    new_pair = new_context | np.concatenate(([True], tokens[1:] != tokens[:-1]))
    pairs = np.flatnonzero(new_pair)
    counts = np.diff(np.append(pairs, len(tokens)))
    owner = np.cumsum(new_context[pairs]) - 1
    best = np.lexsort((tokens[pairs], -counts, owner))
    best = best[np.concatenate(([True], owner[best][1:] != owner[best][:-1]))]
    firsts = np.flatnonzero(new_context)
    seen = np.diff(np.append(firsts, len(tokens)))
    return Followers(contexts[firsts], tokens[pairs][best], counts[best], seen)


def chosen(found: Followers, options: NgramOptions) -> Followers:
    """Those that are frequent and likely enough, and of them the ones that are right the most often."""
    enough = (found.counts >= options.least_count) & (
        found.probabilities >= options.least_probability
    )
    which = np.flatnonzero(enough)
    if len(which) > options.contexts:
        often = np.argsort(-found.counts[which], kind="stable")[: options.contexts]
        which = np.sort(which[often])
    return Followers(
        found.contexts[which], found.tokens[which], found.counts[which], found.seen[which]
    )
