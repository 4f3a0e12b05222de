"""A trace becomes a stream of requests: when each arrives, and how many drafts each of its rounds accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.laps_sd.simulator.step_time import StepTime
from vllm_kangaroo.laps_sd.trace import TraceRequest


class Acceptance(BaseModel):
    """How drafts fare: each request has a rate of its own, off it at first and steady later.

    Drafts and mean are those of the demo model with Kangaroo (1.6 drafts and 2.41 tokens a round); the spreads are
    assumed.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    drafts: int = Field(default=2, ge=0)
    """Drafts per round; 0 for no speculation."""
    mean: float = Field(default=0.79, ge=0.0, lt=1.0)
    """Chance that a draft is accepted if those before it were, on average over requests."""
    spread: float = Field(default=0.15, ge=0.0, le=0.4)
    """Standard deviation of that chance between requests."""
    early_spread: float = Field(default=0.15, ge=0.0, le=0.4)
    """Standard deviation of how far a request is off its own rate in its first rounds."""
    settle_rounds: float = Field(default=6.0, gt=0.0)
    """Rounds after which that has shrunk to a third."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests in order of arrival."""

    arrivals: NDArray[np.float64]
    """Seconds."""
    rounds: list[list[int]]
    """Drafts accepted in each decoding round of each request; the first token comes with the prompt."""
    drafts: int
    """Per round."""
    seconds_alone: NDArray[np.float64]
    """Time each would take with the engine to itself."""


def draw_rounds(
    lengths: NDArray[np.int64],
    rates: NDArray[np.float64],
    law: Acceptance,
    rng: np.random.Generator,
) -> list[list[int]]:
    """Accepted drafts round by round until each length is reached; the last round may overshoot."""
    if law.drafts == 0:
        return [[0] * (length - 1) for length in lengths.tolist()]
    found: list[list[int]] = [[]] * len(lengths)
    order = np.argsort(lengths, kind="stable")
    for group in np.array_split(
        order, max(1, len(order) // 64)
    ):  # of like length: few draws in vain
        for at, rounds in zip(
            group, _draw_group(lengths[group], rates[group], law, rng), strict=True
        ):
            found[at] = rounds
    return found


def _draw_group(
    lengths: NDArray[np.int64],
    rates: NDArray[np.float64],
    law: Acceptance,
    rng: np.random.Generator,
) -> list[list[int]]:
    most = int(lengths.max()) - 1
    if most < 1:
        return [[] for _ in lengths]
    early = rng.normal(0.0, law.early_spread, len(lengths))[:, None]
    fading = np.exp(-np.arange(most) / law.settle_rounds)[None, :]
    rate = np.clip(rates[:, None] + early * fading, 0.01, 0.98)
    # Drafts until the first refusal are geometric: P(at least j) = rate^j.
    accepted = np.floor(np.log(rng.random(rate.shape)) / np.log(rate)).astype(np.int64)
    np.minimum(accepted, law.drafts, out=accepted)
    ends = np.cumsum(accepted + 1, axis=1)
    needed = (ends < (lengths - 1)[:, None]).sum(axis=1) + 1
    return [
        row[: count if length > 1 else 0].tolist()
        for row, count, length in zip(accepted, needed, lengths, strict=True)
    ]


def make_workload(
    trace: Sequence[TraceRequest],
    pick: NDArray[np.int64],
    *,
    load: float,
    batch_size: int,
    step_time: StepTime,
    acceptance: Acceptance,
    arrivals: Literal["poisson", "bursts", "trace"],
    seed: int,
) -> Workload:
    """A stream of the picked requests of a trace.

    ``load`` is the share of the engine's capacity that the stream takes: 1 means that requests arrive as fast as
    full batches of ``batch_size`` serve them. With ``arrivals="trace"`` the trace's own times are taken.

    Raises:
        LapsSdError: for ``arrivals="trace"``, if requests have no times, or are not in their order.
    """
    rng = np.random.default_rng(seed)
    lengths = np.array([trace[at].output_tokens for at in pick], dtype=np.int64)
    prompts = np.array([len(trace[at].prompt_token_ids) for at in pick], dtype=np.int64)
    rates = np.clip(rng.normal(acceptance.mean, acceptance.spread, len(pick)), 0.02, 0.97)
    for at, which in enumerate(pick):
        if (measured := trace[which].acceptance) is not None:
            rates[at] = measured
    rounds = draw_rounds(lengths, rates, acceptance, rng)
    counts = np.array([len(each) for each in rounds], dtype=np.float64)

    def busy(requests: int) -> NDArray[np.float64]:
        """Seconds of a request's rounds and prompt among that many requests."""
        width, kv = acceptance.drafts + 1, requests * (prompts + lengths / 2)
        per_round = (
            step_time.seconds(requests, requests * width, 0, acceptance.drafts)
            + step_time.per_kv * kv
        )
        prompt = step_time.fixed + step_time.per_request + step_time.prompt_rate * prompts
        return counts * per_round + prompt * (requests if requests > 1 else 1)

    gap = float(busy(batch_size).mean()) / batch_size / load
    if arrivals == "trace":
        times = _own_times([trace[at].arrival_s for at in pick])
    else:
        gaps = rng.exponential(gap, len(pick))
        if (
            arrivals == "bursts"
        ):  # every other stretch of about 50 requests comes four times as fast
            phase = (np.arange(len(pick)) // 50) % 2
            gaps *= np.where(phase == 0, 0.25, 1.75)
        times = np.cumsum(gaps)
    return Workload(times, rounds, acceptance.drafts, busy(1))


def _own_times(found: Sequence[float | None]) -> NDArray[np.float64]:
    times = [each for each in found if each is not None]
    if len(times) < len(found):
        raise LapsSdError(
            f"arrivals='trace', but {len(found) - len(times)} of {len(found)} requests have no arrival_s: give each one, "
            f"or take poisson."
        )
    if times != sorted(times):
        raise LapsSdError(
            "arrivals='trace', but the requests are not in the order of arrival_s: sort the trace, and ask for no more "
            "requests than its later half has."
        )
    return np.array(times)
