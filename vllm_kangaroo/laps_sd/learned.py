"""The learned predictor: a classifier over log-spaced length bins, trained online on finished requests."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.laps_sd.lengths import (
    BINS,
    EmpiricalLengths,
    LengthDistribution,
    LengthHistogram,
    RequestFacts,
    bin_of,
)
from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.laps_sd.prompt_features import SIZE, features

Array = NDArray[np.float32]


class LearnedLengths:
    """A network with one small hidden layer from hashed prompt features to the bins of lengths.

    scikit-learn's ``MLPClassifier`` does the learning, a handful of finished requests at a time. Its probabilities are
    mixed with the empirical distribution, which also answers alone until ``min_history`` requests have finished.

    Args:
        min_history: finished requests before the classifier is asked.
        file: where it is saved and read from; None for neither.

    Raises:
        LapsSdError: if ``file`` is not one of ours.
    """

    BATCH = 32
    SAVE_EVERY = 512
    HIDDEN = 32
    MIX = 0.02
    """Share of the empirical distribution: what the classifier rules out may still happen."""
    FORMAT = 1

    def __init__(self, min_history: int = 200, file: Path | None = None) -> None:
        from sklearn.neural_network import MLPClassifier

        self.empirical = EmpiricalLengths()
        self.min_history = min_history
        self.file = file
        self._model: Any = MLPClassifier(
            (self.HIDDEN,), alpha=1e-3, learning_rate_init=2e-3, random_state=0
        )
        self._pending: list[tuple[NDArray[np.int64], int]] = []
        self._seen = np.zeros(BINS, dtype=bool)
        self.learnt = 0
        if file is not None and file.exists():
            self._load(file)

    def predict(self, facts: RequestFacts) -> LengthDistribution:
        """The distribution of one request's length, given its prompt."""
        if self.learnt < max(self.min_history, 1):
            return self.empirical.predict(facts)
        # The classifier's own forward pass, which for one sparse row is a sum of a few rows of its weights.
        (first, second), (bias, top) = self._model.coefs_, self._model.intercepts_
        hidden = np.maximum(first[features(facts)].sum(axis=0) + bias, 0.0)
        scores = hidden @ second + top
        chances = np.exp(scores - scores.max()) * self._seen
        chances *= (1.0 - self.MIX) / max(float(chances.sum()), 1e-30)
        return LengthHistogram((chances + self.MIX * self.empirical.shares()).tolist())

    def learn(self, facts: RequestFacts, output_tokens: int) -> None:
        """Takes effect a batch at a time."""
        self.empirical.learn(facts, output_tokens)
        self._pending.append((features(facts), bin_of(max(output_tokens, 1))))
        if len(self._pending) >= self.BATCH:
            self._learn_pending()

    def _learn_pending(self) -> None:
        from scipy.sparse import csr_matrix

        rows, labels = zip(*self._pending, strict=True)
        ends = np.cumsum([0, *map(len, rows)])
        indices = np.concatenate(rows)
        ones = np.ones(len(indices), dtype=np.float32)
        self._fit(csr_matrix((ones, indices, ends), shape=(len(rows), SIZE)), np.array(labels))
        self._pending.clear()
        self._seen[list(labels)] = True
        before, self.learnt = self.learnt, self.learnt + len(rows)
        if self.file is not None and before // self.SAVE_EVERY != self.learnt // self.SAVE_EVERY:
            self.save()

    def _fit(self, rows: Any, labels: NDArray[np.int64]) -> None:
        self._model.partial_fit(rows, labels, classes=np.arange(BINS))
        self._model.loss_curve_.clear()  # a number a batch, for good; the best loss is kept beside

    def save(self) -> None:
        """Write to ``file`` what has been learnt, in one piece or not at all."""
        if self.file is None or not self.learnt:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.file.parent, suffix=".npz")
        arrays = [*self._model.coefs_, *self._model.intercepts_]
        with os.fdopen(handle, "wb") as out:
            np.savez_compressed(
                out,
                format=self.FORMAT,
                learnt=self.learnt,
                lengths=self.empirical.shares(),
                seen=self._seen,
                **{f"array{at}": array for at, array in enumerate(arrays)},
            )
        Path(name).replace(self.file)

    def _load(self, file: Path) -> None:
        from scipy.sparse import csr_matrix

        # A first call gives the arrays their shapes and the optimiser its hold on them.
        self._fit(csr_matrix((1, SIZE), dtype=np.float32), np.zeros(1, dtype=np.int64))
        try:
            with np.load(file, allow_pickle=False) as found:
                stored = {name: found[name] for name in found.files}
            arrays = [*self._model.coefs_, *self._model.intercepts_]
            if int(stored["format"]) != self.FORMAT or any(
                stored[f"array{at}"].shape != array.shape for at, array in enumerate(arrays)
            ):
                raise ValueError("it was written by another version")
            lengths, seen = stored["lengths"], stored["seen"]
            self.learnt = int(stored["learnt"])
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise LapsSdError(
                f"predictor_file={str(file)!r} cannot be read ({error}): delete it, or name another file."
            ) from error
        for at, array in enumerate(arrays):
            array[...] = stored[f"array{at}"]
        self._seen = seen
        self.empirical.restore(lengths, self.learnt)
