"""What demo and benchmarks ask of a worker, ours or vLLM's own, through ``LLM.collective_rpc``.

vLLM mixes :class:`Inspection` into the worker where an engine is started with ``worker_extension_cls=INSPECTION``;
other engines know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_kangaroo.goodput.length_policies import BatchTable, LengthBandit, RandomLengths
from vllm_kangaroo.goodput.step_costs import StepCosts
from vllm_kangaroo.integration.inspect import memory
from vllm_kangaroo.integration.inspect.record import DraftRecord
from vllm_kangaroo.options import OptionError

INSPECTION = "vllm_kangaroo.integration.inspect.inspection.Inspection"


class Inspection:
    """Methods for ``collective_rpc``; an early-exit worker is needed where drafting is concerned."""

    model_runner: Any
    _bandit: LengthBandit | None = None

    def record_drafts(self, on: bool) -> None:
        """Begin or end keeping record of which exit chose each draft."""
        self.model_runner.drafter.record = DraftRecord() if on else None

    def take_draft_record(self) -> dict[str, dict[int, list[int]]]:
        """What has been recorded since the last call, as :attr:`DraftRecord.rounds`."""
        record = self.model_runner.drafter.record
        found: dict[str, dict[int, list[int]]] = record.rounds
        record.rounds = {}
        return found

    def set_draft_lengths(
        self,
        num_speculative_tokens: int,
        tokens_per_round: int | None = None,
        confidence_threshold: float | None = None,
    ) -> None:
        """Draft fewer tokens from the next round on than the engine was started for.

        KV slots and exit store stay as large as they are, so nothing else depends on it. The threshold is left as it is
        where none is given.

        Raises:
            OptionError: if it would draft more.
        """
        drafter = self.model_runner.drafter
        plan = drafter.plan
        most: int = drafter.ladder.stores[0].width - 1 if plan.exit_drafts else plan.lookup_tokens
        if not 1 <= (tokens_per_round or 1) <= num_speculative_tokens <= most:
            raise OptionError(
                f"num_speculative_tokens={num_speculative_tokens} with draft_tokens_per_round={tokens_per_round} does "
                f"not fit an engine started for {most}: start it for the largest number."
            )
        if not plan.exit_drafts:
            drafter.lengths = BatchTable([(1, 1, num_speculative_tokens)])
            return
        lengths = {
            "num_speculative_tokens": num_speculative_tokens,
            "tokens_per_round": tokens_per_round,
            "confidence_threshold": plan.confidence_threshold
            if confidence_threshold is None
            else confidence_threshold,
        }
        drafter.plan = plan.model_copy(update=lengths)
        drafter.lengths = None

    def weigh_drafts(self, on: bool) -> None:
        """Leave goodput control aside from the next step on, or put it in charge again; it learns nothing meanwhile."""
        self.model_runner.drafter.weighs = on

    def set_draft_table(self, entries: Sequence[tuple[int, int, int]]) -> None:
        """Draft at most what vLLM's table of batch sizes says, until :meth:`set_draft_lengths` is called."""
        table = BatchTable([(first, last, length) for first, last, length in entries])
        self.model_runner.drafter.lengths = table

    def set_draft_bandit(self, lengths: Sequence[int]) -> None:
        """The same by a bandit over these lengths, which keeps what it has learnt."""
        if self._bandit is None or self._bandit.lengths != tuple(sorted(set(lengths))):
            self._bandit = LengthBandit(lengths)
        self.model_runner.drafter.lengths = self._bandit

    def draw_draft_lengths(self, lengths: Sequence[int]) -> None:
        """The same by one of these lengths, drawn for each step."""
        self.model_runner.drafter.lengths = RandomLengths(lengths)

    def accept_by_chance(self, rate: float | None) -> None:
        """Accept drafts with this probability from the next step on, whatever they are; None judges them again.

        Raises:
            OptionError: on vLLM's V2 runner, which has ``rejection_sample_method="synthetic"``.
        """
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        from vllm_kangaroo.integration.inspect.synthetic_acceptance import SyntheticAcceptance

        runner = self.model_runner
        if not isinstance(runner, GPUModelRunner):
            raise OptionError(
                "Drafts are accepted by chance on vLLM's V1 model runner only: set VLLM_USE_V2_MODEL_RUNNER=0."
            )
        vars(runner).pop("_sample", None)
        if rate is not None:
            runner._sample = SyntheticAcceptance(runner, rate)

    def step_costs(self, kv_tokens: int, most: int) -> dict[str, Any]:
        """What goodput control has learnt of the costs of one request's steps, as :class:`StepCosts` has it.

        Args:
            kv_tokens: of the request.
            most: tokens of the largest verification.
        """
        drafter = self.model_runner.drafter
        checks = drafter.plan.tokens_per_round is not None
        costs = drafter.goodput.controller.costs
        return StepCosts.of(costs, kv_tokens, most, checks=checks).model_dump()

    def memory_in_use(self) -> dict[str, int]:
        """Bytes that the engine's worker holds, by kind; see :class:`vllm_kangaroo.bench.memory_report.EngineMemory`."""
        runner = self.model_runner
        config = runner.kv_cache_config
        # The blocks of a group share one size, and each group has one table: a position lies in one block of each.
        tokens = config.num_blocks * config.kv_cache_groups[0].kv_cache_spec.block_size
        kv_cache = memory.bytes_of(runner.kv_caches)
        ladder = getattr(getattr(runner, "drafter", None), "ladder", None)
        stores = [] if ladder is None else ladder.stores
        return {
            "weights": memory.bytes_of_weights([runner.model, getattr(runner, "drafter", None)]),
            "kv_cache": kv_cache,
            "kv_cache_per_token": kv_cache // tokens,
            "exit_store": sum(store.nbytes for store in stores),
            "exit_store_requests": len(stores[0].token_ids) if stores else 0,
        }
