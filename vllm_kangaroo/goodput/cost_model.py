"""What a step takes: verification, draft passes, intermediate passes, and what a round costs around them.

SmartSpec's step times are linear in tokens, KV tokens read and requests (arXiv 2406.14066, section 4). Ours are linear in a
timed curve over tokens besides, since a pass over four tokens often takes as long as one over a single token.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vllm_kangaroo.goodput.cost_profile import CostProfile, Curve
from vllm_kangaroo.goodput.least_squares import Floats, LeastSquares

EACH = 2e-4
"""Seconds that an engine may take for a token or a request beside a timed pass, about: bookkeeping, whatever the model."""
EACH_KV = 1e-6
"""The same of a position that is attended to."""
AROUND = 3e-4, 1e-3
"""The same of a round of drafting beside its passes, and how far that may be off."""
EACH_AROUND = 4e-5
"""The same of a request that drafts, beside the passes of a round."""
EACH_PASS = 2e-5, 1e-7
"""The same of a request in a pass of a round, and of a position that is attended to. What a few requests take says little of what many
do: were these left open, noise of a tenth of a millisecond would make a pass of thirty-two seem three milliseconds longer."""
BESIDE = 4e-3
"""The same of a step, whatever it runs over."""
CUT = 5e-4
"""The same of a step that verifies drafts, beside one over as many tokens that does not."""
FURTHER = 0.0, 0.0
"""What a draft pass after a round's first has of what is around a round."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a verification runs over, beside the drafts that are decided on."""

    requests: int
    """That get a token at least."""
    kv_tokens: int = 0
    """Positions whose keys and values are read, summed over requests."""
    prompt_tokens: int = 0


