"""Prompt lookup as a method of its own: its options and its record."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vllm_kangaroo.drafting.lookup_options import (
    Confidence,
    LookupOptions,
    MatchLength,
    NgramFile,
    SharedContexts,
)
from vllm_kangaroo.goodput import goodput_options
from vllm_kangaroo.goodput.goodput_options import GoodputSetting
from vllm_kangaroo.methods.method import Method
from vllm_kangaroo.methods.origin import LOOKUP
from vllm_kangaroo.options import EarlyExitPlan, MethodOptions, TargetShape, settled_lookup


class LookupMethodOptions(MethodOptions):
    """``speculative_config`` for ``"method": "lookup"``: drafts that are looked up alone, for any model."""

    remedies: ClassVar[dict[str, str]] = MethodOptions.remedies | {
        "num_speculative_tokens": "choose a whole number of at least 1, such as 8",
        "prompt_lookup_min": LookupOptions.remedies["lookup.prompt_lookup_min"],
        "confidence_threshold": LookupOptions.remedies["lookup.confidence_threshold"],
        "shared_contexts": LookupOptions.remedies["lookup.shared_contexts"],
        "ngrams": LookupOptions.remedies["lookup.ngrams"],
    }
    method: Literal["lookup"] = "lookup"
    num_speculative_tokens: int = Field(default=8, ge=1, description="Most drafts per round.")
    prompt_lookup_min: MatchLength = 1
    confidence_threshold: Confidence = None
    ngrams: NgramFile = None
    shared_contexts: SharedContexts = 0
    goodput: GoodputSetting = Field(default=None, description=goodput_options.MEANING)

    def resolve(self, target: TargetShape) -> EarlyExitPlan:
        """No exit drafts: the one below the last is so in name only, and the model is run whole."""
        lookup = LookupOptions(
            num_speculative_tokens=self.num_speculative_tokens,
            prompt_lookup_min=self.prompt_lookup_min,
            confidence_threshold=self.confidence_threshold,
            ngrams=self.ngrams,
            shared_contexts=self.shared_contexts,
        )
        return self.plan(
            exits=(target.num_hidden_layers,) * 2,
            adapters=(None,),
            num_speculative_tokens=0,
            confidence_threshold=0.0,
            lookup=settled_lookup(self, lookup, target, exit_drafts=False),
        )


LOOKUP_METHOD = Method(
    name="lookup",
    title="Prompt lookup",
    options=LookupMethodOptions,
    propose="vllm_kangaroo.drafting.kangaroo:propose",
    choosers={0: LOOKUP},
)
