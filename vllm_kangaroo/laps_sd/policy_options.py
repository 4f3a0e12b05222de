"""The constants of LAPS-SD. The paper publishes none of them; each default is ours, and says why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from vllm_kangaroo.complaints import first_complaint


class LapsSdError(ValueError):
    """A setting or a hint that cannot work; the message names the key, the value and the remedy."""


class LapsSdOptions(BaseModel):
    """Options of the LAPS-SD scheduler, `additional_config["laps_sd"]` in vLLM."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    queues: int = Field(
        default=8,
        ge=1,
        le=64,
        description="Priority queues. Eight bands that double span a factor of 128, from a few rounds to a long answer.",
    )
    base_threshold_s: float | None = Field(
        default=None,
        gt=0.0,
        description="Upper bound of the first queue, in seconds of engine time charged to a request. Default: "
        "`base_rounds` rounds as they are measured, so that it fits the model and the machine by itself.",
    )
    base_rounds: float = Field(
        default=4.0,
        gt=0.0,
        description="Upper bound of the first queue in rounds, where `base_threshold_s` is not set: short enough to "
        "tell short answers apart, long enough not to switch every round.",
    )
    growth: float = Field(
        default=2.0,
        gt=1.0,
        description="Each queue's bound over that of the queue above it; with 2 a request in the right queue is at "
        "most twice as long as its neighbours.",
    )
    window: int = Field(
        default=8,
        ge=2,
        description="Rounds before a request's own acceptance can count as stable, and rounds that the drift test "
        "compares with those before; fewer say next to nothing.",
    )
    epsilon: float = Field(
        default=0.35,
        gt=0.0,
        description="A request is perceptible once the 95 % confidence interval of the tokens its rounds bring, which "
        "counts how much ended requests differed, is narrower to either side than this share of them. Lengths are less "
        "certain than that, and in simulation stricter tests lost more by watching than they gained.",
    )
    drift_sigmas: float = Field(
        default=4.0,
        gt=0.0,
        description="A window whose mean acceptance lies this many standard errors from the rounds before starts the "
        "estimate anew; 4 makes a false alarm rare.",
    )
    max_wait_s: float = Field(
        default=300.0,
        gt=0.0,
        description="A request that has waited this many seconds since it last ran goes to the front of its priority "
        "class. It is a bound and no tuning of the tail: where much of the queue has waited that long, requests are "
        "served in order of arrival, and the gain is lost. In simulation at load 0.95 requests took up to 1.8 times "
        "as long with 60 s.",
    )
    front_s: float = Field(
        default=2.0,
        gt=0.0,
        description="Seconds that such a request then stays at the front: enough to get somewhere, short enough for "
        "others to follow.",
    )
    preemption_gap_s: float = Field(
        default=0.0,
        ge=0.0,
        description="A running request is paused only for one whose remaining time is shorter by more than this many "
        "seconds. 0 because a paused request keeps its KV blocks, so that resuming costs nothing.",
    )
    predictor: Literal["learned", "empirical"] = Field(
        default="learned",
        description="How answer lengths are predicted for requests without a hint: from the prompt, by an online "
        "learner, or from the lengths of finished requests alone.",
    )
    min_history: int = Field(
        default=200,
        ge=1,
        description="Finished requests before the learner is asked; until then the empirical distribution answers.",
    )
    predictor_file: str | None = Field(
        default=None,
        description="Where the learner is saved every few hundred requests and at shutdown, and read from at start-up. "
        "Default: it starts empty.",
    )
    step_log: str | None = Field(
        default=None,
        description="File to which every engine step's time and size are appended, for `vllm-kangaroo simulate "
        "--steps`. Default: none.",
    )

    @field_validator("predictor_file")
    @classmethod
    def _file_has_a_use(cls, file: str | None, info: ValidationInfo) -> str | None:
        if file is not None and info.data.get("predictor") == "empirical":
            raise ValueError("the predictor 'empirical' is not saved")
        return file


def parse_options(given: Any) -> LapsSdOptions:
    """The options from a user's dictionary.

    Raises:
        LapsSdError: naming the key, the value and the remedy.
    """
    if not isinstance(given, Mapping):
        raise LapsSdError(
            f"additional_config['laps_sd']={given!r} must be a dictionary: use keys of docs/laps-sd.md, or leave it out."
        )
    try:
        return LapsSdOptions.model_validate(dict(given))
    except ValidationError as error:
        wrong = first_complaint(error)
        if wrong.kind == "unknown":
            known = ", ".join(LapsSdOptions.model_fields)
            raise LapsSdError(
                f"additional_config['laps_sd'] has no key {wrong.key!r}: use one of {known}."
            ) from error
        raise LapsSdError(
            f"additional_config['laps_sd'][{wrong.key!r}]={wrong.value!r} is refused: {wrong.said}; change it, or "
            "leave it out for its default."
        ) from error
