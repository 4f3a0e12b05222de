"""What demo and benchmarks ask of a worker, ours or vLLM's own, through ``LLM.collective_rpc``.

vLLM mixes :class:`Inspection` into the worker where an engine is started with ``worker_extension_cls=INSPECTION``;
other engines know nothing of it.
"""

from __future__ import annotations

from typing import Any

from vllm_kangaroo.integration.record import DraftRecord

INSPECTION = "vllm_kangaroo.integration.inspection.Inspection"


class Inspection:
    """Methods for ``collective_rpc``; an early-exit worker is needed where drafting is concerned."""

    model_runner: Any

    def record_drafts(self, on: bool) -> None:
        """Begin or end keeping record of which exit chose each draft."""
        self.model_runner.drafter.record = DraftRecord() if on else None

    def take_draft_record(self) -> dict[str, dict[int, list[int]]]:
        """What has been recorded since the last call, as :attr:`DraftRecord.rounds`."""
        record = self.model_runner.drafter.record
        found: dict[str, dict[int, list[int]]] = record.rounds
        record.rounds = {}
        return found
