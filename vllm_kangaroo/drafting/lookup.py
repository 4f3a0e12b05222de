"""Drafts that are looked up: in a request's own text, where its newest tokens stood before, and in n-grams that were counted.

Such drafts cost no pass (prompt lookup: Saxena 2023; suffix decoding: arXiv 2411.04975). They are good where a request repeats
its prompt or itself, or says what the model often says, and worthless elsewhere; so each comes with a probability, and
each request learns as it goes how far to trust it. Below that trust the exit drafts instead. Host only: no torch, no vLLM.
Nothing but tokens decides, the request's own, or those of all requests where they share, so that all ranks of an engine find the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.drafting import ngram_table
from vllm_kangaroo.drafting.lookup_options import LookupOptions
from vllm_kangaroo.drafting.lookup_trust import SHARED, TABLE, LookupTrust, class_of
from vllm_kangaroo.drafting.ngram_table import NgramTable
from vllm_kangaroo.drafting.shared_ngrams import SharedNgrams
from vllm_kangaroo.drafting.text_index import TextIndex
from vllm_kangaroo.ladder.counters import LadderCounters

DOUBT = 0.5
"""Weight of the vote that what comes has never been seen."""
HEAVIEST = 10
"""Tokens of a match beyond which its vote weighs no more: a place weighs 2 to the power of its match."""
AGREED = 0.5
"""Share of the doubt about the likelier of two equal proposals that the other takes away, at its own probability."""
CONTRADICTED = 0.75
"""What is left of a proposal's probability for each other source that proposes another token."""


class Draft(NamedTuple):
    """A token that may come next."""

    token: int
    kind: int
    """Its class, see :mod:`vllm_kangaroo.drafting.lookup_trust`."""
    probability: float
    """That it is right, if those before it are."""


class RequestLookup:
    """Text, trust and newest proposal of one request."""

    def __init__(
        self,
        options: LookupOptions,
        table: NgramTable | None = None,
        shared: SharedNgrams | None = None,
    ) -> None:
        self.text = TextIndex()
        self.trust = LookupTrust()
        self._least = options.prompt_lookup_min
        self._threshold = options.threshold
        self._shared = shared
        counted = (TABLE, table), (SHARED, shared)
        self._counted = [(kind, ngrams) for kind, ngrams in counted if ngrams is not None]
        self._expected: list[Draft] = []
        """What is to come if the newest proposal is right, whether it was made or not."""
        self.survivals: list[float] = []
        """How likely each of the drafts that are being verified is reached and right."""

    def observe(self, tokens: Sequence[int]) -> int:
        """Append tokens that were accepted or sampled: at first the prompt, then those of each step.

        It is learnt whether drafts were right also of those that were not proposed, so that what was not trusted may come to be.

        Returns:
            How many of them are drafts that :meth:`propose` gave.
        """
        for draft, token in zip(self._expected, tokens, strict=False):
            right = draft.token == token
            self.trust.learn(draft.kind, draft.probability, right)
            if not right:
                break
        # Every token of a step but its last is a draft that was accepted.
        accepted = min(len(self.survivals), max(0, len(tokens) - 1))
        self._expected, self.survivals = [], []
        known = len(self.text)
        self.text.extend(tokens)
        if self._shared is not None:
            # At first the prompt is observed and one token of the answer with it.
            self._shared.learn(self.text.tokens, known or max(0, len(tokens) - 1))
        return accepted

    def propose(self, most: int, stop_ids: Collection[int | None] = ()) -> list[int]:
        """Drafts for what comes next, at most ``most``; none if none is to be trusted.

        Args:
            stop_ids: tokens behind which there are to be no drafts.
        """
        text = self.text.tokens
        end = len(text)
        places = self.text.places(self._least) if most > 0 else []
        newest = text[-ngram_table.LONGEST :]
        drafts: list[int] = []
        survival = 1.0
        while len(drafts) < most:
            # A place may have come to read the drafts themselves: the text then repeats itself with that period.
            following = [text[place] if place < end else drafts[place - end] for place, _ in places]
            draft = self._next(places, following, len(drafts), newest)
            if draft is None:
                break
            self._expected.append(draft)
            survival *= draft.probability
            if survival < self._threshold:
                break
            token = draft.token
            drafts.append(token)
            self.survivals.append(survival)
            if token in stop_ids:
                break
            newest = [*newest[1 - ngram_table.LONGEST :], token]
            places = [
                (place + 1, match)
                for (place, match), other in zip(places, following, strict=True)
                if other == token
            ]
        return drafts

    def _next(
        self, places: list[tuple[int, int]], following: list[int], drafted: int, newest: list[int]
    ) -> Draft | None:
        """The likeliest of what follows at most of the places that match the longest, and of what was counted."""
        found = [self._elected(places, following, drafted)] if places else []
        for kind, ngrams in self._counted:
            known = ngrams.after(newest)
            if known is not None:
                token, probability = known
                found.append(Draft(token, kind, self.trust.scaled(kind, probability)))
        if not found:
            return None
        best = max(found, key=lambda draft: draft.probability)
        likely = best.probability
        for other in found:
            if other is best:
                continue
            if other.token == best.token:
                likely += AGREED * (1.0 - likely) * other.probability
            else:
                likely *= CONTRADICTED
        return best._replace(probability=likely)

    def _elected(self, places: list[tuple[int, int]], following: list[int], drafted: int) -> Draft:
        votes: dict[int, float] = {}
        longest: dict[int, int] = {}
        every = DOUBT
        for (_, match), token in zip(places, following, strict=True):
            weight = 2.0 ** min(match, HEAVIEST)
            every += weight
            votes[token] = votes.get(token, 0.0) + weight
            longest[token] = max(match, longest.get(token, 0))
        token = max(votes, key=votes.__getitem__)
        kind = class_of(longest[token] + drafted)
        return Draft(token, kind, self.trust.of_match(kind, votes[token] / every))

    def cut(self, drafts: int) -> int:
        """See :meth:`Lookups.cut`; by how many it is fewer."""
        fewer = len(self.survivals) - drafts
        del self.survivals[drafts:]
        return fewer


