"""An engine in numbers: true costs and true acceptance, a clock that only its work moves, and any way of drafting."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vllm_kangaroo.goodput.acceptance import AcceptanceModel
from vllm_kangaroo.goodput.controller import GoodputController
from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.cost_profile import SIZES, CostProfile, Curve
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.goodput.observations import Observations
from vllm_kangaroo.goodput.reliability import Reliability

MOST = 6
PROMPT = 200
ANSWER = 200
"""Tokens of a request, after which another takes its place."""


@dataclass(frozen=True)
class Machine:
    """What passes truly take, in seconds: flat for few tokens, then in proportion to them."""

    engine: float = 0.002
    """Of a step, outside the model."""
    model: float = 0.010
    knee: int = 12
    """Tokens up to which a pass takes no longer."""
    per_kv: float = 2e-8
    per_request: float = 2e-5
    cut: float = 0.0004
    """How much longer a verification takes that is run tier by tier."""
    share: float = 0.25
    """Of a draft pass in that of the whole model."""
    around: float = 0.0003
    """Of a drafting round, beside its passes."""
    switch: float = 0.0
    """How much longer parts of a step take if that before it was of the other kind: with drafts, or without."""
    noise: float = 0.03
    warming: int = 0
    """Parts of steps after which it runs at its full speed, having begun at half of it."""

    def whole(self, tokens: float) -> float:
        return self.model * max(1.0, tokens / self.knee)

    def verify(self, load: Load, tokens: int, drafted: bool) -> float:
        beside = self.engine + self.per_request * load.requests + self.per_kv * load.kv_tokens
        return beside + self.whole(tokens + load.prompt_tokens) + self.cut * drafted

    def draft(self, requests: int) -> float:
        return self.share * self.whole(requests)

    def profile(self) -> CostProfile:
        """As one that is measured at the start: of passes alone."""
        return CostProfile(
            verify=Curve.timed({size: self.whole(size) for size in SIZES}),
            draft=Curve.timed({size: self.draft(size) for size in SIZES}),
        )


def fixed_goodput(machine: Machine, batch: int, acceptance: float, length: int) -> float:
    """Expected tokens a second if every request has so many drafts in every step."""
    load = Load(batch, batch * (PROMPT + ANSWER // 2))
    seconds = machine.verify(load, batch * (1 + length), length > 0)
    if length:
        seconds += length * machine.draft(batch) + machine.around
    return batch * sum(acceptance**at for at in range(length + 1)) / seconds


def best_fixed(machine: Machine, batch: int, acceptance: float) -> float:
    """The most of all lengths, none included."""
    return max(fixed_goodput(machine, batch, acceptance, at) for at in range(MOST + 1))


Acceptance = Callable[[float, int], float]
"""True mean acceptance of a draft at a time, of a request."""


@dataclass
class Simulation:
    """Steps of a batch that is always full, each with drafts as the controller says.

    Args:
        batch: requests at a time.
        surety: how much drafts of one request differ in how likely they are right, and their confidences with them; the
            larger the less. None gives confidences that say nothing.
    """

    acceptance: Acceptance
    batch: Callable[[float], int]
    machine: Machine = field(default_factory=Machine)
    surety: float | None = 2.0
    seed: int = 0
    profiled: bool = True
    profile_of: Machine | None = None
    """Another machine, whose profile is taken for this one's."""
    options: GoodputOptions = field(default_factory=GoodputOptions)

    def __post_init__(self) -> None:
        self.now = 0.0
        self.random = np.random.default_rng(self.seed)
        self.contexts = np.zeros(0, dtype=np.int64)
        self.produced = np.zeros(0)
        self.names = np.zeros(0, dtype=np.int64)
        self.began = 0
        self._cold = self.machine.warming
        self._pending: Any = None
        self._switched = self._drafted = False
        self.trace: list[tuple[float, float]] = []
        """After each step: the time, and the tokens that were to be expected of it."""
        described = self.profile_of or self.machine
        profile = described.profile() if self.profiled else CostProfile.unknown()
        self.controller = GoodputController(
            CostModel(profile),
            AcceptanceModel(MOST),
            Reliability(),
            self.options,
            most=MOST,
            clock=lambda: self.now,
        )

    def run(self, seconds: float) -> None:
        """Steps up to a time."""
        pending = self._pending
        while self.now < seconds:
            self._fill()
            pending = self._step(pending)
        self._pending = pending

    def goodput(self, begin: float, end: float) -> float:
        """Expected tokens a second between two times."""
        within = [(at, tokens) for at, tokens in self.trace if begin < at <= end]
        before = max((at for at, _ in self.trace if at <= begin), default=0.0)
        return sum(tokens for _, tokens in within) / (within[-1][0] - before)

    def _fill(self) -> None:
        wanted = self.batch(self.now)
        if len(self.contexts) < wanted:
            more = wanted - len(self.contexts)
            self.contexts = np.concatenate((self.contexts, np.full(more, PROMPT)))
            self.produced = np.concatenate((self.produced, np.zeros(more)))
            fresh = np.arange(self.began, self.began + more)
            self.names = np.concatenate((self.names, fresh))
            self.began += more
            for slot in range(wanted - more, wanted):
                self.controller.open(slot)
        self.contexts = self.contexts[:wanted]
        self.produced, self.names = self.produced[:wanted], self.names[:wanted]
        for slot in np.flatnonzero(self.produced >= ANSWER):
            self.contexts[slot], self.produced[slot] = PROMPT, 0
            self.names[slot] += 1000  # one of the same kind
            self.controller.open(int(slot))

    def _spend(self, seconds: float) -> float:
        spent = seconds * float(self.random.lognormal(0.0, self.machine.noise))
        if self._cold:
            spent *= 1.0 + self._cold / self.machine.warming
            self._cold -= 1
        spent *= 1.0 + self.machine.switch * self._switched
        self.now += spent
        return spent

    def _step(self, pending: Any) -> Any:
        """Verify what is pending, and draft for the next step."""
        count = len(self.contexts)
        lengths = np.zeros(count, dtype=np.int64)
        truths = np.zeros((count, MOST))
        seen = Observations()
        if pending is not None:
            lengths[: len(pending[0])] = pending[0][:count]
            truths[: len(pending[0])] = pending[1][:count]
            seen = pending[2]
        load = Load(count, int(self.contexts.sum()))
        width, drafted = count + int(lengths.sum()), bool(lengths.any())
        self._switched, self._drafted = drafted != self._drafted, drafted
        seconds = self._spend(self.machine.verify(load, width, drafted))
        seen.verify = (seconds, load, width, drafted)
        places = np.arange(MOST)
        within = places < lengths[:, None]
        right = (self.random.random((count, MOST)) < truths) & within
        accepted = np.cumprod(right, axis=1).sum(axis=1)
        self.trace.append((self.now, float(count + (np.cumprod(truths, axis=1) * within).sum())))
        self.contexts = self.contexts + accepted + 1
        self.produced = self.produced + accepted + 1
        control, slots = self.controller, np.arange(count)
        control.observe(seen, count + int(accepted.sum()))
        control.verified(slots, self.contexts, lengths, accepted)
        return self._draft_controlled()

    def _truth(self, requests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of a draft of each: how likely it is to be accepted, and its confidence."""
        mean = np.array([self.acceptance(self.now, int(self.names[at])) for at in requests])
        if self.surety is None:
            return mean, np.full(len(mean), 0.5)
        truth = self.random.beta(mean * self.surety, (1.0 - mean) * self.surety)
        return truth, truth

    def _draft_controlled(self) -> Any:
        count, control = len(self.contexts), self.controller
        load = Load(count, int(self.contexts.sum()))
        limits = np.full(count, MOST)
        chosen = control.choose(load, np.arange(count), self.contexts, limits)
        lengths, truths = np.zeros(count, dtype=np.int64), np.zeros((count, MOST))
        if chosen.round is None:
            return lengths, truths, Observations()
        alive = np.arange(len(chosen.requests))
        self._spend(self.machine.around)
        while len(alive):
            who = chosen.requests[alive]
            truth, sure = self._truth(who)
            truths[who, lengths[who]] = truth
            lengths[who] += 1
            self._spend(self.machine.draft(len(alive)))
            going = chosen.round.keep(alive.tolist(), sure.tolist(), [True] * len(alive))
            alive = alive[going]
        control.end(chosen)
        return lengths, truths, chosen.round.observations()
