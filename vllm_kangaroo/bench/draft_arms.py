"""One engine that drafts by several rules in turn: a run of each begins by telling it which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class ToldEngine:
    """An engine whose worker is told how to draft before each run.

    Args:
        calls: of ``LLM.collective_rpc``, name and arguments.
    """

    def __init__(self, llm: Any, *calls: tuple[str, dict[str, Any]]) -> None:
        self._llm = llm
        self._calls = calls

    def reset_prefix_cache(self) -> None:
        """As every run begins; the rule is set then."""
        for name, arguments in self._calls:
            self._llm.collective_rpc(name, kwargs=arguments)
        self._llm.reset_prefix_cache()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)


def fixed_length(llm: Any, length: int, tokens_per_round: int | None) -> ToldEngine:
    """So many drafts in each step."""
    return ToldEngine(llm, _lengths(length, tokens_per_round))


def by_table(
    llm: Any, entries: Sequence[tuple[int, int, int]], most: int, tokens_per_round: int | None
) -> ToldEngine:
    """As many as vLLM's table of batch sizes says."""
    table = ("set_draft_table", {"entries": [list(entry) for entry in entries]})
    return ToldEngine(llm, _lengths(most, tokens_per_round), table)


def by_bandit(llm: Any, lengths: Sequence[int], tokens_per_round: int | None) -> ToldEngine:
    """As many as a bandit over these lengths chooses."""
    bandit = ("set_draft_bandit", {"lengths": list(lengths)})
    return ToldEngine(llm, _lengths(max(lengths), tokens_per_round), bandit)


def _lengths(length: int, tokens_per_round: int | None) -> tuple[str, dict[str, Any]]:
    arguments = {"num_speculative_tokens": length, "tokens_per_round": tokens_per_round}
    return "set_draft_lengths", arguments
