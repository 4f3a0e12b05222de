"""Kangaroo: its options and its record."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from vllm_kangaroo.drafting import lookup_options
from vllm_kangaroo.drafting.lookup_options import LookupSetting
from vllm_kangaroo.goodput import goodput_options
from vllm_kangaroo.goodput.goodput_options import GoodputOptions, GoodputSetting, decides
from vllm_kangaroo.methods.method import Method
from vllm_kangaroo.methods.origin import DRAFT_EXIT
from vllm_kangaroo.options import (
    DEFAULT_ADAPTER_DIR,
    SAMPLE_METHOD,
    EarlyExitPlan,
    MethodOptions,
    OptionError,
    TargetShape,
    check_adapter,
    check_layer,
    settled_lookup,
    threshold_of,
)

FIXED_THRESHOLD = 0.6
"""The paper's η, where nothing else decides how long to draft."""


class KangarooOptions(MethodOptions):
    """``speculative_config`` for ``"method": "kangaroo"`` (arXiv 2404.18911)."""

    adapter_keys: ClassVar[tuple[str, ...]] = ("model",)
    remedies: ClassVar[dict[str, str]] = MethodOptions.remedies | {
        "exit_layer": "choose a whole number from 1 to the model's number of layers",
        "model": "give the path of an adapter directory",
    }
    method: Literal["kangaroo"] = "kangaroo"
    model: str | None = Field(
        default=None,
        description="Directory of a Kangaroo adapter. Default: `kangaroo_adapter` inside the model's own directory.",
    )
    exit_layer: int | None = Field(
        default=None,
        ge=1,
        description="Draft with the target's own norm and head after this many layers, without an adapter. "
        "With an adapter the exit layer comes from its config.",
    )
    num_speculative_tokens: int = Field(
        default=6, ge=1, description="Most drafts per round (the paper's γ)."
    )
    confidence_threshold: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="Drafting stops after a token whose probability is below this (the paper's η). Where `goodput` does "
        "not decide, the default is 0.6.",
    )
    draft_sample_method: Literal["greedy", "probabilistic"] = Field(
        default="greedy", description=SAMPLE_METHOD
    )
    lookup: LookupSetting = Field(default=None, description=lookup_options.MEANING)
    goodput: GoodputSetting = Field(default=GoodputOptions(), description=goodput_options.MEANING)

    def resolve(self, target: TargetShape) -> EarlyExitPlan:
        """Check the options against the target model.

        Raises:
            OptionError: if the exit layer is out of range or the adapter is missing, torn or made for
                another model.
        """
        if self.model is None and self.exit_layer is not None:
            check_layer("exit_layer", self.exit_layer, target, most=target.num_hidden_layers)
            exit_layer, adapter, path = self.exit_layer, None, None
        else:
            directory = self._adapter_dir(target)
            adapter = check_adapter("model", directory, target, "exit_layer", self.exit_layer)
            exit_layer, path = adapter.exit_layer, str(directory)
        return self.plan(
            exits=(exit_layer, target.num_hidden_layers),
            adapters=(path,),
            confidence_threshold=threshold_of(adapter, self._threshold()),
            lookup=settled_lookup(self, self.lookup, target, adapter=path),
        )

    def _threshold(self) -> float:
        if decides(self.goodput) or "confidence_threshold" in self.model_fields_set:
            return self.confidence_threshold
        return FIXED_THRESHOLD

    def adapter_wanted(self) -> str | None:
        """``model``, unless it or an exit is named."""
        return "model" if self.model is None and self.exit_layer is None else None

    def _adapter_dir(self, target: TargetShape) -> Path:
        if self.model is not None:
            return Path(self.model).expanduser()
        beside = Path(target.name) / DEFAULT_ADAPTER_DIR
        if beside.is_dir():
            return beside
        raise OptionError(
            f"speculative_config['model'] is not set and {target.name} has no {DEFAULT_ADAPTER_DIR} directory: give "
            f"the path of an adapter, or set 'exit_layer' to draft with the model's own head."
        )


KANGAROO = Method(
    name="kangaroo",
    title="Kangaroo",
    options=KangarooOptions,
    propose="vllm_kangaroo.drafting.kangaroo:propose",
    choosers={1: DRAFT_EXIT},
    on_v2=True,
    search="vllm_kangaroo.profile.kangaroo_search",
    plot_colour="C0",
    # The tiny model spreads its probability widely, so that η = 0.6 would stop drafts it would have accepted.
    tiny={"num_speculative_tokens": 5, "confidence_threshold": 0.05},
)
