"""How likely a draft that was looked up is right: what holds in general, and what a request has shown of itself."""

from __future__ import annotations

from bisect import bisect_right

MATCHES = (1, 2, 3, 4, 5, 7, 10, 14)
"""Lengths of match from which each class begins; what is learnt of a class is learnt of all its lengths."""
SHARES = (0.45, 0.6, 0.75, 0.95)
"""Shares of the votes that part each class of matches in five."""
PRIOR = (
    (0.15, 0.27, 0.35, 0.40, 0.70),
    (0.20, 0.30, 0.43, 0.60, 0.80),
    (0.25, 0.33, 0.42, 0.63, 0.82),
    (0.30, 0.38, 0.50, 0.65, 0.80),
    (0.30, 0.40, 0.53, 0.66, 0.83),
    (0.30, 0.40, 0.50, 0.65, 0.87),
    (0.30, 0.40, 0.50, 0.65, 0.87),
    (0.40, 0.45, 0.60, 0.80, 0.96),
)
"""Share of drafts that were right, by class of match and share of the votes: of SmolLM2's answers to 306 prompts."""
TABLE = len(PRIOR)
"""The class of drafts of an n-gram table, which knows their probabilities itself."""
SHARED = TABLE + 1
"""The class of drafts from the answers of all requests."""
MOST = 0.98

_CLASS_OF = tuple(bisect_right(MATCHES, match) - 1 for match in range(MATCHES[-1] + 1))


def class_of(match: int) -> int:
    """Which class a length of match falls into, at least 1."""
    return _CLASS_OF[match] if match < len(_CLASS_OF) else _CLASS_OF[-1]


class LookupTrust:
    """By what factor drafts of each class are right more often in one request than in general."""

    WEIGHT = 4.0
    """Drafts expected to be right that the general experience counts for."""
    FADE = 0.9
    """What is left of a class's experience after each draft: a request may turn from quoting to writing."""

    def __init__(self) -> None:
        self._right = [self.WEIGHT] * (SHARED + 1)
        self._expected = [self.WEIGHT] * (SHARED + 1)

    def of_match(self, kind: int, share: float) -> float:
        """Probability of a draft for which places of this class of match have this share of the votes."""
        return self.scaled(kind, PRIOR[kind][bisect_right(SHARES, share)])

    def scaled(self, kind: int, probability: float) -> float:
        """Probability in this request of a draft that has this one in general."""
        return min(MOST, probability * self._right[kind] / self._expected[kind])

    def learn(self, kind: int, probability: float, right: bool) -> None:
        """Take in whether a draft of this class, said to be so likely, was what came."""
        weight, fade = self.WEIGHT, self.FADE
        self._right[kind] = weight + (self._right[kind] - weight) * fade + right
        self._expected[kind] = weight + (self._expected[kind] - weight) * fade + probability
