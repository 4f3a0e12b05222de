"""Which exit chose each drafted token, kept while somebody asks for it; 0 stands for the request's own text."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_kangaroo.integration.passes.runner_view import RunnerView
from vllm_kangaroo.ladder.spans import IntArray


class DraftRecord:
    """The exits behind the drafts of every round, by request and by place in its output."""

    def __init__(self) -> None:
        self.rounds: dict[str, dict[int, list[int]]] = {}
        """Request id -> index of the round's first draft among the output tokens -> exits of the drafts."""

    def note(
        self, view: RunnerView, rows: IntArray, starts: IntArray, exits: Sequence[list[int]]
    ) -> None:
        """Take in one round.

        Args:
            view: the runner whose batch rows these are.
            starts: position of each request's newest token.
            exits: that chose each draft, by request.
        """
        for row, start, chosen in zip(rows.tolist(), starts.tolist(), exits, strict=True):
            produced = start + 1 - view.prompt_tokens(row)
            self.rounds.setdefault(view.request_ids[row], {})[produced] = chosen
