"""What a user can set, and how a wrong setting is refused.

One pydantic model per method. :func:`parse_options` reads the dictionary a user gives as
``speculative_config``; its ``resolve`` checks it against the target model and yields the
:class:`EarlyExitPlan` the engine runs. Neither torch nor vLLM is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.complaints import first_complaint
from vllm_kangaroo.drafting import lookup_options
from vllm_kangaroo.drafting.lookup_options import LookupOptions, LookupSetting

SAMPLE_METHOD = (
    "How sampled requests are drafted for: `greedy` takes the likeliest token; `probabilistic` draws from the exit's "
    "distribution, of which more is accepted."
)
DEFAULT_ADAPTER_DIR = "kangaroo_adapter"


class OptionError(ValueError):
    """A setting that cannot work; the message names the key, the value and the remedy."""


class TargetShape(BaseModel):
    """What the options need to know of the target model."""

    model_config = ConfigDict(frozen=True)

    name: str
    architecture: str
    other_names: frozenset[str] = frozenset()
    """Aliases of the architecture: an adapter may name one, or the checkpoint."""
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int


class EarlyExitPlan(BaseModel):
    """The resolved settings of one engine: which layers draft, which verify, and when drafting stops."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["kangaroo", "hispec"]
    exits: tuple[int, ...] = Field(
        description="Exit layers in order, the last being all layers: tier t is [exits[t-1], exits[t])."
    )
    adapters: tuple[str | None, ...] = Field(
        description="Adapter directory of each exit below the last, or None for the target's own norm and head."
    )
    num_speculative_tokens: int
    confidence_threshold: float
    tokens_per_round: int | None = Field(
        default=None,
        description="Drafts between intermediate verifications, or None where there are none.",
    )
    draft_sample_method: Literal["greedy", "probabilistic"] = "greedy"
    lookup: LookupOptions | None = Field(
        default=None, description="How drafts are looked up, or None where none are."
    )

    @property
    def lookup_tokens(self) -> int:
        """Most drafts of a round that are looked up."""
        if self.lookup is None:
            return 0
        return self.lookup.num_speculative_tokens or self.num_speculative_tokens

    @property
    def most_tokens(self) -> int:
        """Most drafts of a round, wherever they are from."""
        return max(self.num_speculative_tokens, self.lookup_tokens)


class _Options(BaseModel):
    """What the methods have in common."""

    # Strict: True is no number of tokens, and "0.5" no probability.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    adapter_keys: ClassVar[tuple[str, ...]]
    remedies: ClassVar[dict[str, str]] = {
        "num_speculative_tokens": "choose a whole number of at least 1, such as 6",
        "draft_tokens_per_round": "choose a whole number of at least 1, such as 2",
        "confidence_threshold": "choose a probability between 0 and 1, such as 0.6",
        "exit_layer": "choose a whole number from 1 to the model's number of layers",
        "draft_exit_layer": "choose a whole number from 1 to one below the model's number of layers",
        "verify_exit_layer": "choose a whole number from 1 to one below the model's number of layers",
        "intermediate_verification": "choose true or false",
        "draft_sample_method": "choose greedy or probabilistic",
        "model": "give the path of an adapter directory",
        "draft_adapter": "give the path of an adapter directory",
        "verify_adapter": "give the path of an adapter directory",
        **LookupOptions.remedies,
    }

    def check_adapters(self) -> None:
        """Check what can be checked of the adapters without the target model.

        Raises:
            OptionError: if one is missing or torn.
        """
        for key in self.adapter_keys:
            if (path := getattr(self, key)) is not None:
                _read_adapter(key, Path(path).expanduser())


