"""What a user can set, and how a wrong setting is refused.

One pydantic model per method. :func:`parse_options` reads the dictionary a user gives as
``speculative_config``; :meth:`KangarooOptions.resolve` checks it against the target model and yields the
:class:`EarlyExitPlan` the engine runs. Neither torch nor vLLM is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vllm_kangaroo.ladder.adapter_config import AdapterConfig

METHODS = ("kangaroo",)
DEFAULT_ADAPTER_DIR = "kangaroo_adapter"


class OptionError(ValueError):
    """A setting that cannot work; the message names the key, the value and the remedy."""


class TargetShape(BaseModel):
    """What the options need to know of the target model."""

    model_config = ConfigDict(frozen=True)

    name: str
    architecture: str
    num_hidden_layers: int
    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int


class EarlyExitPlan(BaseModel):
    """The resolved settings of one engine: which layers draft, which verify, and when drafting stops."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["kangaroo"]
    exits: tuple[int, ...] = Field(
        description="Exit layers in order, the last being all layers: tier t is [exits[t-1], exits[t])."
    )
    adapter: str | None = Field(
        description="Adapter directory, or None for the target's own norm and head."
    )
    num_speculative_tokens: int
    confidence_threshold: float


class KangarooOptions(BaseModel):
    """``speculative_config`` for ``"method": "kangaroo"`` (arXiv 2404.18911)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    remedies: ClassVar[dict[str, str]] = {
        "num_speculative_tokens": "choose a whole number of at least 1, such as 6",
        "confidence_threshold": "choose a probability between 0 and 1, such as 0.6",
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
        default=0.6,
        ge=0.0,
        le=1.0,
        description="Drafting stops after a token whose probability is below this (the paper's η).",
    )

    def resolve(self, target: TargetShape) -> EarlyExitPlan:
        """Check the options against the target model.

        Raises:
            OptionError: if the exit layer is out of range or the adapter is missing, torn or made for
                another model.
        """
        adapter_dir = (
            None
            if self.exit_layer is not None and self.model is None
            else self._adapter_dir(target)
        )
        if adapter_dir is None:
            assert self.exit_layer is not None
            exit_layer = self.exit_layer
            if exit_layer > target.num_hidden_layers:
                raise OptionError(
                    f"speculative_config['exit_layer']={exit_layer} is beyond the {target.num_hidden_layers} layers "
                    f"of {target.name}: choose a layer from 1 to {target.num_hidden_layers - 1}."
                )
        else:
            exit_layer = self._check_adapter(adapter_dir, target).exit_layer
        return EarlyExitPlan(
            method="kangaroo",
            exits=(exit_layer, target.num_hidden_layers),
            adapter=None if adapter_dir is None else str(adapter_dir),
            num_speculative_tokens=self.num_speculative_tokens,
            confidence_threshold=self.confidence_threshold,
        )

    def _adapter_dir(self, target: TargetShape) -> Path:
        if self.model is not None:
            directory = Path(self.model).expanduser()
            if not directory.is_dir():
                raise OptionError(
                    f"speculative_config['model']={self.model!r} is not a directory: give the path of a Kangaroo "
                    f"adapter (config.json and model.safetensors), as `vllm-kangaroo train adapter` writes it."
                )
            return directory
        beside = Path(target.name) / DEFAULT_ADAPTER_DIR
        if beside.is_dir():
            return beside
        raise OptionError(
            f"speculative_config['model'] is not set and {target.name} has no {DEFAULT_ADAPTER_DIR} directory: give "
            f"the path of an adapter, or set 'exit_layer' to draft with the model's own head."
        )

    def _check_adapter(self, directory: Path, target: TargetShape) -> AdapterConfig:
        try:
            config = AdapterConfig.load(directory)
        except ValueError as error:
            raise OptionError(
                f"speculative_config['model']={str(directory)!r} cannot be used: {error}"
            ) from error
        where = f"speculative_config['model']={str(directory)!r}"
        remedy = f"use an adapter trained for {target.name}, or train one with `vllm-kangaroo train adapter`."
        for key in (
            "hidden_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
        ):
            ours, theirs = getattr(config, key), getattr(target, key)
            if ours != theirs:
                raise OptionError(
                    f"{where} is an adapter with {key} {ours}, but {target.name} has {key} {theirs}: {remedy}"
                )
        if config.target.num_hidden_layers != target.num_hidden_layers:
            raise OptionError(
                f"{where} was trained for {config.target.name_or_path} of {config.target.num_hidden_layers} layers, "
                f"but {target.name} has {target.num_hidden_layers}: {remedy}"
            )
        if config.target.architecture != target.architecture:
            raise OptionError(
                f"{where} was trained for a {config.target.architecture}, but {target.name} is a "
                f"{target.architecture}: {remedy}"
            )
        if self.exit_layer is not None and self.exit_layer != config.exit_layer:
            raise OptionError(
                f"speculative_config['exit_layer']={self.exit_layer} contradicts the adapter {str(directory)!r}, "
                f"which was trained at exit layer {config.exit_layer}: leave 'exit_layer' out, or choose an adapter "
                f"of that exit."
            )
        if not 1 <= config.exit_layer < target.num_hidden_layers:
            raise OptionError(
                f"{where} exits after layer {config.exit_layer}, but {target.name} has {target.num_hidden_layers} "
                f"layers: {remedy}"
            )
        return config


def parse_options(config: Mapping[str, Any]) -> KangarooOptions:
    """Read a user's ``speculative_config``.

    Raises:
        OptionError: naming the first wrong key, its value and the remedy.
    """
    values = {key.replace("-", "_"): value for key, value in config.items()}
    method = values.get("method")
    if method not in METHODS:
        raise OptionError(
            f"speculative_config['method']={method!r} is not one of {', '.join(METHODS)}: choose one of them."
        )
    try:
        return KangarooOptions(**values)
    except ValidationError as error:
        raise OptionError(_sentence(error, KangarooOptions)) from None


def _sentence(error: ValidationError, model: type[KangarooOptions]) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(model.model_fields))
        return f"speculative_config[{key!r}]={first['input']!r} is not an option of this method: use one of {known}."
    said = first["msg"][0].lower() + first["msg"][1:]
    return f"speculative_config[{key!r}]={first['input']!r} is refused ({said}): {model.remedies.get(key, 'correct it')}."
