"""Three toy tiers and what HiSpec does with them: over the ladder, and from scratch as the paper has it.

The intermediate verifier can be told what to say. :data:`VERDICTS` names the ways; each is a function of what is
checked and where, so that the ladder and the reference hear the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.ladder.toy import VOCAB, ToyTiers
from vllm_kangaroo.drafting.hispec import draft, propose
from vllm_kangaroo.drafting.kangaroo import Drafters, Drafts
from vllm_kangaroo.ladder.spans import Spans
from vllm_kangaroo.ladder.store import State
from vllm_kangaroo.options import EarlyExitPlan

Verdict = Callable[[str, int, int, int], int]
"""Request, position of the draft, the draft, the honest verdict -> the verdict."""


def _mixed(request: str, position: int, drafted: int, honest: int) -> int:
    ways = (
        honest,
        drafted,
        (drafted + 1) % VOCAB,
        Random(f"{request}/{position}").randrange(VOCAB),
    )
    return ways[Random(f"{position}/{request}").randrange(len(ways))]


VERDICTS: dict[str, Verdict] = {
    "honest": lambda request, position, drafted, honest: honest,
    "accepts all": lambda request, position, drafted, honest: drafted,
    "accepts none": lambda request, position, drafted, honest: (drafted + 1) % VOCAB,
    "random": lambda request, position, drafted, honest: Random(f"{request}/{position}").randrange(
        VOCAB
    ),
    "mixed": _mixed,
}

Work = tuple[str, int, int]
"""Request, layer and position of one computation."""


@dataclass
class Settings:
    """One engine's settings."""

    limit: int
    """N_i"""
    per_round: int
    """N_d"""
    threshold: float = 0.0
    verdict: Verdict = VERDICTS["honest"]
    stop_ids: Collection[int] = ()


@dataclass
class Buffer:
    """What the reference arrives at for one request."""

    token_ids: list[int] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)
    rounds: int = 0
    drafted: int = 0
    work: list[Work] = field(default_factory=list)


