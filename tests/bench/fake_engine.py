"""An engine without a model, by a clock of its own: every step takes the seconds it is said to."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any


class FakeClock:
    """Stands still unless something takes time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeEngine:
    """What is asked of vLLM's ``LLM`` to generate, and of its worker to count.

    Every prompt is answered by ``length`` tokens counting up from its own first, in steps of ``width`` tokens after the
    first one; a step takes ``seconds``.
    """

    def __init__(
        self, clock: FakeClock, length: int, width: int = 1, seconds: float = 1.0, tiers: int = 2
    ) -> None:
        self.clock = clock
        self.length = length
        self.width = width
        self.seconds = seconds
        self.prompts: list[int] = []
        """The first token of each prompt that it was given."""
        self.llm_engine = self
        self._running: dict[str, list[int]] = {}
        self._counted = dict.fromkeys(
            (
                *("verified", "drafted", "rounds", "draft_steps", "draft_seconds"),
                *("draft_pass_seconds", "checks", "check_seconds", "replaced"),
                *("lookup_rounds", "lookup_drafted", "lookup_accepted"),
            ),
            0,
        )
        self._passes = 0
        self._tiers = tiers

    def reset_prefix_cache(self) -> None:
        self.reset = True

    def add_request(self, name: str, prompt: dict[str, Sequence[int]], params: Any) -> None:
        assert self.reset, "a run over a full prefix cache"
        first = prompt["prompt_token_ids"][0]
        self.prompts.append(first)
        self._running[name] = [first + at for at in range(self.length)]

    def has_unfinished_requests(self) -> bool:
        return bool(self._running)

    def step(self) -> list[Any]:
        self.reset = False
        self.clock.now += self.seconds
        outputs = []
        for name, left in list(self._running.items()):
            count = 1 if len(left) == self.length else self.width
            new, rest = left[:count], left[count:]
            self._running[name] = rest
            if not rest:
                del self._running[name]
            self._passes += 1
            if len(left) < self.length:
                self._counted["drafted"] += self.width - 1
                self._counted["draft_steps"] += 1
                self._counted["draft_seconds"] += self.seconds / 4
            delta = SimpleNamespace(
                token_ids=new, finish_reason=None if rest else "length", spec_decode_metrics=None
            )
            outputs.append(SimpleNamespace(request_id=name, outputs=[delta], finished=not rest))
        return outputs

    def collective_rpc(self, what: str) -> list[dict[str, Any]]:
        assert what == "early_exit_counters"
        each = [self._passes] * self._tiers
        return [{**self._counted, "positions": each, "dropped": [0] * len(each), "passes": each}]
