"""Drafting and verifying as the V2 engine does, a thousand requests at once, over a model whose logits stand in tables.

What is tried is the engine's own speculator, with its round, its choice of drafts and its kept states, and its own rejection
sampler. Stood in for are the layers (a table of logits by the tokens before, kept apart for each tier as its KV would be), the
mapping of KV slots, and vLLM's sampling kernels, by :mod:`tests.v2.sampling_rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from vllm.v1.worker.gpu.spec_decode import rejection_sampler

from tests.e2e.reference import Reference
from tests.e2e.test_distribution import LAYERS, PROMPT, TOKENS, VOCABULARY, probabilities
from tests.v2 import sampling_rows
from tests.v2.engines import V2Engine
from vllm_kangaroo.integration.runner_v2 import draft_choice
from vllm_kangaroo.integration.runner_v2.round_inputs import RoundInputs

START = len(PROMPT)
DEPTH = TOKENS - 1
"""Tokens of an answer by which its next one is told apart; what comes after is not looked at."""
Ints = NDArray[np.int64]


@cache
def tables(model: str, layers: tuple[int, ...]) -> list[Tensor]:
    """Logits of an exit after each of ``layers``, by :func:`place_of` ``[contexts, V]``, by plain forward passes."""
    answers = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * DEPTH)
    tokens = torch.cat((torch.tensor(PROMPT).expand(len(answers), -1), answers), 1)
    found = []
    for exit_layer in layers:
        reference = Reference(model, exit_layer)
        with torch.inference_mode():
            states = reference.cut(tokens).last_hidden_state
            logits = reference.model.lm_head(reference.model.model.norm(states))
        by_depth = [
            logits[:: VOCABULARY ** (DEPTH - depth), START - 1 + depth]
            for depth in range(DEPTH + 1)
        ]
        found.append(torch.cat(by_depth).float().clone())
    return found


def place_of(answers: Tensor, depths: Tensor) -> Tensor:
    """Rows of the tables: the first ``depths`` tokens of each answer ``[rows, DEPTH]``, at most all of these."""
    depths = depths.clamp(max=DEPTH)
    found, first = torch.zeros_like(depths), torch.zeros_like(depths)
    for at in range(DEPTH):
        there = depths > at
        found = torch.where(there, found * VOCABULARY + answers[:, at], found)
        first = torch.where(there, first + VOCABULARY**at, first)
    return first + found


class Tiers:
    """In the place of a cut model. A tier knows the tokens that it was run over, by slot and position, and no others."""

    def __init__(self, speculator: Any, logits: list[Tensor]) -> None:
        self._speculator = speculator
        self._logits = logits
        self._seen = [
            torch.zeros(speculator.max_num_reqs + 1, 64, dtype=torch.int64) for _ in logits
        ]
        self.written = torch.ones(0, dtype=torch.bool)
        """Whether each token of the pass has a KV slot, as it was last mapped."""

    def _run(self, tier: int, state: Any, positions: Tensor) -> Tensor:
        slots = self._speculator.idx_mapping
        width = len(positions) // self.requests
        rows = slots[: self.requests].repeat_interleave(width)
        tokens, seen = state[0][:, 0].long(), self._seen[tier]
        written = self.written[: len(rows)]
        seen[rows[written], positions[written]] = tokens[written]
        # A token sees itself, whether it leaves a trace or not.
        answers = seen[rows, START : START + DEPTH].clone()
        own = positions - START
        inside = (own >= 0) & (own < DEPTH)
        answers[inside, own[inside]] = tokens[inside]
        return self._logits[tier][place_of(answers, (own + 1).clamp(min=0))]

    requests = 0
    """Of the batch."""

    def _state(self, input_ids: Tensor) -> Any:
        parts = self._speculator.kept.parts
        state = tuple(torch.zeros(len(input_ids), part.shape[1]) for part in parts)
        state[0][:, 0] = input_ids
        return state

    def draft_logits(self, input_ids: Tensor, positions: Tensor, memory: Any) -> Any:
        state = self._state(input_ids)
        return state, self._run(0, state, positions)

    def verifier_logits(self, positions: Tensor, state: Any, memory: Any) -> Any:
        return state, self._run(1, state, positions)

    def lower(self, input_ids: Tensor, positions: Tensor) -> Any:
        state = self._state(input_ids)
        for tier in range(len(self._logits) - 1):
            self._run(tier, state, positions)
        return state

    def top(self, positions: Tensor, state: Any) -> Tensor:
        self.written = torch.ones(len(positions), dtype=torch.bool)
        return self._run(len(self._logits) - 1, state, positions)

    def map_slots(self, writers: Tensor, starts: Tensor, positions: Tensor, count: int) -> Tensor:
        """In the place of the block tables': 0 for a token that has a slot, -1 for one that has none."""
        lengths = starts.diff()[: len(writers)].long()
        mapped = torch.where(writers.repeat_interleave(lengths) >= 0, 0, -1)
        self._mapped = mapped[None]
        return self._mapped

    def look(self) -> None:
        """Take over what was mapped, with what has been struck out since."""
        self.written = self._mapped[0] >= 0


