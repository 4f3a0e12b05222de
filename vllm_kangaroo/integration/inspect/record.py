"""Which exit chose each drafted token, kept while somebody asks for it."""

from __future__ import annotations

from vllm_kangaroo.drafting.kangaroo import Drafters, Drafts
from vllm_kangaroo.integration.passes.runner_view import RunnerView


class DraftRecord:
    """The exits behind the drafts of every round, by request and by place in its output."""

    def __init__(self) -> None:
        self.rounds: dict[str, dict[int, list[int]]] = {}
        """Request id -> index of the round's first draft among the output tokens -> exits of the drafts."""

    def note(self, view: RunnerView, drafters: Drafters, drafts: Drafts) -> None:
        """Take in one round.

        Args:
            view: the runner whose batch rows the drafters name.
        """
        exits = drafts.exits or [[1] * len(tokens) for tokens in drafts.token_ids]
        for row, start, chosen in zip(
            drafters.rows.tolist(), drafters.starts.tolist(), exits, strict=True
        ):
            produced = start + 1 - view.prompt_tokens(row)
            self.rounds.setdefault(view.request_ids[row], {})[produced] = chosen
