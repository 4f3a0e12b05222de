"""What a user can set of drafts that are looked up in a request's own text."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from vllm_kangaroo.switch import from_switch

MatchLength = Annotated[
    int,
    Field(
        ge=1,
        le=16,
        description="Newest tokens that must have stood together before. Longer matches weigh more.",
    ),
]
Confidence = Annotated[
    float | None,
    Field(
        ge=0.0,
        le=1.0,
        description="A draft is looked up if it and those before it are right with at least this probability, judged by "
        "how much of the text agrees and by the request's drafts so far. Default: 0.4 where an exit drafts otherwise, 0.2 "
        "where none does, 0.05 under `goodput`, which weighs what passes.",
    ),
]
NgramFile = Annotated[
    str | None,
    BeforeValidator(lambda value: "" if value is False else value),
    Field(
        description="Table of `vllm-kangaroo train ngrams`, a file: what the model often says is drafted from it too. "
        "Default: `ngrams.safetensors` in the directory of the draft exit's adapter, if it is there; false takes none.",
    ),
]
SharedContexts = Annotated[
    int,
    Field(
        ge=0,
        le=2**22,
        description="Contexts of all requests' answers that are remembered, the newest, and drafted from in other requests: "
        "65536 take some 10 MB. 0 keeps requests apart; with more, a seeded request's draws may depend on others.",
    ),
]
BESIDE_EXIT, ALONE, WEIGHED = 0.4, 0.2, 0.05
"""Thresholds by default: where an exit drafts otherwise, where none does, and under goodput control."""
NGRAM_FILE = "ngrams.safetensors"
"""In an adapter's directory."""


class LookupOptions(BaseModel):
    """The keys of `lookup`, where it is an object; `true` takes the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    remedies: ClassVar[dict[str, str]] = {
        "lookup": "choose true or false, or give an object of its keys",
        "lookup.num_speculative_tokens": "choose a whole number of at least 1, such as 10",
        "lookup.prompt_lookup_min": "choose a whole number from 1 to 16",
        "lookup.confidence_threshold": "choose a probability between 0 and 1, such as 0.4",
        "lookup.shared_contexts": f"choose a whole number from 0 to {2**22}",
        "lookup.ngrams": "give the path of a table of 'vllm-kangaroo train ngrams', or false",
    }

    num_speculative_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Most drafts of a round that are looked up. Default: as many as the method drafts.",
    )
    prompt_lookup_min: MatchLength = 1
    confidence_threshold: Confidence = None
    ngrams: NgramFile = None
    shared_contexts: SharedContexts = 0

    @property
    def threshold(self) -> float:
        """``confidence_threshold``, or that of a method of no exit."""
        return ALONE if self.confidence_threshold is None else self.confidence_threshold

    def settled(self, *, goodput: bool, exit_drafts: bool, adapter: str | None = None) -> Self:
        """The same with all that is taken by default in its place.

        Args:
            goodput: whether drafts are weighed.
            exit_drafts: whether an exit drafts otherwise.
            adapter: directory of its adapter.
        """
        threshold, ngrams = self.confidence_threshold, self.ngrams
        if threshold is None:
            threshold = WEIGHED if goodput else BESIDE_EXIT if exit_drafts else ALONE
        if ngrams is None and adapter is not None:
            beside = Path(adapter) / NGRAM_FILE
            ngrams = str(beside) if os.path.lexists(beside) else None
        elif ngrams:
            ngrams = str(Path(ngrams).expanduser())
        return self.model_copy(update={"confidence_threshold": threshold, "ngrams": ngrams or None})


LookupSetting = Annotated[LookupOptions | None, BeforeValidator(from_switch)]
"""Of an option: true, false or an object; None is false."""

MEANING = (
    "Where the newest tokens of a request stood in its text before, or in what the model often says, draft what followed "
    "there, without a pass; the exit drafts where that is less likely to be right. `true`, or an object of the keys under [lookup, the option](#lookup-the-option)."
)
