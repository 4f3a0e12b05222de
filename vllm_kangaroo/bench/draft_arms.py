"""One engine that drafts by several rules in turn: a run of each begins by telling it which.

Ways of drafting that share an engine are compared without what tells two processes of the same engine apart, which may be
more than what tells the ways apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_kangaroo.options import parse_options

Call = tuple[str, dict[str, Any]]


class ToldEngine:
    """An engine whose worker is told how to draft before each run.

    Args:
        calls: of ``LLM.collective_rpc``, name and arguments.
    """

    def __init__(self, llm: Any, *calls: Call) -> None:
        self._llm = llm
        self._calls = calls

    def reset_prefix_cache(self) -> None:
        """As every run begins; the rule is set then."""
        for name, arguments in self._calls:
            self._llm.collective_rpc(name, kwargs=arguments)
        self._llm.reset_prefix_cache()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._llm, name)


class DraftArms:
    """Ways of drafting of one engine under goodput control.

    Args:
        llm: started by :attr:`started_with`, with :data:`vllm_kangaroo.integration.inspect.inspection.INSPECTION`.
        config: ``speculative_config`` of a method of ours, without goodput.
        longest: most drafts of any way.
    """

    def __init__(self, llm: Any, config: Mapping[str, Any], longest: int) -> None:
        self._llm = llm
        self._config = config
        self._longest = longest

    @staticmethod
    def started_with(config: Mapping[str, Any], longest: int) -> dict[str, Any]:
        """The ``speculative_config`` of an engine that can do all of it."""
        most = max(longest, _most(config))
        return {**config, "num_speculative_tokens": most, "goodput": True}

    def controlled(self) -> ToldEngine:
        """Goodput control's own choice, up to the config's number of drafts."""
        threshold = float(self._config.get("confidence_threshold") or 0.0)
        return self._told(self._lengths(_most(self._config), threshold), weighed=True)

    def fixed(self, length: int) -> ToldEngine:
        """So many drafts in each step, or none."""
        if length:
            return self._told(self._lengths(length))
        return self.by_table([(1, 1, 0)])

    def by_table(self, entries: Sequence[tuple[int, int, int]]) -> ToldEngine:
        """As many as vLLM's table of batch sizes says."""
        table = "set_draft_table", {"entries": [list(entry) for entry in entries]}
        return self._told(self._lengths(self._longest), table)

    def by_bandit(self, lengths: Sequence[int]) -> ToldEngine:
        """As many as a bandit over these lengths chooses."""
        bandit = "set_draft_bandit", {"lengths": list(lengths)}
        return self._told(self._lengths(self._longest), bandit)

    def _told(self, *calls: Call, weighed: bool = False) -> ToldEngine:
        return ToldEngine(self._llm, *calls, ("weigh_drafts", {"on": weighed}))

    def _lengths(self, length: int, threshold: float = 0.0) -> Call:
        """Drafts between intermediate verifications fit any length."""
        arguments = {
            "num_speculative_tokens": length,
            "tokens_per_round": parse_options(self._config).tokens_per_round(length),
            "confidence_threshold": threshold,
        }
        return "set_draft_lengths", arguments


def _most(config: Mapping[str, Any]) -> int:
    """Most drafts of a config, which may leave them to the method."""
    return int(dict(parse_options(config))["num_speculative_tokens"])
