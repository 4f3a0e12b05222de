"""What a user can set, and how a wrong setting is refused.

One pydantic model per method, with its record in :mod:`vllm_kangaroo.methods`; here is what they share.
:func:`parse_options` reads the dictionary a user gives as ``speculative_config``; its ``resolve`` checks it against the
target model and yields the :class:`EarlyExitPlan` the engine runs. Neither torch nor vLLM is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_kangaroo.adapters.config import AdapterConfig, AdapterError, refuse_strange_file
from vllm_kangaroo.complaints import first_complaint
from vllm_kangaroo.drafting.lookup_options import LookupOptions
from vllm_kangaroo.drafting.ngram_file import NgramError, load_ngrams
from vllm_kangaroo.goodput.goodput_options import GoodputOptions, decides

if TYPE_CHECKING:
    from vllm_kangaroo.methods.hispec import HiSpecOptions as HiSpecOptions
    from vllm_kangaroo.methods.kangaroo import KangarooOptions as KangarooOptions

    OPTIONS: dict[str, type[MethodOptions]]
    METHODS: tuple[str, ...]

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

    method: str
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
    goodput: GoodputOptions | None = Field(
        default=None, description="How it is decided what drafts pay, or None where it is not."
    )

    @property
    def exit_drafts(self) -> bool:
        """Whether any exit drafts; otherwise the model is never run but whole."""
        return self.num_speculative_tokens > 0

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


class MethodOptions(BaseModel):
    """What the methods' options have in common."""

    # Strict: True is no number of tokens, and "0.5" no probability.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    adapter_keys: ClassVar[tuple[str, ...]] = ()
    """Options that name an adapter, in the order of the plan's exits."""
    remedies: ClassVar[dict[str, str]] = {
        "num_speculative_tokens": "choose a whole number of at least 1, such as 6",
        "confidence_threshold": "choose a probability between 0 and 1, such as 0.6",
        "draft_sample_method": "choose greedy or probabilistic",
        **LookupOptions.remedies,
        **GoodputOptions.remedies,
    }
    """What to do about a wrong value, by option."""
    method: str

    def resolve(self, target: TargetShape) -> EarlyExitPlan:
        """Check the options against the target model.

        Raises:
            OptionError: if they do not fit it.
        """
        raise NotImplementedError

    def plan(self, **parts: Any) -> EarlyExitPlan:
        """A plan of ``parts``, and of those options beside them that a plan has under the same name."""
        fields = EarlyExitPlan.model_fields
        own = {name: getattr(self, name) for name in type(self).model_fields if name in fields}
        return EarlyExitPlan(**own | parts)

    def tokens_per_round(self, drafts: int) -> int | None:
        """Drafts between intermediate verifications where ``drafts`` are the most of a round; None if there are none."""
        return None

    def fixed_unless_asked(self) -> Self:
        """The same without goodput control, where that is on by default and was not asked for."""
        if "goodput" in self.model_fields_set or "goodput" not in type(self).model_fields:
            return self
        return self.model_copy(update={"goodput": None})

    def adapter_wanted(self) -> str | None:
        """The option whose adapter is looked for beside the model, because neither it nor another exit is named."""
        return None

    def check_adapters(self) -> None:
        """Check what can be checked of the adapters without the target model.

        Raises:
            OptionError: if one is missing or torn.
        """
        for key in self.adapter_keys:
            if (path := getattr(self, key)) is not None:
                _read_adapter(key, Path(path).expanduser())


def settled_lookup(
    options: MethodOptions,
    lookup: LookupOptions | None,
    target: TargetShape,
    *,
    exit_drafts: bool = True,
    adapter: str | None = None,
) -> LookupOptions | None:
    """``lookup`` with its defaults in their place, its table checked; see :meth:`LookupOptions.settled`.

    Raises:
        OptionError: a table that cannot be read, leads out of the adapter's directory, or is of another model.
    """
    if lookup is None:
        return None
    weighed = decides(getattr(options, "goodput", None))
    found = lookup.settled(goodput=weighed, exit_drafts=exit_drafts, adapter=adapter)
    if found.ngrams is not None:
        try:
            if lookup.ngrams is None:  # it lies beside the adapter, and is whoever's that is
                refuse_strange_file(Path(found.ngrams))
            load_ngrams(found.ngrams, target.vocab_size)
        except (AdapterError, NgramError) as error:
            key = "lookup.ngrams" if exit_drafts else "ngrams"
            raise OptionError(f"speculative_config[{key!r}]: {error}.") from None
    return found


def check_layer(key: str, layer: int, target: TargetShape, *, most: int) -> None:
    """Refuse an exit layer above ``most``.

    Raises:
        OptionError: if it is.
    """
    if layer > most:
        place = "is beyond" if layer > target.num_hidden_layers else "leaves nothing of"
        raise OptionError(
            f"speculative_config[{key!r}]={layer} {place} the {target.num_hidden_layers} layers of {target.name}: "
            f"choose a layer from 1 to {target.num_hidden_layers - 1}."
        )


def check_adapter(
    key: str, directory: Path, target: TargetShape, layer_key: str, layer: int | None
) -> AdapterConfig:
    """Check an adapter against the target and an exit layer set beside it; returns its config.

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
    return config


def threshold_of(adapter: AdapterConfig | None, probability: float) -> float:
    """The confidence of a draft exit's head whose drafts are right with a probability, by its adapter's calibration.

    Args:
        adapter: None, and adapters without a calibration, are taken at their word.
    """
    calibration = None if adapter is None else adapter.calibration
    return probability if calibration is None else calibration.confidence(probability)


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


def parse_options(config: Mapping[str, Any]) -> MethodOptions:
    """Read a user's ``speculative_config``.

    Raises:
        OptionError: naming the first wrong key, its value and the remedy.
    """
    from vllm_kangaroo.methods import METHODS  # whose files import what is here

    values = {key.replace("-", "_"): value for key, value in config.items()}
    method = values.get("method")
    if not isinstance(method, str) or method not in METHODS:
        raise OptionError(
            f"speculative_config['method']={method!r} is not one of {', '.join(METHODS)}: choose one of them."
        )
    options = METHODS[method].options
    try:
        return options(**values)
    except ValidationError as error:
        raise OptionError(_sentence(error, options)) from None


_OBJECTS: dict[str, type[BaseModel]] = {"lookup": LookupOptions, "goodput": GoodputOptions}
"""Options that may be objects with keys of their own."""


def _sentence(error: ValidationError, model: type[MethodOptions]) -> str:
    wrong = first_complaint(error)
    given = f"speculative_config[{wrong.key!r}]={wrong.value!r}"
    if wrong.kind == "unknown":
        whose = str(wrong.place[0]) if len(wrong.place) > 1 else "this method"
        known = ", ".join(sorted(_OBJECTS.get(whose, model).model_fields))
        return f"{given} is not an option of {whose}: use one of {known}."
    return f"{given} is refused ({wrong.said}): {model.remedies.get(wrong.key, 'correct it')}."


def __getattr__(name: str) -> Any:
    """What stood here before each method had a file of its own."""
    if name not in ("KangarooOptions", "HiSpecOptions", "OPTIONS", "METHODS"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vllm_kangaroo.methods import METHODS

    if name == "METHODS":
        return tuple(METHODS)
    if name == "OPTIONS":
        return {each.name: each.options for each in METHODS.values()}
    return {each.options.__name__: each.options for each in METHODS.values()}[name]
