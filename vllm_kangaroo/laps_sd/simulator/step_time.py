"""How long does an engine step take? A linear model, its coefficients fitted from measured steps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.laps_sd.step_records import StepRecord


class StepTime(BaseModel):
    """Seconds of a step: after SmartSpec (arXiv 2406.14066), verification and drafting are linear in the batch.

    ``fixed + per_token·(tokens - prompt_tokens) + per_prompt_token·prompt_tokens + per_kv·kv_tokens
    + per_request·requests + drafts·(draft + draft_per_request·requests)``
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    fixed: float = Field(ge=0.0)
    per_token: float = Field(default=0.0, ge=0.0)
    per_prompt_token: float | None = Field(default=None, ge=0.0)
    """The same as ``per_token`` if None."""
    per_kv: float = Field(default=0.0, ge=0.0)
    per_request: float = Field(default=0.0, ge=0.0)
    draft: float = Field(default=0.0, ge=0.0)
    draft_per_request: float = Field(default=0.0, ge=0.0)

    @property
    def prompt_rate(self) -> float:
        """Seconds per prompt token."""
        return self.per_token if self.per_prompt_token is None else self.per_prompt_token

    def seconds(
        self,
        requests: int,
        tokens: float,
        kv_tokens: float,
        drafts: float,
        prompt_tokens: int = 0,
    ) -> float:
        """Of one step; the arguments as in :class:`StepRecord`, or their means."""
        return (
            self.fixed
            + self.per_token * (tokens - prompt_tokens)
            + self.prompt_rate * prompt_tokens
            + self.per_kv * kv_tokens
            + self.per_request * requests
            + drafts * (self.draft + self.draft_per_request * requests)
        )


def fit(steps: Sequence[StepRecord]) -> StepTime:
    """Least squares of the relative error, no coefficient below zero.

    Errors are relative to the time that is found, not to that of the step: the latter would make slow steps count for
    less, and the times too short by about twice their relative variance. The whole is then scaled to the time that the
    steps took together, since what queues up is whole seconds.

    Raises:
        LapsSdError: if there are fewer than 20 steps.
    """
    from scipy.optimize import nnls

    if len(steps) < 20:
        raise LapsSdError(f"a fit needs at least 20 measured steps, not {len(steps)}: record more.")
    rows = np.array(
        [
            (
                *(1, s.tokens - s.prompt_tokens, s.prompt_tokens),
                *(s.kv_tokens, s.requests, s.drafts, s.drafts * s.requests),
            )
            for s in steps
        ],
        dtype=np.float64,
    )
    seconds = np.array([step.seconds for step in steps])
    # Slow outliers, a page fault or another process, must not bend the model.
    keep = np.ones(len(steps), dtype=bool)
    expected = seconds
    found = np.zeros(rows.shape[1])
    for _ in range(5):
        scale = np.maximum(rows[keep].max(axis=0), 1.0)
        weighted = rows[keep] / scale / expected[keep, None]
        found, _residual = nnls(weighted, seconds[keep] / expected[keep])
        found = found / scale
        expected = np.maximum(rows @ found, 1e-9)
        keep = seconds < 4.0 * expected
        if keep.sum() < 20:
            keep[:] = True
    found *= seconds[keep].sum() / expected[keep].sum()
    names = ("fixed", "per_token", "per_prompt_token", "per_kv", "per_request", "draft")
    return StepTime(**dict(zip((*names, "draft_per_request"), found.tolist(), strict=True)))
