"""Drafts looked up in a request's own text: what followed the last time that its newest tokens stood there.

Such drafts cost no pass (prompt lookup: Saxena 2023; suffix decoding: arXiv 2411.04975). They are good where a request repeats
its prompt or itself, and worthless elsewhere, so that each request learns from its own verifications how far to trust a
match of a given length; below that trust the exit drafts instead. Host only: no torch, no vLLM.
"""

from __future__ import annotations

from collections.abc import Sequence

SHORTEST = 2
"""Tokens that must match at least."""
LONGEST = 16
"""Tokens of a match that are counted at most."""
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

    A pair of tokens leads to where it stood last; how much more matches is then counted backwards, so that a token
    costs a bounded number of steps however long the text is.
    """

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, int], int] = {}
        """Pair of tokens -> place behind its last occurrence but the text's own end."""

    def __len__(self) -> int:
        return len(self._tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """Append tokens that are final."""
        for token in tokens:
            if len(self._tokens) >= SHORTEST:
                self._after[self._tokens[-2], self._tokens[-1]] = len(self._tokens)
            self._tokens.append(token)

    def find(self, most: int) -> tuple[list[int], int]:
        """What followed where the text's last tokens stood before, at most ``most`` tokens, and how many match.

        No more tokens are given than match: a short match says little of what comes far behind it. Both are empty
        and 0 if there is no match.
        """
        tokens = self._tokens
        if len(tokens) < SHORTEST or most < 1:
            return [], 0
        place = self._after.get((tokens[-2], tokens[-1]))
        if place is None:
            return [], 0
        match = SHORTEST
        end = len(tokens)
        while match < min(LONGEST, place) and tokens[place - match - 1] == tokens[end - match - 1]:
            match += 1
        return tokens[place : place + min(most, match)], match


class LookupTrust:
    """How often the first draft of a match was right in one request, by band of length."""

    def __init__(self) -> None:
        self._right = [share * PRIOR_WEIGHT for share in PRIOR]
        self._tried = [PRIOR_WEIGHT] * len(PRIOR)

    def share(self, match: int) -> float:
        """Estimated probability that the first draft of a match of this length is accepted."""
        band = band_of(match)
        return self._right[band] / self._tried[band]

    def learn(self, match: int, accepted: int) -> None:
        """Take in a verification: how many drafts of a match were accepted."""
        band = band_of(match)
        # Old experience fades: a request may turn from quoting to writing.
        self._right[band] = 0.9 * self._right[band] + (accepted > 0)
        self._tried[band] = 0.9 * self._tried[band] + 1.0


class RequestLookup:
    """Index, trust and the match under verification of one request.

    Args:
        least: drafts are taken from the text if the first of them is right with this probability or more.
    """

    def __init__(self, least: float) -> None:
        self.index = LookupIndex()
        self.trust = LookupTrust()
        self._least = least
        self._match = 0
        """Length of the match whose drafts are being verified; 0 if none are."""

    def propose(self, tokens: Sequence[int], most: int) -> list[int]:
        """Drafts behind ``tokens``, all of the request's so far, at most ``most``; none if a match is not to be trusted.

        Tokens beyond those of the last call are those that were accepted or sampled since: a verification of what was
        proposed then is learnt from.
        """
        new = tokens[len(self.index) :]
        if self._match:
            self.trust.learn(self._match, len(new) - 1)
        self._match = 0
        self.index.extend(new)
        drafts, match = self.index.find(most)
        if not drafts or self.trust.share(match) < self._least:
            return []
        self._match = match
        return drafts
