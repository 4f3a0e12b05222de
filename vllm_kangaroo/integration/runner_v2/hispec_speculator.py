"""HiSpec on vLLM's V2 runner: a fixed number of rounds, each of a fixed number of drafts and one intermediate verification.

How far a request's buffer is filled differs from request to request and is known to the device alone: positions, KV slots and
kept states follow it there. What a round computes past a disagreement counts for nothing; the next round overwrites it. A last
pass of both lower tiers over the newest token keeps its state, so that the verification is the layers above the second exit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.config import CUDAGraphMode, VllmConfig
from vllm.forward_context import set_forward_context
from vllm.v1.worker.gpu.attn_utils import build_slot_mappings_by_layer

from vllm_kangaroo.integration.runner_v2.drafting_graphs import RoundGraphManager
from vllm_kangaroo.integration.runner_v2.round_inputs import RoundInputs
from vllm_kangaroo.integration.runner_v2.speculator import KangarooSpeculator

PAD = -1
"""The KV slot of a token that leaves no trace, as vLLM's kernels have it."""


class Batch(NamedTuple):
    """The requests of a round, and by what their passes attend; ``R`` counts those that fill a graph up."""

    requests: int
    drafts: int
    """That each request's buffer takes."""
    slots: Tensor
    """``[R]``, -1 for a row that only fills a graph up."""
    rows: Tensor
    """The same with padding's slot in the place of -1."""
    start: Tensor
    """Position of the newest verified token, ``[R]``."""
    memory: Tensor | None
    drafting: Any
    """Attention metadata of passes over one token a request, None if each pass is to have its own."""
    checking: Any
    """Those of an intermediate verification."""
    by_layer: Any
    """KV slots by layer of a pass over one token a request."""
    eager: tuple[Any, Any] | None


