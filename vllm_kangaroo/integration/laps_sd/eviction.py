"""KV blocks run out: which requests give theirs, and when vLLM's allocation has to be watched for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from vllm.v1.request import Request, RequestStatus

from vllm_kangaroo.integration.register.stand_in import StandIn
from vllm_kangaroo.laps_sd.policy import LapsSdPolicy


class BlockEviction:
    """Paused requests give their blocks first, the least urgent before others, then the least urgent of the running.

    Args:
        scheduler: vLLM's, its KV cache set up.
        paused: requests left out of steps with their KV kept, by name.
        evict: takes the blocks of a request that is not among the running.
    """

    def __init__(
        self,
        scheduler: Any,
        policy: LapsSdPolicy,
        paused: dict[str, Request],
        evict: Callable[[Request], None],
    ) -> None:
        self._scheduler = scheduler
        self._policy = policy
        self._paused = paused
        self._evict = evict
        manager = scheduler.kv_cache_manager
        self._watch = StandIn(manager, "allocate_slots", self._evicting)
        self._short_of_blocks: str | None = None
        """A chosen request that found no blocks in the step before."""

    def watch_allocation(self, scarce: bool) -> None:
        """Stand in for vLLM's allocation in steps in which blocks may run out; its own is called faster."""
        self._watch.switch(scarce)

    def _evicting(self, allocate_slots: Callable[..., Any]) -> Callable[..., Any]:
        """vLLM's allocation; while it finds no blocks, the paused give theirs."""

        def allocate_or_evict(request: Request, *args: Any, **kwargs: Any) -> Any:
            blocks = allocate_slots(request, *args, **kwargs)
            while blocks is None and self._paused:
                self.evict_paused()
                blocks = allocate_slots(request, *args, **kwargs)
            if blocks is None and request.status != RequestStatus.RUNNING:
                self._short_of_blocks = request.request_id
            return blocks

        return allocate_or_evict

    def evict_paused(self) -> None:
        """Take the blocks of the least urgent paused request; there must be one."""
        self._evict(self._paused[max(self._paused, key=self._policy.rank)])

    def evict_running_for(self, staged: Sequence[Request]) -> None:
        """If a chosen request found no blocks in the step before, take those of a running one that it outranks.

        Args:
            staged: waiting requests that are to start in this step.
        """
        name, self._short_of_blocks = self._short_of_blocks, None
        running: list[Request] = self._scheduler.running
        if name is None or not running or all(each.request_id != name for each in staged):
            return
        victim = max(running, key=lambda each: self._policy.rank(each.request_id))
        if self._policy.outranks(name, victim.request_id):
            running.remove(victim)
            self._evict(victim)
