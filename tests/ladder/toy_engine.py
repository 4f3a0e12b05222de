"""What vLLM's scheduler and runner do to a ladder, in miniature, checking the ladder at every step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import torch

from tests.ladder.toy import LONGEST, ToyTiers
from vllm_kangaroo.drafting.kangaroo import Drafters, draft
from vllm_kangaroo.ladder.spans import Spans


@dataclass
class Request:
    """A request as the scheduler sees it."""

    name: str
    tokens: list[int]
    """The prompt and what was committed after it."""
    computed: int = 0
    """Positions whose KV is valid in all layers."""
    drafts: list[int] = field(default_factory=list)
    sampled: bool = False
    """Whether the newest token was sampled from KV that is still there: then the request may draft."""

    @property
    def pending(self) -> list[int]:
        return self.tokens[self.computed :] + self.drafts


@dataclass
class Scheduled:
    """A request's part of one step: how many of its pending tokens run, and how many drafts would be accepted."""

    request: Request
    length: int
    accepted: int
    next_token: int


class ToyEngine:
    """Runs steps over a :class:`ToyTiers` and compares all of it with a computation from scratch."""

    def __init__(
        self, exits: tuple[int, ...], most_drafts: int, *, joined: bool = False, whole: bool = False
    ) -> None:
        self.tiers = ToyTiers(exits, width=most_drafts + 1, joined=joined, whole=whole)
        self.ladder = self.tiers.ladder
        self.most_drafts = most_drafts
        self.requests: dict[str, Request] = {}
        # Per request and tier, the token each position was last computed for and not taken back since.
        self.standing: dict[str, list[dict[int, int]]] = {}
        self.verified = 0

    def add(self, name: str, prompt: list[int]) -> None:
        self.requests[name] = Request(name, list(prompt))
        self._forget_standing(name)

    def _forget_standing(self, name: str) -> None:
        self.standing[name] = [{} for _ in self.tiers.exits]

    def preempt(self, name: str, cached: int) -> None:
        """Free a request's blocks; it will come back with its first ``cached`` positions found in a prefix cache."""
        request = self.requests[name]
        kept = self.tiers.attention.cells.get(name)
        cached = min(cached, request.computed)
        self.tiers.attention.lose(name)
        if kept is not None:
            kept[:, cached:] = torch.nan
            self.tiers.attention.cells[name] = kept
        request.computed, request.drafts, request.sampled = cached, [], False
        self.ladder.forget(name)
        self._forget_standing(name)

    def abort(self, name: str) -> None:
        del self.requests[name]
        self.tiers.attention.lose(name)
        self.ladder.close(name)

    def step(self, plan: list[Scheduled]) -> None:
        """Verify and prefill what is scheduled, commit, rewind."""
        spans = self._spans([part.request for part in plan], [part.length for part in plan])
        tokens = [part.request.pending[: part.length] for part in plan]
        flat = [token for part in tokens for token in part]
        log = self.tiers.attention.computed
        log.clear()
        expected = self._expected(plan)
        hidden = self.ladder.complete(
            spans, torch.tensor(flat), np.array(flat), self.tiers.attention
        )
        assert sorted(log) == sorted(expected)
        self.verified += len(flat)
        for part, own in zip(plan, hidden.split([part.length for part in plan]), strict=True):
            request = part.request
            whole = request.tokens[: request.computed] + request.pending[: part.length]
            reference = self.tiers.model.reference(whole)[-1][request.computed :]
            torch.testing.assert_close(own, reference)
            self._commit(part)
        self.check()

    def _spans(self, requests: list[Request], lengths: list[int]) -> Spans:
        self.tiers.attention.requests = [request.name for request in requests]
        return Spans(
            rows=np.arange(len(requests)),
            slots=self.ladder.slots([request.name for request in requests]),
            starts=np.array([request.computed for request in requests]),
            lengths=np.array(lengths),
        )

    def _expected(self, plan: list[Scheduled]) -> list[tuple[str, int, int]]:
        """What has to be computed: in each tier, the scheduled positions it does not have for these very tokens."""
        expected = []
        for part in plan:
            request, standing = part.request, self.standing[part.request.name]
            wanted = dict(enumerate(request.pending[: part.length], start=request.computed))
            usable = 0
            while standing[0].get(request.computed + usable, -1) == wanted.get(
                request.computed + usable
            ):
                usable += 1
            for tier, layers in enumerate(self._layers()):
                skip = usable if tier == 0 else 0
                todo = [position for position in wanted if position >= request.computed + skip]
                expected += [(request.name, layer, p) for layer in layers for p in todo]
                standing[tier] = {p: t for p, t in standing[tier].items() if p < request.computed}
                standing[tier].update(wanted)
        return expected

    def _layers(self) -> list[range]:
        return [range(a, b) for a, b in zip((0, *self.tiers.exits), self.tiers.exits, strict=False)]

    def _commit(self, part: Scheduled) -> None:
        request = part.request
        end = request.computed + part.length
        if end < len(request.tokens):  # a chunk of a prompt: nothing is sampled
            request.computed = end
            return
        accepted = min(part.accepted, end - len(request.tokens))
        request.tokens += [*request.drafts[:accepted], part.next_token]
        request.drafts = []
        request.computed = len(request.tokens) - 1
        request.sampled = True
        slots, lengths = self.ladder.slots([request.name]), np.array([request.computed])
        self.ladder.rewind(slots, lengths)
        self.ladder.at_rest(slots, lengths)
        for tier in self.standing[request.name]:
            for position in [p for p in tier if p >= request.computed]:
                del tier[position]

    def draft(
        self,
        requests: list[Request],
        limits: list[int],
        threshold: float,
        stop_ids: Collection[int],
    ) -> None:
        """Draft for requests that are at rest, and compare the drafts with the reference's."""
        spans = self._spans(requests, [1] * len(requests))
        drafters = Drafters(
            rows=spans.rows,
            slots=spans.slots,
            starts=spans.starts,
            token_ids=[request.tokens[-1] for request in requests],
            limits=np.array(limits),
            stop_ids=[stop_ids for _ in requests],
        )
        drafts = draft(
            self.ladder, drafters, self.tiers.draft_pass, self.tiers.attention, threshold
        )
        for request, limit, drafted in zip(requests, limits, drafts.token_ids, strict=True):
            assert drafted == self.reference_drafts(request, limit, threshold, stop_ids)
            request.drafts = drafted
            sources = [request.tokens[-1], *drafted[:-1]]
            self.standing[request.name][0].update(enumerate(sources, start=request.computed))
        self.check()

    def reference_drafts(
        self, request: Request, limit: int, threshold: float, stop_ids: Collection[int]
    ) -> list[int]:
        """The paper's loop for one request, each token computed from scratch."""
        drafted: list[int] = []
        while len(drafted) < limit:
            streams = self.tiers.model.reference(request.tokens + drafted)
            token, confidence = self.tiers.head(streams[self.tiers.exits[0]][-1:])
            drafted.append(int(token))
            if float(confidence) < threshold or int(token) in stop_ids:
                break
        return drafted

    def at_rest(self) -> list[Request]:
        """Requests that could draft: their newest token was sampled and never run through the model."""
        return [
            request
            for request in self.requests.values()
            if request.sampled
            and not request.drafts
            and len(request.tokens) + self.most_drafts + 2 < LONGEST
        ]

    def check(self) -> None:
        """The ladder's invariants over all open requests."""
        counters = self.ladder.counters
        flying = np.zeros(len(self.tiers.exits), dtype=np.int64)
        for name, request in self.requests.items():
            (slot,) = self.ladder.slots([name])
            frontiers = self.ladder.frontiers[slot]
            assert (np.diff(frontiers) <= 0).all(), "a tier is ahead of the one below it"
            assert frontiers[-1] in (request.computed, 0)
            flying += frontiers - frontiers[-1]
        assert counters.verified == self.verified
        for tier in range(len(self.tiers.exits)):
            computed = counters.verified + counters.dropped[tier] + flying[tier]
            assert counters.positions[tier] == computed
