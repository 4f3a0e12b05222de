"""Which exit chose each drafted token, kept while somebody asks for it."""

from __future__ import annotations

from typing import Any

from vllm_kangaroo.drafting.kangaroo import Drafters, Drafts


class DraftRecord:
    """The exits behind the drafts of every round, by request and by place in its output."""

    def __init__(self) -> None:
        self.rounds: dict[str, dict[int, list[int]]] = {}
        """Request id -> index of the round's first draft among the output tokens -> exits of the drafts."""

    def note(self, batch: Any, drafters: Drafters, drafts: Drafts) -> None:
        """Take in one round.

        Args:
            batch: the runner's ``InputBatch``, whose rows the drafters name.
        """
        exits = drafts.exits or [[1] * len(tokens) for tokens in drafts.token_ids]
        for row, start, chosen in zip(
            drafters.rows.tolist(), drafters.starts.tolist(), exits, strict=True
        ):
            produced = start + 1 - int(batch.num_prompt_tokens[row])
            self.rounds.setdefault(batch.req_ids[row], {})[produced] = chosen
