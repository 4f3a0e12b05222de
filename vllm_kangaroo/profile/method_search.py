"""What ``profile`` asks of a method: which settings to try, and what each would have done and taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from vllm_kangaroo.methods import METHODS
from vllm_kangaroo.profile.costs import CostModel, HeadCost
from vllm_kangaroo.profile.draft_replay import Record, Work
from vllm_kangaroo.profile.head_reader import Head

if TYPE_CHECKING:
    from vllm_kangaroo.profile.time_passes import EngineTimer


class MethodSearch(Protocol):
    """A method's part of a profile; a module with these functions is one."""

    def configs(
        self, costs: CostModel, head: Head, exits: Sequence[int], most: int
    ) -> Iterator[dict[str, Any]]:
        """Every ``speculative_config`` to try that drafts with ``head``; none if the costs say nothing of them.

        Args:
            exits: those that bare heads were measured at.
            most: the largest number of drafts.
        """
        ...

    def timed(self, costs: CostModel, timer: EngineTimer) -> CostModel:
        """The costs with those of what this method does beside drafts and verifications; as given if it does nothing."""
        ...

    def replay(self, record: Record, head: Head, config: Mapping[str, Any]) -> Work:
        """Draft along one recorded answer."""
        ...

    def seconds(
        self,
        costs: CostModel,
        work: Work,
        head: Head,
        config: Mapping[str, Any],
        cost: HeadCost | None,
    ) -> float:
        """What that would take; ``cost`` is that of the head's adapter."""
        ...

    def short(self, config: Mapping[str, Any]) -> str:
        """The settings in a cell of a table."""
        ...


def searches() -> dict[str, MethodSearch]:
    """Of the methods that can be profiled, by name."""
    found = {name: method.load_search() for name, method in METHODS.items()}
    return {name: search for name, search in found.items() if search is not None}
