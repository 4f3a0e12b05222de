"""One draft length for all requests of a step, chosen before the step's tokens are known.

Where steps are scheduled ahead, nothing can be decided draft by draft or request by request. What is left is SmartSpec's own
choice (arXiv 2406.14066, algorithm 1): of all lengths the one that is expected to bring the most tokens a second, at the
present load. Costs and acceptance are learnt from steps that have come back.
"""

from __future__ import annotations

import numpy as np

from vllm_kangaroo.goodput.acceptance import AcceptanceModel, Ints
from vllm_kangaroo.goodput.cost_model import Load
from vllm_kangaroo.goodput.goodput_options import GoodputOptions
from vllm_kangaroo.goodput.goodput_stats import GoodputStats, Off
from vllm_kangaroo.goodput.least_squares import Floats, LeastSquares
from vllm_kangaroo.goodput.probes import ProbeBudget
from vllm_kangaroo.goodput.reliability import Reliability


class StepCost:
    """Seconds of drafting and of the step that verifies: linear in tokens, KV tokens, prompt tokens, draft passes and their rows.

    Args:
        unit: seconds of a step, about; all else is learnt.
    """

    def __init__(self, unit: float) -> None:
        prior = (0.6 * unit, 0.01 * unit, 0.0, 0.01 * unit, 0.08 * unit, 0.0)
        spread = (0.6 * unit, 0.05 * unit, 1e-4 * unit, 0.05 * unit, 0.2 * unit, 0.02 * unit)
        self._fit = LeastSquares(prior, spread, least=0.05 * unit)

    @staticmethod
    def _features(load: Load, tokens: int, drafts: int) -> Floats:
        passes = drafts + 1 if drafts else 0
        return np.array(
            (
                1.0,
                tokens,
                load.kv_tokens,
                load.prompt_tokens,
                passes,
                passes * load.requests,
            )
        )

    def seconds(self, load: Load, tokens: int, drafts: int) -> float:
        """Of drafting so many for each request, and of a step over ``tokens`` beside those of prompts."""
        return max(self._fit.predict(self._features(load, tokens, drafts)), 1e-9)

    def observe(self, seconds: float, load: Load, tokens: int, drafts: int) -> None:
        """They took so long."""
        self._fit.observe(self._features(load, tokens, drafts), seconds, kind=drafts)


class StepLengths:
    """Goodput control of an engine that schedules ahead.

    Args:
        most: most drafts of a request.
    """

    def __init__(self, acceptance: AcceptanceModel, options: GoodputOptions, *, most: int) -> None:
        self.acceptance = acceptance
        self.acceptance.open(0)
        self.reliability = Reliability(None)
        self.most = most
        self.stats = GoodputStats(lengths=[0] * (most + 1))
        self.decides = options.decide
        self.probes = ProbeBudget(options.probe_share)
        self.goodput = 0.0
        """Expected tokens a second of the newest step."""
        self.costs: StepCost | None = None
        self._margin = options.start_margin
        self._drafting = True
        self._turn = 0

    def observe(self, seconds: float, load: Load, tokens: int, drafts: int, gained: int) -> None:
        """Learn what a step took.

        Args:
            tokens: that it ran over beside those of prompts.
            drafts: that had been made for each request; the time is that of making them and of the step.
            gained: tokens that it brought.
        """
        if self.costs is None:
            self.costs = StepCost(seconds)
        self.stats.timed(seconds, self.costs.seconds(load, tokens, drafts), gained)
        self.costs.observe(seconds, load, tokens, drafts)
        self.probes.earn(seconds, drafted=drafts > 0, requests=load.requests)

    def verified(self, contexts: Ints, drafted: Ints, accepted: Ints) -> None:
        """Learn from the verifications of a step's requests, ``[requests]`` each."""
        own = drafted > 0
        if not own.any():
            return
        accepted = np.minimum(accepted, drafted)[own]
        self.stats.accepted += int(accepted.sum())
        slots = np.zeros(len(accepted), dtype=np.int64)  # requests are not told apart
        self.acceptance.learn(slots, contexts[own], drafted[own], accepted)

    def choose(self, load: Load) -> int:
        """How many drafts each request of ``load`` gets for the step after the one that is being scheduled."""
        if self.costs is None or not self.decides or not load.requests:
            return self._chosen(self.most, load)
        rates = self._rates(load)
        best = int(np.argmax(rates[1:])) + 1
        margin = 1.0 if self._drafting else 1.0 + self._margin
        self._drafting = bool(rates[best] > rates[0] * margin)
        length = best if self._drafting else 0
        self.goodput = float(rates[length])
        return self._chosen(self._probed(length, rates, load), load)

    def _gains(self) -> Floats:
        """Tokens that a request is expected to gain by each number of drafts, from 0 on."""
        kept = np.cumprod(self.acceptance.by_position)
        found: Floats = 1.0 + np.concatenate(([0.0], np.cumsum(kept)))
        return found

    def _seconds(self, load: Load, drafts: int) -> float:
        assert self.costs is not None
        return self.costs.seconds(load, load.requests * (1 + drafts), drafts)

    def _rates(self, load: Load) -> Floats:
        """Tokens a second by the number of drafts, from 0 on."""
        seconds = [self._seconds(load, drafts) for drafts in range(self.most + 1)]
        found: Floats = load.requests * self._gains() / np.array(seconds)
        return found

    def _probed(self, length: int, rates: Floats, load: Load) -> int:
        """The length, or now and then another: of what is never done nothing is learnt."""
        if not self.probes.affordable:
            return length
        if length and self.probes.plain_due:
            other = 0
        else:
            others = [each for each in range(1, self.most + 1) if each != length]
            if not others:
                return length
            other = others[self._turn % len(others)]
        lost = self._seconds(load, other) * max(0.0, 1.0 - rates[other] / rates[length])
        if not self.probes.spend(lost):
            return length
        self._turn += 1
        if other:
            self.stats.probes += 1
        else:
            self.stats.measured += 1
        return other

    def _chosen(self, length: int, load: Load) -> int:
        stats = self.stats
        stats.lengths[length] += load.requests
        stats.expected += load.requests * float(self._gains()[length] - 1.0)
        if not length:
            stats.off[self._why(load)] += load.requests
        return length

    def _why(self, load: Load) -> Off:
        if self._drafting:
            return Off.MEASURING
        alone = self._rates(Load(1, load.kv_tokens // max(load.requests, 1)))
        return Off.LOAD if alone[1:].max() > alone[0] else Off.ACCEPTANCE