class KangarooOptions(_Options):
    """``speculative_config`` for ``"method": "kangaroo"`` (arXiv 2404.18911)."""

    adapter_keys: ClassVar[tuple[str, ...]] = ("model",)
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
        default=0.6,
        ge=0.0,
        le=1.0,
        description="Drafting stops after a token whose probability is below this (the paper's η).",
    )
    draft_sample_method: Literal["greedy", "probabilistic"] = Field(
        default="greedy", description=SAMPLE_METHOD
    )
    lookup: LookupSetting = Field(default=None, description=lookup_options.MEANING)

    def resolve(self, target: TargetShape) -> EarlyExitPlan:
        """Check the options against the target model.

        Raises:
            OptionError: if the exit layer is out of range or the adapter is missing, torn or made for
                another model.
        """
        if self.model is None and self.exit_layer is not None:
            _check_layer("exit_layer", self.exit_layer, target, most=target.num_hidden_layers)
            exit_layer, adapter = self.exit_layer, None
        else:
            directory = self._adapter_dir(target)
            exit_layer = check_adapter("model", directory, target, "exit_layer", self.exit_layer)
            adapter = str(directory)
        return EarlyExitPlan(
            method="kangaroo",
            exits=(exit_layer, target.num_hidden_layers),
            adapters=(adapter,),
            num_speculative_tokens=self.num_speculative_tokens,
            confidence_threshold=self.confidence_threshold,
            draft_sample_method=self.draft_sample_method,
            lookup=self.lookup,
        )

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


