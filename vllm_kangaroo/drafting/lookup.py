"""Drafts looked up in a request's own text: what followed the last time that its newest tokens stood there.

Such drafts cost no pass (prompt lookup: Saxena 2023; suffix decoding: arXiv 2411.04975). They are good where a request repeats
its prompt or itself, and worthless elsewhere, so that each request learns as it goes how far to trust a match of a given
length; below that trust the exit drafts instead. Host only: no torch, no vLLM. Nothing but the request's own tokens
decides, so that all ranks of an engine find the same.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.drafting.lookup_options import LookupOptions
from vllm_kangaroo.ladder.counters import LadderCounters

SHORTEST = 2
"""Tokens that must match at least."""
LONGEST = 16
"""Tokens of a match that are counted at most."""
PLACES = 32
"""Places that are compared at most, the newest first."""
BANDS = (2, 3, 5, 9)
"""Lengths of match from which each band begins; what is learnt of a band is learnt of all its lengths."""
PRIOR = (0.30, 0.45, 0.65, 0.85)
"""Share of first drafts that are right, by band, before anything is known of the request."""
PRIOR_WEIGHT = 4.0
"""First drafts that the prior counts for."""


def band_of(match: int) -> int:
    """Which of :data:`BANDS` a length of match falls into."""
    return max(at for at, begin in enumerate(BANDS) if match >= begin)


class LookupIndex:
    """The tokens of one request by what stands before them, kept up a token at a time.

    A pair of tokens leads to where it stood last, and each such place to the one before, as in LZ77's hash chains. How
    much more matches is counted backwards at a bounded number of places, so that a token costs a bounded number of steps
    however long the text is.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, int], int] = {}
        """Pair of tokens -> place behind its last occurrence but the text's own end."""
        self._before: list[int] = []
        """By place: the place before it that lies behind the same pair; 0 if there is none."""

    def __len__(self) -> int:
        return len(self._tokens)

    def begins(self, tokens: NDArray[np.int32]) -> bool:
        """Whether tokens go on where these end, by the last of these: a request's text may be replaced."""
        count = len(self._tokens)
        return count <= len(tokens) and (not count or self._tokens[-1] == int(tokens[count - 1]))

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens that are final."""
        own, after, before = self._tokens, self._after, self._before
        for token in tokens:
            place = len(own)
            if place < SHORTEST:
                before.append(0)
            else:
                pair = own[-2], own[-1]
                before.append(after.get(pair, 0))
                after[pair] = place
            own.append(token)

    def find(self, most: int) -> tuple[list[int], int]:
        """What followed where the most of the text's last tokens stood before, and how many match.

        Of equal matches the newest is taken. At most ``most`` tokens are given, and twice as many as match: a short match
        says little of what comes far behind it. Where the text ends before, it goes on as it would if the match went on.
        Both are empty and 0 if there is no match.
        """
        tokens, end = self._tokens, len(self._tokens)
        if end < SHORTEST or most < 1:
            return [], 0
        place = self._after.get((tokens[-2], tokens[-1]), 0)
        longest, best = 0, 0
        for _ in range(PLACES):
            if not place or longest == LONGEST:
                break
            match = SHORTEST
            while match < min(LONGEST, place) and tokens[place - match - 1] == tokens[~match]:
                match += 1
            if match > longest:
                longest, best = match, place
            place = self._before[place]
        wanted = min(most, 2 * longest)
        found = tokens[best : best + wanted]
        while len(found) < wanted:
            found.append(found[best - end])  # the text repeats itself every end - best tokens
        return found, longest


class LookupTrust:
    """How often the first draft of a match was right in one request, by band of length."""

    def __init__(self) -> None:
        self._right = [share * PRIOR_WEIGHT for share in PRIOR]
        self._tried = [PRIOR_WEIGHT] * len(PRIOR)

    def share(self, match: int) -> float:
        """Estimated probability that the first draft of a match of this length is right."""
        band = band_of(match)
        return self._right[band] / self._tried[band]

    def learn(self, match: int, right: bool) -> None:
        """Take in whether the first draft of a match was what came."""
        band = band_of(match)
        # Old experience fades: a request may turn from quoting to writing.
        self._right[band] = 0.9 * self._right[band] + right
        self._tried[band] = 0.9 * self._tried[band] + 1.0


class RequestLookup:
    """Index and trust of one request."""

    def __init__(self, options: LookupOptions) -> None:
        self.index = LookupIndex()
        self.trust = LookupTrust()
        self._options = options
        self._expected: tuple[int, int] | None = None
        """Length of the newest match, and what is to come if it is right."""
        self._proposed = 0
        """How many drafts are being verified."""

    def observe(self, tokens: Sequence[int]) -> int:
        """Append tokens that were accepted or sampled: at first the prompt, then those of each step.

        A match is learnt from whether its drafts were proposed or not, so that one that was not trusted may come to be.

        Returns:
            How many of them are drafts that :meth:`propose` gave.
        """
        if self._expected is not None and tokens:
            match, token = self._expected
            self.trust.learn(match, token == tokens[0])
        # Every token of a step but its last is a draft that was accepted.
        accepted = min(self._proposed, max(0, len(tokens) - 1))
        self._expected, self._proposed = None, 0
        self.index.extend(tokens)
        return accepted

    def propose(self, most: int, stop_ids: Collection[int | None] = ()) -> list[int]:
        """Drafts for what comes next, at most ``most``; none if no match is to be trusted.

        Args:
            stop_ids: tokens behind which there are to be no drafts.
        """
        drafts, match = self.index.find(most)
        if not drafts:
            return []
        self._expected = match, drafts[0]
        wanted = self._options
        trusted = self.trust.share(match) >= wanted.confidence_threshold
        if match < wanted.prompt_lookup_min or not trusted:
            return []
        end = next((at for at, token in enumerate(drafts, 1) if token in stop_ids), len(drafts))
        self._proposed = end
        return drafts[:end]

    @property
    def share(self) -> float:
        """See :meth:`Lookups.share`."""
        return self.trust.share(self._expected[0]) if self._expected and self._proposed else 0.0

    def cut(self, drafts: int) -> int:
        """See :meth:`Lookups.cut`; by how many it is fewer."""
        fewer = self._proposed - drafts
        self._proposed = drafts
        return fewer


class Lookups:
    """The lookups of all requests of an engine.

    Args:
        counters: take in what is proposed and accepted.
    """

    def __init__(self, options: LookupOptions, counters: LadderCounters) -> None:
        self._options = options
        self._counters = counters
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
        if own is None or not own.index.begins(tokens):
            own = self._requests[request_id] = RequestLookup(self._options)
        counters.lookup_accepted += own.observe(tokens[len(own.index) :].tolist())
        drafts = own.propose(most, stop_ids)
        counters.lookup_rounds += bool(drafts)
        counters.lookup_drafted += len(drafts)
        return drafts

    def share(self, request_id: str) -> float:
        """How likely the first of a request's drafts is right, 0 if it has none."""
        return self._requests[request_id].share

    def cut(self, request_id: str, drafts: int) -> None:
        """Only so many of the drafts that were given are proposed."""
        own, counters = self._requests[request_id], self._counters
        counters.lookup_drafted -= own.cut(drafts)
        counters.lookup_rounds -= not drafts

    def drop(self, request_id: str) -> None:
        """Forget a request: it has ended, or begins anew."""
        self._requests.pop(request_id, None)
