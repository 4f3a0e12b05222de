"""Kangaroo on vLLM's V2 runner: drafting in fixed shapes, verification by the upper layers alone.

A round is K + 1 passes of tier 1. The last one has no head: it keeps the state of the last draft, so that in a step without
prompts every token's tier-1 state is there and the step runs the upper layers only. Where the confidence falls below the
threshold, passes go on and what they draft is marked as never proposed. So a round and a verification are each one fixed
sequence of device operations over buffers that never move, which a full CUDA graph records, and the host reads nothing back.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import CUDAGraphMode, VllmConfig, get_layers_from_vllm_config
from vllm.forward_context import set_forward_context
from vllm.logger import init_logger
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer
from vllm.v1.worker.gpu.model_states import resolve_model_state_cls
from vllm.v1.worker.gpu.spec_decode.speculator import DraftModelSpeculator

from vllm_kangaroo.integration.config.plan import plan_of
from vllm_kangaroo.integration.passes import model as tiered
from vllm_kangaroo.integration.passes.trial import trial_tokens, without_kv
from vllm_kangaroo.integration.runner_v2.counters import Counters
from vllm_kangaroo.integration.runner_v2.draft_choice import DraftChoice
from vllm_kangaroo.integration.runner_v2.drafting_graphs import DraftGraphManager
from vllm_kangaroo.integration.runner_v2.figures import SpeculatorFigures
from vllm_kangaroo.integration.runner_v2.kept_states import KeptStates
from vllm_kangaroo.integration.runner_v2.model_state import counts_of, state_class
from vllm_kangaroo.integration.runner_v2.round_inputs import RoundInputs

logger = init_logger(__name__)


class KangarooSpeculator(DraftModelSpeculator):
    """What vLLM's V2 runner instantiates in the place of a speculator of its own.

    Args:
        req_states: the runner's ``RequestState``: where each request's frontier lies, on the device.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, req_states: Any) -> None:
        super().__init__(vllm_config, device)
        self.plan = plan_of(vllm_config)
        self.any_length = self.speculative_config.uses_dynamic_speculative_decoding()
        """Whether vLLM says in each step how many drafts are wanted."""
        self.req_states = req_states
        slots, drafts = self.max_num_reqs, self.num_speculative_steps
        self.counters = Counters.on(device, tiers=len(self.plan.exits))
        self.figures: SpeculatorFigures
        self.stopped = torch.zeros(slots + 1, drafts, dtype=torch.bool, device=device)
        """By slot: whether draft j was never proposed. The last slot is padding's."""
        self.at = torch.zeros(slots, dtype=torch.int64, device=device)
        """By row of the batch: position of the next token to run through tier 1."""
        self.drafting = torch.zeros(slots, dtype=torch.bool, device=device)
        """By row: false within a prompt, and where a row only fills a graph up."""
        self.writer = torch.zeros(slots, dtype=torch.int64, device=device)
        """By row: the slot whose KV is written, -1 for none."""
        self.counting = torch.arange(slots + 1, dtype=torch.int32, device=device)
        self.upper_only = False
        """Whether the forward pass that comes next is the upper layers alone."""
        self._climbed = False
        """Whether that pass was run by :meth:`climb`, and not by a graph's replay."""
        self.manager: DraftGraphManager | None = None
        self.tiers: tiered.TieredModel
        self.kept: KeptStates
        self.choice: DraftChoice
        self.memory: Tensor | None = None
        """By row: what exit heads are told of the position verified last, ``[slots, M]``; None if none asks."""

    def draft_logits_spec(self, vllm_config: VllmConfig) -> tuple[torch.dtype, float]:
        """Drafts are drawn from what an exit head says in float32, and verified against the same numbers."""
        return torch.float32, 0.0

    # Loading: the target stays the target, its forward pass becomes a climb.

    def load_draft_model(self, target_model: nn.Module, target_attn_layer_names: set[str]) -> Any:
        """Never called: there is no second model."""
        raise NotImplementedError

    def load_model(self, target_model: nn.Module) -> None:
        """Cut the target at its exit and load the adapter.

        Raises:
            OptionError: if the model cannot be cut, or the adapter was trained for other weights.
        """
        config = self.vllm_config
        base = resolve_model_state_cls(config, target_model)
        self.tiers = tiers = tiered.build(target_model, config, self.plan)
        self.model = tiers.heads[0]
        self.choice = DraftChoice(self)
        with without_kv(target_model, config):
            ids, positions = trial_tokens(config)
            like = tiers.ranges[0](ids, positions, None)
            for between in tiers.ranges[1:-1]:
                like = between(None, positions, like)
        width = self.num_speculative_steps + 1
        self.kept = KeptStates(like, self.max_num_reqs, width, self.max_num_tokens, self.device)
        self.figures = SpeculatorFigures(self, perf_counter)
        if tiers.memory_width:
            self.memory = like[0].new_zeros(self.max_num_reqs, tiers.memory_width)
        *exits, last_exit, layers = self.plan.exits
        self.draft_attn_layer_names = {
            name
            for name in get_layers_from_vllm_config(config, AttentionLayerBase)
            if not last_exit <= extract_layer_index(name) < layers
        }
        state = state_class(base, self)
        target_model.get_model_state_cls = lambda: state  # type: ignore[assignment]
        target_model.forward = self.climb
        logger.info(
            "Exits after layers %s of %d, with %s, on the V2 model runner.",
            ", ".join(map(str, [*exits, last_exit])),
            layers,
            ", ".join(each or "the target's own norm and head" for each in self.plan.adapters),
        )

    def add_request(self, slot: int, params: Any) -> None:
        """Note what drafting must know of a request that takes a slot."""
        self.choice.add_request(slot, params)

    def apply_staged_writes(self) -> None:
        """Bring that to the device."""
        self.choice.apply_staged_writes()

    # The target's forward pass.

    def runs_upper_only(self, slots: Any, counts: Any, *, has_prefill: bool) -> bool:
        """Whether all tokens of a step have their tier-1 states kept, and are to be taken from there. The host knows."""
        if has_prefill or self.runs_undrafted(counts):
            return False
        return self.kept.held(slots, counts)

    def runs_undrafted(self, counts: Any) -> bool:
        """Whether a step is one of goodput control's without drafts: all layers over a token of each request.

        It needs no kept states, and its graph is that of the whole model.
        """
        return self.any_length and bool((counts == 1).all())

    def route(self, step: Any) -> None:
        """Prepare the forward pass of a step."""
        slots, counts = step.idx_mapping_np[: step.num_reqs], counts_of(step)
        self.upper_only = self.runs_upper_only(slots, counts, has_prefill=step.has_prefill)
        self._climbed = False
        if self.upper_only:
            self.kept.route(slots, counts, step.num_tokens_after_padding)
            self.counters.verifications += 1
            self.counters.reused += step.num_tokens
            self.counters.ran(-1, step.num_tokens)
        else:
            self.counters.whole_steps += 1
            self.counters.whole_tokens += step.num_tokens
            for tier in range(len(self.counters.passes)):
                self.counters.ran(tier, step.num_tokens)

    def route_capture(self, num_reqs: int, num_tokens: int) -> None:
        """Prepare the recording of a graph: one of K + 1 tokens a request is a verification's, with fewer drafts one of fewer."""
        each, rest = divmod(num_tokens, num_reqs)
        self.upper_only = not rest and (
            1 < each <= self.kept.width if self.any_length else each == self.kept.width
        )
        self.kept.index.fill_(self.kept.padding_slot * self.kept.width)

    def climb(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """In the place of the target's ``forward``: final hidden states ``[tokens, N]``."""
        assert intermediate_tensors is None and inputs_embeds is None
        self._climbed = True
        if self.upper_only:
            return self.tiers.top(positions, self.kept.read(len(positions)))
        return self.tiers.top(positions, self.tiers.lower(input_ids, positions))

    # Drafting.

    def init_cudagraph_manager(self, cudagraph_mode: CUDAGraphMode) -> None:
        """Drafting is captured where verification is, and where metadata can be renewed within a graph."""
        full = cudagraph_mode.decode_mode() == CUDAGraphMode.FULL
        captured = full and self.supports_decode_metadata_update
        mode = CUDAGraphMode.FULL_DECODE_ONLY if captured else CUDAGraphMode.NONE
        self.manager = self._graph_manager(mode)

    def _graph_manager(self, mode: CUDAGraphMode) -> DraftGraphManager:
        return DraftGraphManager(self.vllm_config, self.device, mode)

    def capture(self) -> None:
        """Record a round for each number of requests, and of drafts if they vary."""
        assert self.manager is not None
        self.idx_mapping.fill_(-1)
        self.drafting.zero_()
        self.manager.capture(
            self._round,
            self.model_state,
            self.input_buffers,
            self.block_tables,
            self.attn_groups,
            self.kv_cache_config,
            progress_bar_desc="Capturing drafting CUDA graphs",
        )

    @torch.inference_mode()
    def propose(
        self,
        input_batch: Any,
        attn_metadata: Any,
        slot_mappings: Any,
        last_hidden_states: Tensor,
        aux_hidden_states: Any,
        num_sampled: Tensor,
        num_rejected: Tensor,
        last_sampled: Tensor,
        next_prefill_tokens: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        dp_sync_state: Any = None,
        dummy_run: bool = False,
        skip_attn_for_dummy_run: bool = False,
        mm_inputs: Any = None,
        is_profile: bool = False,
        num_speculative_tokens: int | None = None,
    ) -> Tensor:
        """A round for every request of the step; the drafts, int64 ``[requests, K]``.

        Args:
            last_hidden_states: of the step's tokens, ``[tokens, N]``.
            num_sampled: tokens that each request has got, ``[requests]``; 0 within its prompt.
            num_rejected: drafts that it has lost, ``[requests]``.
            last_sampled: newest token by slot, ``[slots, 1]``.
            num_speculative_tokens: drafts that vLLM will use; 0 lets the round out.
        """
        step, count = input_batch, input_batch.num_reqs
        if dummy_run:
            self._warm(count)
            return self.draft_tokens[:count]
        if not self._climbed:
            if self.upper_only:
                self.counters.verification_replays += 1
            else:
                self.counters.whole_replays += 1
        slots = step.idx_mapping_np[:count]
        if num_speculative_tokens == 0:
            self.skip(step)
            return self.draft_tokens[:count]
        drafts = self.num_speculative_steps
        if self.any_length and num_speculative_tokens is not None:
            drafts = num_speculative_tokens
        self._begin(step, num_sampled, last_sampled, temperature, seeds)
        if self.memory is not None:
            ends = step.query_start_loc[1 : count + 1].long() - 1 - num_rejected[:count]
            verified = last_hidden_states.index_select(0, ends.clamp(min=0))
            self.memory[:count].copy_(self.tiers.remember(verified))
        assert self.manager is not None
        shape = self.manager.shape(count, drafts)
        self.counters.draftings += 1
        self.counters.drafters += count
        self._count_round(count, drafts)
        if shape.cg_mode == CUDAGraphMode.FULL:
            for group in self._groups():
                table = self.block_tables.input_block_tables[group.kv_cache_group_id]
                group.map_to_kernel_block_table(table)
            self.manager.run_fullgraph(shape)
            self.counters.drafting_replays += 1
            self.counters.padded_rows += (shape.num_reqs or count) - count
        else:
            self._eager_round(step, shape, drafts)
        self.kept.note(slots, drafts + 1)
        return self.draft_tokens[:count]

    def _count_round(self, requests: int, drafts: int) -> None:
        self.counters.ran(0, requests, passes=drafts + 1)

    skips_unwanted_drafts = True
    """Read by a vLLM with ``patches/0005``, which then calls :meth:`skip` in the place of :meth:`propose`."""

    def skip(self, step: Any) -> None:
        """A step that wants no drafts: the next verification of its requests has no kept states."""
        self.kept.note(step.idx_mapping_np[: step.num_reqs], 0)
        self.counters.skipped += 1

    def _begin(
        self,
        step: Any,
        num_sampled: Tensor,
        last_sampled: Tensor,
        temperature: Tensor,
        seeds: Tensor,
    ) -> None:
        """Put the batch where a round finds it. Frontiers are the device's: the host does not know them yet."""
        count, index, buffers = step.num_reqs, step.idx_mapping, self.input_buffers
        self.draft_max_seq_len = self._longest(step)
        self._copy_request_inputs(count, index, temperature, seeds)
        self.at.zero_()
        self.at[:count].copy_(self.req_states.num_computed_tokens.gpu[index])
        self.drafting.zero_()
        self.drafting[:count].copy_(num_sampled[:count] > 0)
        buffers.input_ids[:count].copy_(last_sampled[index, 0])
        torch.clamp(self.counting, max=count, out=buffers.query_start_loc)

    def _longest(self, step: Any) -> int:
        """Most positions of a request in this round, as far as the host knows."""
        longest = int(step.seq_lens_cpu_upper_bound[: step.num_reqs].max()) + self.kept.width
        return min(longest, self.vllm_config.model_config.max_model_len)

    def _groups(self) -> Iterator[Any]:
        for groups in self.attn_groups:
            yield from groups

    def _eager_round(self, step: Any, shape: Any, drafts: int) -> None:
        count = step.num_reqs
        slots = self.block_tables.slot_mappings[:, :count]
        by_layer = build_slot_mappings_by_layer(slots, self.kv_cache_config)
        self._draft_round(RoundInputs(count, count, drafts, None, by_layer, (step, shape)))

    def _round(
        self,
        num_reqs: int,
        num_tokens: int,
        attn_metadata: Any,
        slot_mappings: Any,
        num_tokens_across_dp: Any,
        cg_mode: Any,
        num_speculative_steps: int,
    ) -> None:
        """A round as vLLM captures it in a graph."""
        self._draft_round(
            RoundInputs(num_reqs, num_tokens, num_speculative_steps, attn_metadata, slot_mappings)
        )

    def _draft_round(self, given: RoundInputs) -> None:
        """Passes with a head and one without, of device operations alone."""
        num_reqs, attn_metadata, eager = given.requests, given.metadata, given.eager
        drafts, buffers = given.drafts, self.input_buffers
        slots = self.idx_mapping[:num_reqs]
        rows = torch.where(slots < 0, self.kept.padding_slot, slots)
        ids, positions = buffers.input_ids[:num_reqs], buffers.positions[:num_reqs]
        memory = None if self.memory is None else self.memory[:num_reqs]
        drafting = self.drafting[:num_reqs]
        going = drafting.clone()
        for offset in range(drafts + 1):
            self._place(slots, num_reqs)
            if eager is not None and (offset == 0 or not self.supports_decode_metadata_update):
                attn_metadata = self._metadata(*eager, offset)
            else:
                self._update_draft_decode_metadata(attn_metadata, num_reqs)
            with set_forward_context(
                attn_metadata,
                self.vllm_config,
                num_tokens=given.tokens,
                slot_mapping=given.by_layer,
            ):
                if offset == drafts:
                    self.kept.write(rows, offset, self.tiers.lower(ids, positions))
                    return
                state, tokens, confidence = self.choice.run(offset, ids, positions, memory, slots)
            self.kept.write(rows, offset, state)
            self.draft_tokens[:num_reqs, offset].copy_(tokens)
            self.stopped[:, offset].index_copy_(0, rows, ~going)
            self.counters.proposed.add_(going.sum())
            going = going & (confidence >= self.plan.confidence_threshold)
            ids.copy_(tokens)
            self.at[:num_reqs].add_(1)

    def _place(self, slots: Tensor, num_reqs: int, allowed: Tensor | None = None) -> None:
        """Positions, lengths and KV slots of the next pass. Nothing is written past the model's length.

        Args:
            allowed: rows that write, bool ``[requests]``; None for all that draft.
        """
        most = self.vllm_config.model_config.max_model_len
        buffers, at = self.input_buffers, self.at[:num_reqs]
        writes = (self.drafting[:num_reqs] if allowed is None else allowed) & (at < most)
        self.writer[:num_reqs].copy_(torch.where(writes, slots, -1))
        positions = buffers.positions[:num_reqs]
        torch.clamp(at, max=most - 1, out=positions)
        buffers.seq_lens[:num_reqs].copy_(positions + 1)
        self.block_tables.compute_slot_mappings(
            self.writer[:num_reqs], buffers.query_start_loc[: num_reqs + 1], positions, num_reqs
        )

    def _metadata(self, step: Any, shape: Any, offset: int) -> Any:
        return self._build_uniform_attn_metadata(
            batch_desc=shape,
            num_reqs=step.num_reqs,
            num_query_per_req=1,
            seq_lens_cpu_upper_bound=step.seq_lens_cpu_upper_bound,
            step=offset + 1,
        )

    def _warm(self, count: int) -> None:
        """The passes that only drafting runs, once, while vLLM profiles: there is no KV cache yet."""
        if hasattr(self, "block_tables"):
            return
        rows = max(2, count)  # of a single token, Dynamo would compile a pass for that alone
        ids, positions = self.input_buffers.input_ids[:rows], self.input_buffers.positions[:rows]
        memory = None if self.memory is None else self.memory[:rows]
        with set_forward_context(None, self.vllm_config, num_tokens=rows):
            self.choice.run(0, ids, positions.zero_(), memory, self.idx_mapping[:rows])
