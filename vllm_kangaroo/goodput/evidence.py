"""What verifications say, gathered over a few steps before it is learnt from: that costs about the same for many as for one."""

from __future__ import annotations

import numpy as np

from vllm_kangaroo.goodput.acceptance import AcceptanceModel, Ints
from vllm_kangaroo.goodput.least_squares import Floats
from vllm_kangaroo.goodput.reliability import Reliability


class Evidence:
    """Verifications of drafts that nothing has been learnt from yet."""

    SECONDS = 0.05
    """Of steps, after which it is learnt from them."""
    STEPS = 8
    """Steps after which it is all the same."""

    def __init__(self) -> None:
        self._rows: list[tuple[Ints, Ints, Ints, Ints, Floats]] = []
        self._seconds = 0.0

    def add(
        self,
        slots: Ints,
        contexts: Ints,
        drafted: Ints,
        accepted: Ints,
        confidences: Floats,
        seconds: float,
    ) -> bool:
        """Take in one step's, which took so long; whether it is time to learn."""
        self._rows.append((slots, contexts, drafted, accepted, confidences))
        self._seconds += seconds
        return self._seconds >= self.SECONDS or len(self._rows) >= self.STEPS

    def teach(self, acceptance: AcceptanceModel, reliability: Reliability | None) -> None:
        """Let the models learn all of it; None where confidences say nothing."""
        columns = zip(*self._rows, strict=True)
        slots, contexts, drafted, accepted, confidences = map(np.concatenate, columns)
        probabilities = None
        if reliability is not None:
            places = np.arange(confidences.shape[1])
            seen = places < np.minimum(accepted + 1, drafted)[:, None]
            right = places < accepted[:, None]
            reliability.learn(confidences[seen], right[seen])
            known = reliability.probabilities(confidences.ravel())
            probabilities = known.reshape(confidences.shape)
        acceptance.learn(slots, contexts, drafted, accepted, probabilities)
        self._rows, self._seconds = [], 0.0
