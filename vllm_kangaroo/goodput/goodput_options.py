"""What a user can set of goodput control."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vllm_kangaroo.switch import from_switch


class GoodputOptions(BaseModel):
    """The keys of `goodput`, where it is an object; `true` takes the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    remedies: ClassVar[dict[str, str]] = {
        "goodput": "choose true or false, or give an object of its keys",
        "goodput.probe_share": "choose a share of the time between 0 and 0.1, such as 0.01",
        "goodput.start_margin": "choose a share between 0 and 0.5, such as 0.01",
        "goodput.profile": "choose true or false",
        "goodput.decide": "choose true or false",
    }

    probe_share: float = Field(
        default=0.01,
        ge=0.0,
        le=0.1,
        description="Share of the time that may be spent on steps which are not expected to pay, to notice when they do.",
    )
    start_margin: float = Field(
        default=0.02,
        ge=0.0,
        le=0.5,
        description="Drafting begins once it is expected to bring this share more tokens a second than no drafts; it "
        "ends where it brings none.",
    )
    profile: bool = Field(
        default=True,
        description="Time the passes once at start-up, and keep the timings in the user's cache by model, device, dtype and "
        "settings. Without, costs are learnt from the first steps.",
    )
    decide: bool = Field(
        default=True,
        description="Decide how many drafts pay. Without, drafts are those of the fixed settings, and what they cost and "
        "bring is only measured and reported.",
    )


def decides(goodput: GoodputOptions | None) -> bool:
    """Whether drafts are made only as far as they pay."""
    return goodput is not None and goodput.decide


GoodputSetting = Annotated[GoodputOptions | None, BeforeValidator(from_switch)]
"""Of an option: true, false or an object; None is false."""

MEANING = (
    "Decide in every step, and for every request, how many drafts pay, from none to `num_speculative_tokens`: see "
    "[goodput control](goodput.md). True, false, or an object of the keys under [goodput](#goodput)."
)
