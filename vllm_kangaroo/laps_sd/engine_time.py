"""Engine time: what a step cost each request in it, and what a round or a prompt token costs by experience.

Service is counted in seconds and not in tokens, because with speculation a request's tokens do not all cost the same:
a round of five accepted drafts takes as long as a round of none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

RequestId = str | int
"""vLLM's name of a request, or a simulation's number."""


class RequestProgress(NamedTuple):
    """What one request did in one step, or in several of them told at once."""

    request_id: RequestId
    prompt_tokens: int = 0
    """Prompt tokens (or, after an eviction, tokens to recompute) that were run."""
    rounds: int = 0
    """Decoding rounds: passes that verified drafts, or produced a token without any."""
    drafted: int = 0
    new_tokens: int = 0


class CostAverages:
    """Seconds charged per decoding round and per prompt token, as moving averages."""

    __slots__ = ("_decoded", "_prefilled", "per_prompt_token", "per_round")

    WEIGHT = 0.01

    def __init__(self) -> None:
        self.per_round = 0.0
        self.per_prompt_token = 0.0
        self._decoded = 0
        self._prefilled = 0

    def charge(self, step: Sequence[RequestProgress], seconds: float) -> list[float]:
        """Share the wall time of a step out by positions processed; the shares add up to it.

        Returns:
            Seconds for each request of ``step``, in order.
        """
        total = 0
        for one in step:
            total += one.prompt_tokens + one.rounds + one.drafted
        rate = seconds / total if total else 0.0
        shares = []
        decode_s, rounds, prompt = 0.0, 0, 0
        for one in step:
            positions = one.rounds + one.drafted
            shares.append(rate * (one.prompt_tokens + positions))
            prompt += one.prompt_tokens
            if one.rounds:
                decode_s += rate * positions
                rounds += one.rounds
        self.observe(rate, decode_s, rounds, prompt)
        return shares

    def observe(self, rate: float, decode_s: float, rounds: int, prompt: int) -> None:
        """Take a step into the averages.

        Args:
            rate: seconds per position.
            decode_s: seconds of all rounds together.
            rounds: how many they were.
            prompt: prompt tokens in the step.
        """
        if rounds:
            self._decoded += 1
            weight = max(1.0 / self._decoded, self.WEIGHT)
            self.per_round += weight * (decode_s / rounds - self.per_round)
        if prompt:
            self._prefilled += 1
            weight = max(1.0 / self._prefilled, self.WEIGHT)
            self.per_prompt_token += weight * (rate - self.per_prompt_token)