class HiSpecSpeculator(KangarooSpeculator):
    """Drafts with the first exit, checks with the second.

    The buffer takes ``num_speculative_tokens`` tokens (N_i), a round drafts ``tokens_per_round`` (N_d) of them. There are as
    many rounds as fill the buffer where the exits always agree. V1 has more where they do not; here every request of the batch
    would pay for them.
    """

    def __init__(self, vllm_config: VllmConfig, device: torch.device, req_states: Any) -> None:
        super().__init__(vllm_config, device, req_states)
        assert self.plan.tokens_per_round is not None
        self.per_round = self.plan.tokens_per_round
        self.steps = torch.arange(self.per_round, dtype=torch.int64, device=device)
        self.numbers = torch.arange(self.num_speculative_steps, dtype=torch.int64, device=device)

    def _graph_manager(self, mode: CUDAGraphMode) -> RoundGraphManager:
        return RoundGraphManager(self.vllm_config, self.device, mode, self.per_round)

    @staticmethod
    def agreement(own: Tensor, drafted: Tensor) -> Tensor:
        """Which drafts the verifier would have drafted too, bool ``[R, N_d]``."""
        return own == drafted

    def _rounds(self, drafts: int) -> int:
        return -(-drafts // self.per_round)

    def _count_round(self, requests: int, drafts: int) -> None:
        rounds = self._rounds(drafts)
        self.counters.ran(0, requests, passes=rounds * self.per_round + 1)
        self.counters.ran(1, requests * self.per_round, passes=rounds)
        self.counters.ran(1, requests)

    def _longest(self, step: Any) -> int:
        most = self.vllm_config.model_config.max_model_len
        return min(super()._longest(step) + self.per_round, most)

    def _draft_round(self, given: RoundInputs) -> None:
        """See :meth:`KangarooSpeculator._draft_round`; the metadata are a pair, of drafts and of checks."""
        num_reqs = given.requests
        drafts, buffers = given.drafts, self.input_buffers
        slots = self.idx_mapping[:num_reqs]
        drafting, checking = given.metadata or (None, None)
        members = Batch(
            num_reqs,
            drafts,
            slots,
            torch.where(slots < 0, self.kept.padding_slot, slots),
            self.at[:num_reqs].clone(),
            None if self.memory is None else self.memory[:num_reqs],
            drafting,
            checking,
            given.by_layer,
            given.eager,
        )
        newest = buffers.input_ids[:num_reqs]
        filled = torch.zeros_like(members.start)
        gathered = newest.new_zeros(num_reqs, drafts + self.per_round)
        for _ in range(self._rounds(drafts)):
            most = self.vllm_config.model_config.max_model_len
            active = self.drafting[:num_reqs] & (filled < drafts)
            active &= members.start + filled + self.per_round <= most
            states, tokens, alive = self._drafts(members, newest, filled, active)
            own = self._check(members, states, filled, active).view(num_reqs, -1)
            same = (alive & self.agreement(own, tokens)).long().cumprod(dim=1).sum(dim=1)
            # Where they agree the verifier's tokens are the drafts; the one after them is its own.
            gained = torch.minimum(same + 1, alive.sum(dim=1))
            places = filled[:, None] + self.steps
            gathered.scatter_(1, places, own.to(gathered.dtype))
            self.counters.checked.add_(alive.sum())
            self.counters.agreed.add_(same.sum())
            self.counters.replaced.add_((same < gained).sum())
            last = own.gather(1, (gained - 1).clamp(min=0)[:, None])[:, 0]
            newest.copy_(torch.where(gained > 0, last.to(newest.dtype), newest))
            filled = filled + gained
        self.at[:num_reqs].copy_(members.start + filled)
        self._place(slots, num_reqs)
        with self._context(members, self._drafting_metadata(members)):
            state = self.tiers.lower(newest, buffers.positions[:num_reqs])
        self.kept.write(members.rows, filled, state)
        self.draft_tokens[:num_reqs, :drafts].copy_(gathered[:, :drafts])
        self.stopped.index_copy_(0, members.rows, self.numbers >= filled[:, None])
        self.counters.proposed.add_(filled.sum())

    def _drafts(
        self, members: Batch, newest: Tensor, filled: Tensor, active: Tensor
    ) -> tuple[list[tuple[Tensor, ...]], Tensor, Tensor]:
        """A round's passes of tier 1: states by draft, tokens and which of them count, ``[R, N_d]`` each."""
        states, tokens, alive = [], [], []
        ids, going = newest.clone(), active
        for step in range(self.per_round):
            number = filled + step
            room = active & (number < members.drafts)
            self.at[: members.requests].copy_(members.start + number)
            self._place(members.slots, members.requests, room)
            positions = self.input_buffers.positions[: members.requests]
            wanted = torch.where(room, members.slots, PAD)
            number = number.clamp(max=self.num_speculative_steps - 1)
            with self._context(members, self._drafting_metadata(members)):
                state, found, confidence = self.choice.run(
                    number, ids, positions, members.memory, wanted
                )
            going = going & room
            states.append(state)
            tokens.append(found.long())
            alive.append(going)
            going = going & (confidence >= self.plan.confidence_threshold)
            ids = found.to(ids.dtype)
        return states, torch.stack(tokens, dim=1), torch.stack(alive, dim=1)

    def _check(
        self, members: Batch, states: list[tuple[Tensor, ...]], filled: Tensor, active: Tensor
    ) -> Tensor:
        """One pass of tier 2 over a round's tokens; what it would have drafted, ``[R * N_d]``."""
        width, buffers = self.per_round, self.input_buffers
        most = self.vllm_config.model_config.max_model_len
        # Requests without room for a round lie where they may, and write nothing.
        begin = (members.start + filled).clamp(max=most - width)
        number = (filled[:, None] + self.steps).view(-1)
        room = active.repeat_interleave(width) & (number < members.drafts)
        tokens = members.requests * width
        positions = buffers.positions[:tokens]
        positions.copy_((begin[:, None] + self.steps).view(-1))
        buffers.seq_lens[: members.requests].copy_(begin + width)
        starts = buffers.query_start_loc
        starts.mul_(width)
        self.writer[: members.requests].copy_(torch.where(active, members.slots, PAD))
        mapped = self.block_tables.compute_slot_mappings(
            self.writer[: members.requests], starts[: members.requests + 1], positions, tokens
        )
        mapped.masked_fill_(~room, PAD)
        wanted = torch.where(room, members.slots.repeat_interleave(width), PAD)
        memory = None if members.memory is None else members.memory.repeat_interleave(width, dim=0)
        state = tuple(
            torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*states, strict=True)
        )
        with self._context(members, self._checking_metadata(members), width):
            state, own = self.choice.check(
                number.clamp(max=self.num_speculative_steps - 1), positions, state, memory, wanted
            )
        starts.div_(width, rounding_mode="floor")
        kept = torch.where(wanted < 0, self.kept.padding_slot, wanted)
        self.kept.write(kept, number.clamp(max=self.num_speculative_steps), state)
        return own.long()

    def _drafting_metadata(self, members: Batch) -> Any:
        if members.eager is not None:
            return self._metadata(*members.eager, self.num_speculative_steps + self.per_round)
        self._update_draft_decode_metadata(members.drafting, members.requests)
        return members.drafting

    def _checking_metadata(self, members: Batch) -> Any:
        if members.eager is not None:
            step, shape = members.eager
            return self._build_uniform_attn_metadata(
                batch_desc=replace(shape, num_tokens=members.requests * self.per_round),
                num_reqs=members.requests,
                num_query_per_req=self.per_round,
                seq_lens_cpu_upper_bound=step.seq_lens_cpu_upper_bound,
                step=self.num_speculative_steps + self.per_round,
            )
        self._update_draft_decode_metadata(members.checking, members.requests)
        return members.checking

    def _context(self, members: Batch, metadata: Any, width: int = 1) -> Any:
        tokens = members.requests * width
        by_layer = members.by_layer
        if width > 1:
            slots = self.block_tables.slot_mappings[:, :tokens]
            by_layer = build_slot_mappings_by_layer(slots, self.kv_cache_config)
        return set_forward_context(
            metadata, self.vllm_config, num_tokens=tokens, slot_mapping=by_layer
        )

    def _warm(self, count: int) -> None:
        super()._warm(count)
        if hasattr(self, "block_tables"):
            return
        rows = self.per_round * max(2, count)
        positions = self.input_buffers.positions[:rows].zero_()
        state = tuple(part.new_zeros(rows, part.shape[1]) for part in self.kept.parts)
        memory = self.memory
        if memory is not None:
            memory = memory[:1].expand(rows, -1).contiguous()
        slots = torch.full_like(positions, PAD)
        with set_forward_context(None, self.vllm_config, num_tokens=rows):
            self.choice.check(torch.zeros_like(positions), positions, state, memory, slots)
