"""What a round of drafts and their intermediate verification brings, and takes."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_kangaroo.goodput.cost_model import CostModel
from vllm_kangaroo.goodput.least_squares import Floats


class CheckGains:
    """Moving averages over the rounds of all requests.

    Args:
        tokens_per_round: N_d, drafts of a round.
    """

    WEIGHT = 0.02
    """Of a new round."""
    PRIOR = 0.7
    """Share of drafts that the intermediate verifier chooses too, before any is seen."""

    def __init__(self, tokens_per_round: int) -> None:
        self.tokens_per_round = tokens_per_round
        self.agreement = self.PRIOR
        """Probability that the first draft of a round is the intermediate verifier's choice."""
        reached = [self.PRIOR**at for at in range(1, tokens_per_round + 1)]
        self.per_round = sum(reached) + 1.0 - reached[-1]
        """Tokens that a round brings the buffer."""

    def learn(self, drafted: Sequence[int], agreed: Sequence[int], gained: Sequence[int]) -> None:
        """Take in one round of several requests."""
        count = len(drafted)
        weight = 1.0 - (1.0 - self.WEIGHT) ** count
        self.agreement += weight * (sum(each > 0 for each in agreed) / count - self.agreement)
        self.per_round += weight * (sum(gained) / count - self.per_round)

    def seconds(self, costs: CostModel, requests: int, kv_tokens: float) -> float:
        """Of a round of so many requests."""
        drafts = self.tokens_per_round * costs.draft(requests, kv_tokens)
        return drafts + costs.check(requests * self.tokens_per_round, kv_tokens)

    def seconds_each(self, costs: CostModel, requests: Floats, kv_tokens: Floats) -> Floats:
        """Of each token of the buffer, by how many requests have rounds together."""
        found = self.tokens_per_round * costs.draft_along(requests, kv_tokens)
        found += costs.check_along(self.tokens_per_round * requests, kv_tokens)
        return found / max(self.per_round, 0.5)