class HiSpecToy(ToyTiers):
    """Exits whose tokens agree most of the time, and generation as the engine drives it."""

    def __init__(self, exits: tuple[int, int, int], width: int) -> None:
        super().__init__(exits, width)
        generator = torch.Generator().manual_seed(6)
        shape = self.model.embedding.shape
        embedding = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.model.embedding = 3 * torch.nn.functional.normalize(embedding, dim=-1)
        self.model.keys *= 0.6
        self.proposed: dict[tuple[str, int], int] = {}
        self.rounds: list[list[str]] = []
        self.drafting = False
        self.verdict: Verdict = VERDICTS["honest"]
        self.pace: Any = None

    def head(self, stream: Tensor) -> tuple[Tensor, Tensor]:
        """A token's successor in the vocabulary is the likely one, unless the layers say otherwise."""
        logits = stream @ self.model.embedding.roll(5, 0).t()
        confidences, token_ids = logits.softmax(-1).max(-1)
        return token_ids, confidences

    # -- over the ladder ---------------------------------------------------------------------

    def draft_pass(
        self, input_ids: Tensor, positions: Tensor, memory: Tensor | None = None
    ) -> tuple[State, Tensor, Tensor]:
        """As in :class:`ToyTiers`; remembers what was drafted, and checks where tiers 1 and 2 begin a round."""
        spans = self.spans()
        if not self.drafting:
            assert (self.ladder.frontiers[spans.slots, :2] == spans.starts[:, None]).all()
        self.drafting = True
        state, token_ids, confidences = super().draft_pass(input_ids, positions)
        for row, position, token in zip(spans.rows, spans.starts, token_ids.tolist(), strict=True):
            self.proposed[self.attention.requests[row], int(position) + 1] = token
        return state, token_ids, confidences

    def check_pass(
        self, positions: Tensor, state: State, memory: Tensor | None = None
    ) -> tuple[State, Tensor]:
        """See :class:`vllm_kangaroo.drafting.hispec.CheckPass`; checks where they stand before a check."""
        self.drafting = False
        spans = self.spans()
        frontiers = self.ladder.frontiers[spans.slots]
        assert (frontiers[:, 0] == spans.ends).all() and (frontiers[:, 1] == spans.starts).all()
        self.rounds.append([self.attention.requests[row] for row in spans.rows])
        state = self.attention.run(range(*self.exits[:2]), positions, state)
        honest, _ = self.head(torch.stack(state).sum(0))
        owners = np.repeat([self.attention.requests[row] for row in spans.rows], spans.lengths)
        verdicts = [
            self.verdict(owner, position + 1, self.proposed[owner, position + 1], own)
            for owner, position, own in zip(
                owners.tolist(), positions.tolist(), honest.tolist(), strict=True
            )
        ]
        return state, torch.tensor(verdicts)

    def spans(self) -> Spans:
        """What the running pass is over, in the ladder's slots."""
        spans = self.attention._spans
        assert spans is not None
        slots = self.ladder.slots([self.attention.requests[row] for row in spans.rows])
        return Spans(spans.rows, slots, spans.starts, spans.lengths)

    def complete(self, requests: dict[str, list[int]], starts: dict[str, int]) -> list[Tensor]:
        """Verify or prefill from ``starts`` to the end: final streams of each request's new positions."""
        self.attention.requests = list(requests)
        lengths = [len(tokens) - starts[name] for name, tokens in requests.items()]
        spans = Spans(
            rows=np.arange(len(requests)),
            slots=self.ladder.slots(list(requests)),
            starts=np.array([starts[name] for name in requests]),
            lengths=np.array(lengths),
        )
        flat = [token for name, tokens in requests.items() for token in tokens[starts[name] :]]
        hidden = self.ladder.complete(spans, torch.tensor(flat), np.array(flat), self.attention)
        return list(hidden.split(lengths))

    def draft(self, requests: dict[str, list[int]], settings: dict[str, Settings]) -> Drafts:
        """Fill buffers; every request's last token has not been run."""
        (per_round,) = {each.per_round for each in settings.values()}
        (threshold,) = {each.threshold for each in settings.values()}
        return draft(
            self.ladder,
            self.drafters(requests, settings),
            self.draft_pass,
            self.check_pass,
            self.attention,
            tokens_per_round=per_round,
            threshold=threshold,
        )

    def propose(self, requests: dict[str, list[int]], settings: dict[str, Settings]) -> Drafts:
        """The same as an engine asks for it."""
        (per_round,) = {each.per_round for each in settings.values()}
        passes: Any = SimpleNamespace(draft=self.draft_pass, verifier=self.check_pass)
        plan = EarlyExitPlan(
            method="hispec",
            exits=self.exits,
            adapters=(None, None),
            num_speculative_tokens=max(each.limit for each in settings.values()),
            confidence_threshold=0.0,
            tokens_per_round=per_round,
        )
        drafters = self.drafters(requests, settings)
        return propose(self.ladder, drafters, passes, self.attention, plan, None)

    def drafters(self, requests: dict[str, list[int]], settings: dict[str, Settings]) -> Drafters:
        """The requests of a step."""
        self.attention.requests = list(requests)
        return Drafters(
            rows=np.arange(len(requests)),
            slots=self.ladder.slots(list(requests)),
            starts=np.array([len(tokens) - 1 for tokens in requests.values()]),
            token_ids=[tokens[-1] for tokens in requests.values()],
            limits=np.array([settings[name].limit for name in requests]),
            stop_ids=[settings[name].stop_ids for name in requests],
            pace=self.pace,
        )

    # -- from scratch ------------------------------------------------------------------------

    def next_token(self, exit_layer: int, token_ids: Sequence[int]) -> tuple[int, float]:
        """What an exit says comes next, and how sure it is; everything computed anew."""
        token, confidence = self.head(self.model.reference(token_ids)[exit_layer][-1:])
        return int(token), float(confidence)

    def reference(self, name: str, token_ids: list[int], settings: Settings) -> Buffer:
        """Algorithm 1 of the paper for one request, word by word."""
        buffer = Buffer()
        own = buffer.token_ids
        while len(own) < settings.limit and not (own and own[-1] in settings.stop_ids):
            start = len(token_ids) + len(own)  # where the first draft of this round will stand
            drafts, confidences = [], []
            while len(drafts) < min(settings.per_round, settings.limit - len(own)):
                token, sure = self.next_token(self.exits[0], token_ids + own + drafts)
                drafts.append(token)
                confidences.append(sure)
                if sure < settings.threshold or token in settings.stop_ids:
                    break
            for at in range(len(drafts)):
                # One run of the layers below the second exit per token that a draft is drawn from.
                buffer.work += [(name, layer, start + at - 1) for layer in range(self.exits[1])]
            buffer.rounds += 1
            buffer.drafted += len(drafts)
            context = token_ids + own
            for at, token in enumerate(drafts):
                honest, _ = self.next_token(self.exits[1], context + drafts[:at])
                verdict = settings.verdict(name, start + at, token, honest)
                own.append(verdict)
                buffer.confidences.append(confidences[at] if verdict == token else 1.0)
                if verdict != token:
                    break
        return buffer

    def greedy(self, token_ids: list[int], count: int) -> list[int]:
        """The full model alone."""
        tokens = list(token_ids)
        for _ in range(count):
            tokens.append(self.next_token(self.exits[-1], tokens)[0])
        return tokens[len(token_ids) :]