class Lookups:
    """The lookups of all requests of an engine.

    Args:
        counters: take in what is proposed and accepted.
        table: for what a request's own text does not hold.
    """

    def __init__(
        self, options: LookupOptions, counters: LadderCounters, table: NgramTable | None = None
    ) -> None:
        self._options = options
        self._counters = counters
        self._table = table
        most = options.shared_contexts
        self.shared = SharedNgrams(most) if most else None
        """What requests learn of each other; None if nothing."""
        self._requests: dict[str, RequestLookup] = {}

    def __len__(self) -> int:
        return len(self._requests)

    def propose(
        self,
        request_id: str,
        tokens: NDArray[np.int32],
        most: int,
        stop_ids: Collection[int | None] = (),
    ) -> list[int]:
        """Drafts behind a request's tokens; to be called in each step that brings it some.

        Args:
            tokens: all that are final, prompt included, ``[tokens]``.
            most: most drafts that are of use, 0 if none are.
            stop_ids: see :meth:`RequestLookup.propose`.
        """
        own, counters = self._requests.get(request_id), self._counters
        if own is None or not own.text.begins(tokens):
            own = self._requests[request_id] = RequestLookup(
                self._options, self._table, self.shared
            )
        counters.lookup_accepted += own.observe(tokens[len(own.text) :].tolist())
        drafts = own.propose(most, stop_ids)
        counters.lookup_rounds += bool(drafts)
        counters.lookup_drafted += len(drafts)
        return drafts

    def survivals(self, request_id: str) -> list[float]:
        """How likely each of a request's drafts is to be accepted, those before it included."""
        return self._requests[request_id].survivals

    def cut(self, request_id: str, drafts: int) -> None:
        """Only so many of the drafts that were given are proposed."""
        own, counters = self._requests[request_id], self._counters
        counters.lookup_drafted -= own.cut(drafts)
        counters.lookup_rounds -= not drafts

    def drop(self, request_id: str) -> None:
        """Forget a request: it has ended, or begins anew."""
        self._requests.pop(request_id, None)