class PassCost:
    """Seconds of one kind of pass: ``fixed + scale·curve(tokens) + a·tokens + b·kv_tokens``, a few features beside."""

    TABLE = 256
    """Numbers of tokens below which the curve is looked up: it is asked a dozen times a step."""

    def __init__(
        self,
        curve: Curve,
        *,
        timed: bool,
        around: float,
        beside: float = 0.0,
        each: tuple[float, float] = EACH_PASS,
        others: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Begin from a curve.

        Args:
            timed: whether the curve was measured.
            around: how much longer than the curve a pass may take, in units of its first point.
            beside: seconds that it takes longer, about.
            each: seconds that a token and a position attended to take beside the curve, about.
            others: seconds that each of further features takes, about, and how far that may be off.
        """
        self._tokens, self._seconds = curve.arrays()
        self._sizes: list[float] = self._tokens.tolist()
        self._begins: list[float] = self._seconds.tolist()
        self._slopes: list[float] = (np.diff(self._seconds) / np.diff(self._tokens)).tolist()
        few = np.interp(np.arange(self.TABLE), self._tokens, self._seconds)
        self._few: list[float] = few.tolist()
        self._prices: list[float] = []
        """What such numbers of tokens take by the coefficients below, as long as these are the fit's."""
        self._priced: list[float] = []
        unit = curve.seconds[0]
        prior = [max(0.1 * around * unit, beside), 1.0, 0.0, 0.0, *[about for about, _ in others]]
        spread = [max(around * unit, 2.0 * beside), 0.3, *each]
        if not timed:
            spread = [around * unit, 3.0, 0.05 * unit, 1e-4 * unit]
            others = [(about, max(0.3 * unit, off)) for about, off in others]
        spread += [off for _, off in others]
        self.fit = LeastSquares(prior, spread, least=0.05 * unit)

    def _curve(self, tokens: float) -> float:
        if type(tokens) is int and tokens < self.TABLE:
            return self._few[tokens]
        at = min(max(bisect_right(self._sizes, tokens) - 1, 0), len(self._slopes) - 1)
        return self._begins[at] + max(0.0, tokens - self._sizes[at]) * self._slopes[at]

    def seconds(self, tokens: float, kv_tokens: float, *others: float) -> float:
        """Of one pass. Plain numbers: it is asked several times a step, and a step may be short."""
        known = self.fit.coefficients
        found = known[0] + known[1] * self._curve(tokens) + known[2] * tokens + known[3] * kv_tokens
        for at, feature in enumerate(others, 4):
            found += known[at] * feature
        return found

    def after(self, tokens: int, more: int, kv_tokens: float, *others: float) -> list[float]:
        """Of passes over ``tokens`` and one to ``more`` further ones: plain numbers in one call."""
        fixed, scale, each, kv, *rest = self.fit.coefficients
        fixed += kv * kv_tokens
        for coefficient, feature in zip(rest, others, strict=True):
            fixed += coefficient * feature
        first, last = tokens + 1, tokens + more + 1
        if last > self.TABLE:
            curve = self._curve
            return [fixed + scale * curve(width) + each * width for width in range(first, last)]
        if self._priced is not self.fit.coefficients:
            self._priced = self.fit.coefficients
            self._prices = [scale * few + each * width for width, few in enumerate(self._few)]
        return [fixed + price for price in self._prices[first:last]]

    def along(self, tokens: Floats, kv_tokens: Floats | float, *others: float) -> Floats:
        """Of passes over each of ``tokens``, of any shape."""
        fixed, scale, each, kv, *more = self.fit.coefficients
        for coefficient, feature in zip(more, others, strict=True):
            fixed += coefficient * feature
        found: Floats = scale * np.interp(tokens, self._tokens, self._seconds)
        found += each * tokens
        found += fixed + kv * kv_tokens
        return found

    def observe(
        self, seconds: float, tokens: float, kv_tokens: float, *others: float, kind: int = 0
    ) -> None:
        """A pass took so long; see :meth:`LeastSquares.observe`."""
        features = (1.0, self._curve(tokens), tokens, kv_tokens, *others)
        self.fit.observe(np.array(features, dtype=np.float64), seconds, kind=kind)


class CostModel:
    """Costs of one engine, begun from a profile and kept up by observations."""

    def __init__(self, profile: CostProfile) -> None:
        timed = profile.timed
        unit = profile.verify.seconds[0]
        others = ((0.0, EACH), (0.0, EACH), (0.0, max(0.1 * unit, CUT)))
        self._verify = PassCost(
            profile.verify,
            timed=timed,
            around=2.0,
            beside=BESIDE,
            each=(EACH, EACH_KV),
            others=others,
        )
        draft = profile.draft or profile.verify
        # Of a round of a single pass no more than the sum is known of that pass and what is around it: one fit for both.
        about, off = AROUND
        opening = ((max(0.05 * unit, about), max(0.2 * unit, off)), (0.0, EACH_AROUND))
        self._draft = PassCost(draft, timed=timed, around=1.0, others=opening)
        self._check = PassCost(profile.check or draft, timed=timed, around=1.0)

    def verify(self, load: Load, tokens: int, *, drafted: bool) -> float:
        """A step besides drafting, over ``tokens`` of requests that decode: the engine's part of it included.

        Args:
            drafted: whether there are drafts among them, so that the model is run tier by tier.
        """
        every = tokens + load.prompt_tokens
        rest = (float(load.requests), float(load.prompt_tokens), float(drafted))
        return self._verify.seconds(every, load.kv_tokens, *rest)

    def verify_along(self, load: Load, tokens: Floats) -> Floats:
        """The same with drafts, of each of ``tokens``."""
        rest = (float(load.requests), float(load.prompt_tokens), 1.0)
        return self._verify.along(tokens + load.prompt_tokens, load.kv_tokens, *rest)

    def verify_after(self, load: Load, tokens: int, more: int) -> list[float]:
        """The same with drafts, of one to ``more`` tokens beyond ``tokens``."""
        rest = (float(load.requests), float(load.prompt_tokens), 1.0)
        return self._verify.after(tokens + load.prompt_tokens, more, load.kv_tokens, *rest)

    def draft_up_to(self, requests: int, kv_tokens: float) -> list[float]:
        """Draft passes over one to so many requests, ``kv_tokens`` each."""
        if requests == 1:
            return [self._draft.seconds(1, kv_tokens)]
        return [
            seconds + self._draft.fit.coefficients[3] * kv_tokens * count
            for count, seconds in enumerate(self._draft.after(0, requests, 0.0, *FURTHER), 1)
        ]

    def draft(self, requests: float, kv_tokens: float) -> float:
        """A draft pass."""
        return self._draft.seconds(requests, kv_tokens)

    def draft_along(self, requests: Floats, kv_tokens: Floats) -> Floats:
        """Draft passes over each of so many requests."""
        return self._draft.along(requests, kv_tokens, *FURTHER)

    def check(self, tokens: float, kv_tokens: float) -> float:
        """An intermediate verification."""
        return self._check.seconds(tokens, kv_tokens)

    def check_along(self, tokens: Floats, kv_tokens: Floats) -> Floats:
        """Intermediate verifications over each of so many tokens."""
        return self._check.along(tokens, kv_tokens)

    def overhead(self, requests: float) -> float:
        """What a round of drafting takes beside its passes."""
        fixed, each = self._draft.fit.coefficients[4:]
        return fixed + each * requests

    def observe_verify(self, seconds: float, load: Load, tokens: int, *, drafted: bool) -> None:
        """A step besides drafting took so long."""
        every = tokens + load.prompt_tokens
        rest = (float(load.requests), float(load.prompt_tokens), float(drafted))
        self._verify.observe(seconds, every, load.kv_tokens, *rest, kind=int(drafted))

    def observe_draft(self, seconds: float, requests: float, kv_tokens: float) -> None:
        """A draft pass after a round's first took so long."""
        self._draft.observe(seconds, requests, kv_tokens, *FURTHER)

    def observe_check(self, seconds: float, tokens: float, kv_tokens: float) -> None:
        """An intermediate verification took so long."""
        self._check.observe(seconds, tokens, kv_tokens)

    def observe_opening(self, seconds: float, requests: float, kv_tokens: float) -> None:
        """A round's first draft pass took so long, with all that the round takes beside its passes."""
        self._draft.observe(seconds, requests, kv_tokens, 1.0, float(requests), kind=1)
