"""Is a request's acceptance length known well enough? The states of LAPS-SD (section 3 of the paper).

The paper leaves the test open. Ours requires a narrow confidence interval of the mean tokens a round brings, over the
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
        self.worth_rounds = 0.0
        """How many rounds of a request's own the prior is worth: 0 until enough requests have ended."""

    def learn(self, rounds: int, mean: float, variance: float) -> None:
        """Take in one ended request whose rounds were seen to vary."""
        self.requests += 1
        weight = 1.0 / min(self.requests, self.MEMORY)
        spread = variance / rounds  # of a mean over that many rounds, by chance alone
        self.mean += weight * (mean - self.mean)
        self._square += weight * (mean * mean - spread - self._square)
        self.within += weight * (variance - self.within)
        if self.requests >= self.ENOUGH:
            self.between = max(self._square - self.mean * self.mean, FLOOR)
            self.worth_rounds = max(self.within, FLOOR) / self.between


class AcceptanceEstimate:
    """Tokens a round of one request, by reports: a round, or several told together.

    The mean is that of all rounds, whatever the reports. The variance between rounds is worked out from that between
    reports, which is as large on average and less certain the fewer they are.
    """

    __slots__ = ("_block_n", "_block_reports", "_block_sum", "_square", "_sum", "reports", "rounds")

    def __init__(self) -> None:
        self.rounds = 0
        """Rounds since the mean last drifted, those of the block being filled left out."""
        self.reports = 0
        """In which these and those of the block came."""
        self._sum = 0.0
        self._square = 0.0
        self._block_n = 0
        self._block_sum = 0.0
        self._block_reports = 0

    def add(
        self, tokens: float, window: int, drift_sigmas: float, rounds: int = 1, least: float = FLOOR
    ) -> None:
        """A round and the tokens it brought, or several together.

        Args:
            window: rounds that are compared with those before.
            drift_sigmas: standard errors by which they may differ.
            least: variance between rounds that the errors are worked out from, if the request's own is smaller.
        """
        self._square += tokens * tokens / rounds
        self.reports += 1
        self._block_reports += 1
        self._block_sum += tokens
        self._block_n += rounds
        if self._block_n >= window:
            self._close_block(drift_sigmas, least)

    def _close_block(self, drift_sigmas: float, least: float) -> None:
        size, total = self._block_n, self._block_sum
        drifted = False
        if self.rounds >= size:
            variance = max(self.variance, least)
            error = sqrt(variance * (1.0 / size + 1.0 / self.rounds))
            drifted = abs(total / size - self._sum / self.rounds) > drift_sigmas * error
        if drifted:
            variance = self.variance
            self.rounds, self._sum, self.reports = size, total, self._block_reports + 1
            self._square = self._block_reports * variance + total * total / size
        else:
            self.rounds += size
            self._sum += total
        self._block_n, self._block_sum, self._block_reports = 0, 0.0, 0

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
        if self.reports < 2:
            return 1.0
        total = self._sum + self._block_sum
        return max(self._square - total * total / self.seen, 0.0) / (self.reports - 1)

    def half_width(self, prior: AcceptancePrior, window: int) -> float:
        """Half the 95 % confidence interval of the mean; infinite while there is too little to say."""
        precision = self.precision(prior, window)
        return Z95 / sqrt(precision) if precision else inf

    def precision(self, prior: AcceptancePrior, window: int) -> float:
        """One over the variance of the mean; 0 while there is too little to say."""
        seen = self.rounds + self._block_n
        if prior.worth_rounds:
            return (prior.worth_rounds + seen) / max(prior.within, FLOOR)
        if seen < window or self.reports < 2:
            return 0.0
        return seen / max(self.variance, FLOOR)

    def rounds_to(self, precision: float, prior: AcceptancePrior, window: int) -> float:
        """Further rounds until :meth:`precision` is above that, should they be like those before."""
        if prior.worth_rounds:
            return precision * max(prior.within, FLOOR) - prior.worth_rounds - self.seen
        return max(precision * max(self.variance, FLOOR), window) - self.seen
