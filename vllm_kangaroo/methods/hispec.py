"""HiSpec: its options and its record."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.drafting import lookup_options
from vllm_kangaroo.drafting.lookup_options import LookupSetting
from vllm_kangaroo.goodput import goodput_options
from vllm_kangaroo.goodput.goodput_options import GoodputOptions, GoodputSetting
from vllm_kangaroo.methods.method import Method
from vllm_kangaroo.methods.origin import DRAFT_EXIT, INTERMEDIATE_VERIFIER
from vllm_kangaroo.options import (
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


class HiSpecOptions(MethodOptions):
    """``speculative_config`` for ``"method": "hispec"`` (arXiv 2510.01336)."""

    adapter_keys: ClassVar[tuple[str, ...]] = ("draft_adapter", "verify_adapter")
    remedies: ClassVar[dict[str, str]] = MethodOptions.remedies | {
        "draft_tokens_per_round": "choose a whole number of at least 1, such as 2",
        "draft_exit_layer": "choose a whole number from 1 to one below the model's number of layers",
        "verify_exit_layer": "choose a whole number from 1 to one below the model's number of layers",
        "intermediate_verification": "choose true or false",
        "draft_adapter": "give the path of an adapter directory",
        "verify_adapter": "give the path of an adapter directory",
    }
    method: Literal["hispec"] = "hispec"
    draft_exit_layer: int | None = Field(
        default=None, ge=1, description="Draft after this many layers. Default: an eighth of them."
    )
    verify_exit_layer: int | None = Field(
        default=None,
        ge=1,
        description="Check drafts after this many layers. Default: a quarter of them.",
    )
    draft_tokens_per_round: int = Field(
        default=2, ge=1, description="Drafts between intermediate verifications (the paper's N_d)."
    )
    num_speculative_tokens: int = Field(
        default=4,
        ge=1,
        description="Tokens gathered before the full model verifies (the paper's N_i).",
    )
    confidence_threshold: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="A round's drafting also stops after a token whose probability is below this; 0 is off.",
    )
    intermediate_verification: bool = Field(
        default=True,
        description="False is single-layer speculation: the full model checks the drafts of the draft exit.",
    )
    draft_adapter: str | None = Field(
        default=None, description="Directory of a Kangaroo adapter for the draft exit."
    )
    verify_adapter: str | None = Field(
        default=None, description="Directory of a Kangaroo adapter for the intermediate exit."
    )
    draft_sample_method: Literal["greedy", "probabilistic"] = Field(
        default="greedy", description=SAMPLE_METHOD
    )
    lookup: LookupSetting = Field(default=None, description=lookup_options.MEANING)
    goodput: GoodputSetting = Field(default=GoodputOptions(), description=goodput_options.MEANING)

    def resolve(self, target: TargetShape) -> EarlyExitPlan:
        """Check the options against the target model.

        Raises:
            OptionError: if the exits are out of order or range, N_d exceeds N_i, or an adapter does not fit.
        """
        layers = target.num_hidden_layers
        draft, adapter = self._exit("draft", max(1, layers // 8), target)
        if not self.intermediate_verification:
            self._refuse_intermediate_settings()
            return self._plan(target, (draft, layers), (self.draft_adapter,), None, adapter)
        if draft == layers - 1:
            raise OptionError(
                f"speculative_config['draft_exit_layer']={draft} leaves no layer for an intermediate exit below the "
                f"{layers} layers of {target.name}: choose an earlier draft exit, or set 'intermediate_verification' "
                f"to false."
            )
        verify, _ = self._exit("verify", max(draft + 1, layers // 4), target)
        if draft >= verify:
            raise OptionError(
                f"speculative_config['draft_exit_layer']={draft} is not below verify_exit_layer={verify}: choose exits "
                f"in increasing order, or set 'intermediate_verification' to false."
            )
        per_round = self.draft_tokens_per_round
        if "draft_tokens_per_round" not in self.model_fields_set:
            per_round = min(per_round, self.num_speculative_tokens)
        if per_round > self.num_speculative_tokens:
            raise OptionError(
                f"speculative_config['draft_tokens_per_round']={per_round} exceeds "
                f"num_speculative_tokens={self.num_speculative_tokens}: choose at most that many."
            )
        return self._plan(
            target,
            (draft, verify, layers),
            (self.draft_adapter, self.verify_adapter),
            per_round,
            adapter,
        )

    def tokens_per_round(self, drafts: int) -> int | None:
        """N_d, or the buffer if that is smaller."""
        return min(self.draft_tokens_per_round, drafts) if self.intermediate_verification else None

    def _refuse_intermediate_settings(self) -> None:
        for key in ("verify_exit_layer", "verify_adapter", "draft_tokens_per_round"):
            if key in self.model_fields_set:
                raise OptionError(
                    f"speculative_config[{key!r}]={getattr(self, key)!r} has no effect with intermediate_verification="
                    f"False: leave one of the two out."
                )

    def _exit(
        self, which: str, default: int, target: TargetShape
    ) -> tuple[int, AdapterConfig | None]:
        key, path = f"{which}_exit_layer", getattr(self, f"{which}_adapter")
        layer: int | None = getattr(self, key)
        if path is not None:
            directory = Path(path).expanduser()
            adapter = check_adapter(f"{which}_adapter", directory, target, key, layer)
            return adapter.exit_layer, adapter
        layer = default if layer is None else layer
        check_layer(key, layer, target, most=target.num_hidden_layers - 1)
        return layer, None

    def _plan(
        self,
        target: TargetShape,
        exits: tuple[int, ...],
        adapters: tuple[str | None, ...],
        per_round: int | None,
        draft_adapter: AdapterConfig | None,
    ) -> EarlyExitPlan:
        adapters = tuple(
            None if path is None else str(Path(path).expanduser()) for path in adapters
        )
        return self.plan(
            exits=exits,
            adapters=adapters,
            confidence_threshold=threshold_of(draft_adapter, self.confidence_threshold),
            tokens_per_round=per_round,
            lookup=settled_lookup(self, self.lookup, target, adapter=adapters[0]),
        )


HISPEC = Method(
    name="hispec",
    title="HiSpec",
    options=HiSpecOptions,
    propose="vllm_kangaroo.drafting.hispec:propose",
    choosers={1: DRAFT_EXIT, 2: INTERMEDIATE_VERIFIER},
    drafting_only=frozenset({"tokens_per_round"}),
    on_v2=True,
    search="vllm_kangaroo.profile.hispec_search",
    plot_colour="C3",
    # Goodput control would leave out what the demo is to show: on the tiny model checks on the way do not pay.
    tiny={"draft_exit_layer": 1, "verify_exit_layer": 3, "goodput": False},
)
