"""What the policy keeps of one request."""

from __future__ import annotations

from vllm_kangaroo.laps_sd.acceptance import AcceptanceEstimate
from vllm_kangaroo.laps_sd.engine_time import RequestId
from vllm_kangaroo.laps_sd.lengths import LengthDistribution, RequestFacts

Key = tuple[int, float, float, float, int]
"""Priority class, starved or queue, state, remaining time, order of arrival: the smaller, the sooner."""


class RequestState:
    """A request that has arrived and not ended."""

    __slots__ = (
        "acceptance",
        "arrived",
        "attained",
        "demoted_at",
        "done",
        "estimate",
        "facts",
        "front_until",
        "key",
        "last_ran",
        "length",
        "number",
        "perceptible",
        "priority",
        "prompt_left",
        "queue",
        "remaining",
        "request_id",
        "revisit_at",
        "rounds",
        "running",
        "started",
        "starved",
        "tokens",
        "version",
    )

    def __init__(
        self,
        request_id: RequestId,
        facts: RequestFacts,
        length: LengthDistribution,
        priority: int,
        number: int,
        now: float,
    ) -> None:
        self.request_id = request_id
        self.facts = facts
        self.length = length
        """What is predicted of the output tokens."""
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
        self.acceptance = AcceptanceEstimate()
        self.perceptible = False
        self.remaining = 0.0
        """Engine seconds still to come, as estimated."""
        self.estimate: tuple[float, float] | None = None
        """Remaining and attained seconds when it first became perceptible."""
        self.queue = 0
        self.starved = False
        self.front_until = 0.0
        self.revisit_at = 0
        """Rounds after which its place is worked out anew."""
        self.demoted_at = 0.0
        """Attained seconds after which it is in a lower queue."""
        self.running = False
        self.version = 0
        """Moves on with every change of place, so that heaps can tell what is out of date."""
        self.key: Key = (priority, 0.0, 0.0, 0.0, number)