@dataclass
class Drawn:
    """Sequences, and what became of the drafts."""

    tokens: Ints
    """``[trials, TOKENS]``."""
    proposed: int
    accepted: int


class Rounds:
    """Draws sequences by the round and the rejection sampler of an engine.

    Args:
        logits: of each tier's exit and of the target, as :func:`tables` makes them.
    """

    def __init__(self, engine: V2Engine, logits: list[Tensor]) -> None:
        self.runner = engine.runner
        self.speculator = engine.speculator
        self.tiers = Tiers(self.speculator, logits)
        self._target = logits[-1]

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """The engine's parts run over the tables while within."""
        tiers, speculator = self.tiers, self.speculator

        def watched(of: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                tiers.look()
                return of(*args)

            return run

        with pytest.MonkeyPatch.context() as patch:
            for name in ("draft_logits", "verifier_logits", "lower"):
                patch.setattr(tiers, name, watched(getattr(tiers, name)))
            patch.setattr(speculator, "tiers", tiers)
            patch.setattr(speculator.block_tables, "compute_slot_mappings", tiers.map_slots)
            patch.setattr(speculator, "_update_draft_decode_metadata", lambda *_: None)
            patch.setattr(draft_choice, "gumbel_sample", sampling_rows.gumbel_sample)
            patch.setattr(rejection_sampler, "rejection_sample", sampling_rows.rejection_sample)
            patch.setattr(
                rejection_sampler,
                "get_num_sampled_and_rejected",
                sampling_rows.num_sampled_and_rejected,
            )
            yield

    def draw(self, seeds: Ints, options: dict[str, Any]) -> Drawn:
        """A sequence for each seed, with a request's sampling ``options``."""
        room = self.speculator.max_num_reqs
        found, accepted = [], 0
        before = int(self.speculator.counters.proposed)
        with self.standing_in(), torch.inference_mode():
            for first in range(0, len(seeds), room):
                tokens, hits = self._draw(torch.from_numpy(seeds[first : first + room]), options)
                found.append(tokens.numpy())
                accepted += hits
        proposed = int(self.speculator.counters.proposed) - before
        return Drawn(np.concatenate(found), proposed, accepted)

    def _draw(self, seeds: Tensor, options: dict[str, Any]) -> tuple[Tensor, int]:
        count, room = len(seeds), self.speculator.max_num_reqs
        states = self.runner.sampler.sampling_states
        temperature = torch.full((room,), float(options["temperature"]))
        every = torch.zeros(room, dtype=torch.int64)
        every[:count] = seeds
        states.temperature.gpu[:room].copy_(temperature)
        states.seeds.gpu[:room].copy_(every)
        answers = torch.zeros(count, DEPTH + self.speculator.kept.width + 1, dtype=torch.int64)
        slots = torch.arange(count)
        place = torch.full((count,), START - 1)
        first = self._processed(self._target[:1].expand(count, -1), answers[:, :0], options)
        answers[:, 0] = sampling_rows.gumbel_sample(
            first, slots, temperature, every, place, False, False
        )
        lengths = torch.ones(count, dtype=torch.int64)
        accepted = 0
        while len(slots := torch.nonzero(lengths < TOKENS)[:, 0]):
            sampled, gained = self._round(slots, lengths, answers, temperature, every, options)
            accepted += int((gained - 1).sum())
            for at in range(sampled.shape[1]):
                there = gained > at
                answers[slots[there], lengths[slots[there]] + at] = sampled[there, at]
            lengths[slots] += gained
        return answers[:, :TOKENS], accepted

    def _round(
        self,
        slots: Tensor,
        lengths: Tensor,
        answers: Tensor,
        temperature: Tensor,
        seeds: Tensor,
        options: dict[str, Any],
    ) -> tuple[Tensor, Tensor]:
        """Draft and verify for the requests of these slots: tokens ``[requests, K + 1]``, and how many count."""
        speculator, tiers = self.speculator, self.tiers
        requests, width = len(slots), speculator.kept.width
        tiers.requests = requests
        newest = lengths[slots] - 1
        begins = START + newest
        last = torch.zeros(speculator.max_num_reqs, 1, dtype=torch.int64)
        last[slots, 0] = answers[slots, newest]
        speculator.req_states.num_computed_tokens.gpu[slots] = begins.to(
            speculator.req_states.num_computed_tokens.gpu.dtype
        )
        step = SimpleNamespace(
            num_reqs=requests,
            idx_mapping=slots,
            seq_lens_cpu_upper_bound=(begins + 1).int(),
        )
        speculator._begin(step, torch.ones(requests), last, temperature, seeds)
        speculator._draft_round(RoundInputs(requests, requests, width - 1, None, {}))
        drafts = speculator.draft_tokens[:requests].clone()

        kept = speculator.kept
        kept.route(slots.numpy(), np.full(requests, width), requests * width)
        state = kept.read(requests * width)
        input_ids = torch.cat((last[slots], drafts), dim=1)
        local = torch.arange(width).repeat(requests)
        expanded = slots.repeat_interleave(width)
        stopped = speculator.stopped[slots]
        ran = state[0][:, 0].long().view(requests, width)
        known = torch.cat((torch.ones(requests, 1, dtype=torch.bool), ~stopped), dim=1)
        assert torch.equal(ran[known], input_ids[known]), "a kept state is another token's"
        positions = begins.repeat_interleave(width) + local
        logits = tiers.top(positions, state)

        before = torch.zeros(requests, answers.shape[1] + width, dtype=torch.int64)
        before[:, : answers.shape[1]] = answers[slots]
        rows = torch.arange(requests)
        for at in range(1, width):
            before[rows, newest + at] = input_ids[:, at]
        sampler = self.runner.sampler

        def processed(given: Tensor, *_: Any) -> Tensor:
            text = before.repeat_interleave(width, dim=0)
            return self._processed(given, text, options, (positions - START + 1))

        step = SimpleNamespace(
            num_reqs=requests,
            input_ids=input_ids.flatten().int(),
            positions=positions,
            logits_indices=torch.arange(requests * width),
            expanded_idx_mapping=expanded.int(),
            expanded_local_pos=local.int(),
            cu_num_logits=torch.arange(0, requests * width + 1, width, dtype=torch.int32),
            cu_num_logits_np=np.arange(0, requests * width + 1, width),
            idx_mapping=slots,
            idx_mapping_np=slots.numpy(),
            seq_lens=(begins + width).int(),
            seq_lens_cpu_upper_bound=(begins + width).int(),
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sampler, "apply_sampling_params", processed)
            patch.setattr(
                sampler.sampling_states,
                "max_num_logprobs",
                lambda *_: rejection_sampler.NO_LOGPROBS,
            )
            output = self.runner.rejection_sampler(logits, step, speculator.draft_logits)
        return output.sampled_token_ids, output.num_sampled.long()

    @staticmethod
    def _processed(
        logits: Tensor, text: Tensor, options: dict[str, Any], ends: Tensor | None = None
    ) -> Tensor:
        """What a request's options make of logits ``[rows, V]``, after the first ``ends`` tokens of each text."""
        counts = torch.zeros(len(logits), VOCABULARY)
        if ends is not None:
            there = torch.arange(text.shape[1]) < ends[:, None]
            counts.scatter_add_(1, text, there.float())
        return probabilities(logits.double(), counts, options).log().float()


def layers_of(exits: tuple[int, ...]) -> tuple[int, ...]:
    """Those after which logits are taken: the exits, and the model's end."""
    return (*exits, LAYERS)
