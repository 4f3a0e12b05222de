"""One request as the policy sees it."""

from __future__ import annotations

from vllm_kangaroo.laps_sd.acceptance import Acceptance
from vllm_kangaroo.laps_sd.engine_time import RequestId
from vllm_kangaroo.laps_sd.lengths import LengthLaw, RequestFacts

Key = tuple[int, float, float, float, int]
"""Class, starved or queue, state, remaining time, order of arrival: the smaller, the sooner."""


class Entry:
    """What the policy keeps of a request that has arrived and not ended."""

    __slots__ = (
        "acceptance",
        "arrived",
        "attained",
        "done",
        "estimate",
        "facts",
        "front_until",
        "key",
        "last_ran",
        "law",
        "look_again",
        "number",
        "perceptible",
        "priority",
        "prompt_left",
        "queue",
        "remaining",
        "request_id",
        "rounds",
        "running",
        "sinks_at",
        "started",
        "starved",
        "tokens",
        "version",
    )

    def __init__(
        self,
        request_id: RequestId,
        facts: RequestFacts,
        law: LengthLaw,
        priority: int,
        number: int,
        now: float,
    ) -> None:
        self.request_id = request_id
        self.facts = facts
        self.law = law
        self.priority = priority
        self.number = number
        """Order of arrival."""
        self.arrived = now
        self.last_ran = now
        self.started = False
        self.prompt_left = facts.prompt_tokens
        self.done = 0
        """Output tokens."""
        self.rounds = 0
        self.tokens = 0
        """Output tokens of those rounds."""
        self.attained = 0.0
        """Engine seconds charged (the paper's attained service)."""
        self.acceptance = Acceptance()
        self.perceptible = False
        self.remaining = 0.0
        """Engine seconds still to come, as estimated."""
        self.estimate: tuple[float, float] | None = None
        """Remaining and attained seconds when it first became perceptible."""
        self.queue = 0
        self.starved = False
        self.front_until = 0.0
        self.look_again = 0
        """Rounds after which its place is worked out anew."""
        self.sinks_at = 0.0
        """Attained seconds after which it is in a lower queue."""
        self.running = False
        self.version = 0
        self.key: Key = (priority, 0.0, 0.0, 0.0, number)
