"""What a user can set of drafts that are looked up in a request's own text."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vllm_kangaroo.switch import from_switch

MatchLength = Annotated[
    int,
    Field(
        ge=2,
        le=16,
        description="Newest tokens that must have stood together before; of 2 to 16, the longest match is taken.",
    ),
]
MatchConfidence = Annotated[
    float,
    Field(
        ge=0.0,
        le=1.0,
        description="A match is drafted from if its first draft is right with at least this probability, judged by matches "
        "of such a length in the same request; 0 drafts from any.",
    ),
]


class LookupOptions(BaseModel):
    """The keys of `lookup`, where it is an object; `true` takes the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    remedies: ClassVar[dict[str, str]] = {
        "lookup": "choose true or false, or give an object of its keys",
        "lookup.num_speculative_tokens": "choose a whole number of at least 1, such as 10",
        "lookup.prompt_lookup_min": "choose a whole number from 2 to 16",
        "lookup.confidence_threshold": "choose a probability between 0 and 1, such as 0.4",
    }

    num_speculative_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most drafts of a round that are looked up. Default: as many as the method drafts.",
    )
    prompt_lookup_min: MatchLength = 2
    confidence_threshold: MatchConfidence = 0.4


LookupSetting = Annotated[LookupOptions | None, BeforeValidator(from_switch)]
"""Of an option: true, false or an object; None is false."""

MEANING = (
    "Where the newest tokens of a request stood in its text before, draft what followed there, without a pass; the exit "
    "drafts where that was not right often enough. `true`, or an object of the keys under [lookup, the option](#lookup-the-option)."
)