class HiSpecOptions(_Options):
    """``speculative_config`` for ``"method": "hispec"`` (arXiv 2510.01336)."""

    adapter_keys: ClassVar[tuple[str, ...]] = ("draft_adapter", "verify_adapter")
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

    def resolve(self, target: TargetShape) -> EarlyExitPlan:
        """Check the options against the target model.

        Raises:
            OptionError: if the exits are out of order or range, N_d exceeds N_i, or an adapter does not fit.
        """
        layers = target.num_hidden_layers
        draft = self._exit("draft", max(1, layers // 8), target)
        if not self.intermediate_verification:
            self._refuse_intermediate_settings()
            return self._plan((draft, layers), (self.draft_adapter,), None)
        if draft == layers - 1:
            raise OptionError(
                f"speculative_config['draft_exit_layer']={draft} leaves no layer for an intermediate exit below the "
                f"{layers} layers of {target.name}: choose an earlier draft exit, or set 'intermediate_verification' "
                f"to false."
            )
        verify = self._exit("verify", max(draft + 1, layers // 4), target)
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
            (draft, verify, layers),
            (self.draft_adapter, self.verify_adapter),
            per_round,
        )

    def _refuse_intermediate_settings(self) -> None:
        for key in ("verify_exit_layer", "verify_adapter", "draft_tokens_per_round"):
            if key in self.model_fields_set:
                raise OptionError(
                    f"speculative_config[{key!r}]={getattr(self, key)!r} has no effect with intermediate_verification="
                    f"False: leave one of the two out."
                )

    def _exit(self, which: str, default: int, target: TargetShape) -> int:
        key, adapter = f"{which}_exit_layer", getattr(self, f"{which}_adapter")
        layer: int | None = getattr(self, key)
        if adapter is not None:
            layer = check_adapter(
                f"{which}_adapter", Path(adapter).expanduser(), target, key, layer
            )
        layer = default if layer is None else layer
        _check_layer(key, layer, target, most=target.num_hidden_layers - 1)
        return layer

    def _plan(
        self, exits: tuple[int, ...], adapters: tuple[str | None, ...], per_round: int | None
    ) -> EarlyExitPlan:
        return EarlyExitPlan(
            method="hispec",
            exits=exits,
            adapters=adapters,
            num_speculative_tokens=self.num_speculative_tokens,
            confidence_threshold=self.confidence_threshold,
            tokens_per_round=per_round,
            draft_sample_method=self.draft_sample_method,
            lookup=self.lookup,
        )


def _check_layer(key: str, layer: int, target: TargetShape, *, most: int) -> None:
    if layer > most:
        place = "is beyond" if layer > target.num_hidden_layers else "leaves nothing of"
        raise OptionError(
            f"speculative_config[{key!r}]={layer} {place} the {target.num_hidden_layers} layers of {target.name}: "
            f"choose a layer from 1 to {target.num_hidden_layers - 1}."
        )


def check_adapter(
    key: str, directory: Path, target: TargetShape, layer_key: str, layer: int | None
) -> int:
    """Check an adapter against the target and an exit layer set beside it; returns the adapter's exit layer.

    Raises:
        OptionError: if it is missing, torn, or made for another model or exit.
    """
    config = _read_adapter(key, directory)
    where = f"speculative_config[{key!r}]={str(directory)!r}"
    remedy = f"use an adapter trained for {target.name}, or train one with `vllm-kangaroo train adapter`."
    for shape in (
        "hidden_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    ):
        ours, theirs = getattr(config, shape), getattr(target, shape)
        if ours != theirs:
            raise OptionError(
                f"{where} is an adapter with {shape} {ours}, but {target.name} has {shape} {theirs}: {remedy}"
            )
    made_for = config.target
    if made_for.num_hidden_layers != target.num_hidden_layers:
        raise OptionError(
            f"{where} was trained for {made_for.name_or_path} of {made_for.num_hidden_layers} layers, but "
            f"{target.name} has {target.num_hidden_layers}: {remedy}"
        )
    if made_for.architecture not in {target.architecture, *target.other_names}:
        raise OptionError(
            f"{where} was trained for a {made_for.architecture}, but {target.name} is a {target.architecture}: {remedy}"
        )
    if not 1 <= config.exit_layer < target.num_hidden_layers:
        raise OptionError(
            f"{where} exits after layer {config.exit_layer}, but {target.name} has {target.num_hidden_layers} layers: "
            f"{remedy}"
        )
    if layer is not None and layer != config.exit_layer:
        raise OptionError(
            f"speculative_config[{layer_key!r}]={layer} contradicts the adapter {str(directory)!r}, which was trained "
            f"at exit layer {config.exit_layer}: leave {layer_key!r} out, or choose an adapter of that exit."
        )
    return config.exit_layer


def _read_adapter(key: str, directory: Path) -> AdapterConfig:
    where = f"speculative_config[{key!r}]={str(directory)!r}"
    if not directory.is_dir():
        raise OptionError(
            f"{where} is not a directory: give the path of a Kangaroo adapter (config.json and model.safetensors), as "
            f"`vllm-kangaroo train adapter` writes it."
        )
    try:
        return AdapterConfig.load(directory)
    except ValueError as error:
        raise OptionError(f"{where} cannot be used: {error}.") from error


OPTIONS: dict[str, type[KangarooOptions] | type[HiSpecOptions]] = {
    "kangaroo": KangarooOptions,
    "hispec": HiSpecOptions,
}
METHODS = tuple(OPTIONS)


def parse_options(config: Mapping[str, Any]) -> KangarooOptions | HiSpecOptions:
    """Read a user's ``speculative_config``.

    Raises:
        OptionError: naming the first wrong key, its value and the remedy.
    """
    values = {key.replace("-", "_"): value for key, value in config.items()}
    method = values.get("method")
    if not isinstance(method, str) or method not in OPTIONS:
        raise OptionError(
            f"speculative_config['method']={method!r} is not one of {', '.join(METHODS)}: choose one of them."
        )
    try:
        return OPTIONS[method](**values)
    except ValidationError as error:
        raise OptionError(_sentence(error, OPTIONS[method])) from None


def _sentence(error: ValidationError, model: type[_Options]) -> str:
    wrong = first_complaint(error)
    given = f"speculative_config[{wrong.key!r}]={wrong.value!r}"
    if wrong.kind == "unknown":
        within = len(wrong.place) > 1
        known = ", ".join(sorted((LookupOptions if within else model).model_fields))
        whose = "lookup" if within else "this method"
        return f"{given} is not an option of {whose}: use one of {known}."
    return f"{given} is refused ({wrong.said}): {model.remedies.get(wrong.key, 'correct it')}."
