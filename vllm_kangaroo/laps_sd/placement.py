"""Where a request stands: its state, remaining time, queue and key, from what is known of it now."""

from __future__ import annotations

from bisect import bisect_left
from math import inf

from vllm_kangaroo.laps_sd.acceptance import Z95, AcceptancePrior
from vllm_kangaroo.laps_sd.engine_time import CostAverages
from vllm_kangaroo.laps_sd.policy_options import LapsSdOptions
from vllm_kangaroo.laps_sd.request_state import RequestState


class Placement:
    """Puts requests into queues by attained time until they are perceptible, by remaining time from then on.

    Args:
        costs: measured time of rounds and prompt tokens.
        prior: of ended requests' acceptance.
    """

    REVISIT_AFTER = 0.5
    """Share of the rounds left after which the place of a running perceptible request is worked out anew."""

    def __init__(self, options: LapsSdOptions, costs: CostAverages, prior: AcceptancePrior) -> None:
        self._options = options
        self._costs = costs
        self._prior = prior
        self._bounds: list[float] = []
        self._base = 0.0

    def follow_costs(self) -> None:
        """Follow the measured cost of a round, in jumps: a request's place should not move with every step."""
        options = self._options
        base = options.base_threshold_s or options.base_rounds * self._costs.per_round
        if base > 0.0 and not 0.8 < self._base / base < 1.25:
            self._base = base
            self._bounds = [base * options.growth**k for k in range(options.queues - 1)]

    def place(self, request: RequestState) -> None:
        """Set what of ``request`` depends on all the rest."""
        options, prior, costs = self._options, self._prior, self._costs
        acceptance, bounds = request.acceptance, self._bounds
        known = prior.worth_rounds + request.rounds
        if known > 0.0:
            per_round = (prior.worth_rounds * prior.mean + request.tokens) / known
        else:
            per_round = prior.mean
        per_round = max(per_round, 1.0)
        wanted = (Z95 / (options.epsilon * per_round)) ** 2
        request.perceptible = acceptance.precision(prior, options.window) > wanted
        most = max(request.facts.max_tokens - request.done, 1)
        rounds_left = max(min(request.length.remaining(request.done), most) / per_round, 1.0)
        request.remaining = (
            request.prompt_left * costs.per_prompt_token + rounds_left * costs.per_round
        )
        if request.perceptible:
            queue = bisect_left(bounds, request.remaining)
            request.revisit_at = request.rounds + max(1, int(rounds_left * self.REVISIT_AFTER))
            request.demoted_at = inf
            if request.estimate is None and request.rounds:
                request.estimate = (request.remaining, request.attained)
        else:
            queue = bisect_left(bounds, request.attained)
            missing = acceptance.rounds_to(wanted, prior, options.window)
            request.revisit_at = request.rounds + max(1, int(min(missing / 2, 2 * options.window)))
            request.demoted_at = bounds[queue] if queue < len(bounds) else inf
            if not bounds:  # no cost has been measured yet
                request.revisit_at = request.rounds
        request.queue = queue
        priority, number = request.priority, request.number
        if request.starved:
            request.key = (priority, -1.0, request.last_ran, 0.0, number)
        elif request.perceptible:
            request.key = (priority, queue, 1.0, request.remaining, number)
        else:
            request.key = (priority, queue, 0.0, 0.0, number)
