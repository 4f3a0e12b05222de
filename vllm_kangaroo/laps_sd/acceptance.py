"""Is a request's acceptance length known well enough? The states of LAPS-SD (section 3 of the paper).

The paper leaves the test open. Ours asks for a narrow confidence interval of the mean tokens a round brings, over the
rounds since it last drifted: it is what the time of a request depends on, however many drafts a round has. What ended
requests were like serves as a prior, so that where all requests are alike one need not be watched for long.
"""

from __future__ import annotations

from math import inf, sqrt

FLOOR = 1e-4
"""Least variance taken to be possible."""
Z95 = 1.96
"""Half-width of a 95 % interval of a normal distribution, in standard errors."""


class AcceptancePrior:
    """How acceptance lengths of ended requests spread: between requests, and between rounds of one.

    Averages over about the last thousand of them, so that it follows a change of traffic.
    """

    MEMORY = 1000
    ENOUGH = 16

    def __init__(self) -> None:
        self.requests = 0
        self.mean = 0.0
        self._square = 0.0
        self.within = 0.0
        self.between = inf
        """Variance of the true means of requests; infinite until enough requests have ended."""

    def learn(self, rounds: int, mean: float, variance: float) -> None:
        """Take in one ended request of at least two rounds."""
        self.requests += 1
        weight = 1.0 / min(self.requests, self.MEMORY)
        spread = variance / rounds  # of a mean over that many rounds, by chance alone
        self.mean += weight * (mean - self.mean)
        self._square += weight * (mean * mean - spread - self._square)
        self.within += weight * (variance - self.within)
        if self.requests >= self.ENOUGH:
            self.between = max(self._square - self.mean * self.mean, FLOOR)

    @property
    def worth_rounds(self) -> float:
        """How many rounds of a request's own the prior is worth: 0 until it knows something."""
        return 0.0 if self.between == inf else max(self.within, FLOOR) / self.between


class Acceptance:
    """Tokens a round of one request, round by round."""

    __slots__ = ("_block_n", "_block_sum", "_square", "_sum", "rounds")

    def __init__(self) -> None:
        self.rounds = 0
        """Rounds since the mean last drifted, those of the block being filled left out."""
        self._sum = 0.0
        self._square = 0.0
        self._block_n = 0
        self._block_sum = 0.0

    def add(
        self,
        tokens: float,
        window: int,
        drift_sigmas: float,
        rounds: int = 1,
        squares: float | None = None,
    ) -> None:
        """A round and the tokens it brought; or several, with the sum of the squares of what each brought."""
        self._square += tokens * tokens if squares is None else squares
        self._block_sum += tokens
        self._block_n += rounds
        if self._block_n >= window:
            self._close_block(drift_sigmas)

    def _close_block(self, drift_sigmas: float) -> None:
        size, total = self._block_n, self._block_sum
        drifted = False
        if self.rounds >= size:
            error = sqrt(max(self.variance, FLOOR) * (1.0 / size + 1.0 / self.rounds))
            drifted = abs(total / size - self._sum / self.rounds) > drift_sigmas * error
        if drifted:
            variance = self.variance
            self.rounds, self._sum = size, total
            self._square = size * variance + total * total / size
        else:
            self.rounds += size
            self._sum += total
        self._block_n, self._block_sum = 0, 0.0

    @property
    def seen(self) -> int:
        """Rounds since the mean last drifted."""
        return self.rounds + self._block_n

    @property
    def mean(self) -> float:
        """Of those rounds; at least one is needed."""
        return (self._sum + self._block_sum) / self.seen

    @property
    def variance(self) -> float:
        """Between those rounds, never negative."""
        seen = self.seen
        if seen < 2:
            return 1.0
        mean = (self._sum + self._block_sum) / seen
        return max(self._square - seen * mean * mean, 0.0) / (seen - 1)

    def half_width(self, prior: AcceptancePrior, window: int) -> float:
        """Half the 95 % confidence interval of the mean; infinite while there is too little to say."""
        seen = self.seen
        if prior.between < inf:
            return Z95 / sqrt(1.0 / prior.between + seen / max(prior.within, FLOOR))
        if seen < window:
            return inf
        return Z95 * sqrt(max(self.variance, FLOOR) / seen)

    def rounds_to(self, half_width: float, prior: AcceptancePrior, window: int) -> float:
        """Further rounds until :meth:`half_width` is that narrow, should they be like those before."""
        seen, wanted = self.seen, (Z95 / half_width) ** 2  # one over the variance to reach
        if prior.between < inf:
            return (wanted - 1.0 / prior.between) * max(prior.within, FLOOR) - seen
        return max(wanted * max(self.variance, FLOOR), window) - seen
