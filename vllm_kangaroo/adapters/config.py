"""The adapter checkpoint's ``config.json``: what an adapter is, and for which target it was made.

This module imports no torch, so that options and command lines can check an adapter cheaply.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vllm_kangaroo.adapters.calibration import Calibration
from vllm_kangaroo.complaints import first_complaint

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

AdapterDtype = Literal["float16", "bfloat16", "float32", "float64"]
_HEADER_DTYPES: dict[str, str] = {
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "I32": "int32",
}
DRAFT_VOCAB = "draft_vocab"
"""Tensor of a reduced draft vocabulary: int32 ``[draft_vocab_size]``, ascending token ids."""


class AdapterKind(NamedTuple):
    """What an adapter has beside its attention."""

    feed_forward: bool
    memory: bool
    """Whether the final state of the last verified position joins the residual stream of each draft."""


ModelType = Literal["kangaroo_adapter", "kangaroo_ffn_adapter", "kangaroo_memory_adapter"]
KINDS: dict[ModelType, AdapterKind] = {
    "kangaroo_adapter": AdapterKind(feed_forward=False, memory=False),
    "kangaroo_ffn_adapter": AdapterKind(feed_forward=True, memory=False),
    "kangaroo_memory_adapter": AdapterKind(feed_forward=True, memory=True),
}
"""Kinds of adapter by ``model_type``; the first is the one of arXiv 2404.18911."""


class AdapterError(ValueError):
    """An adapter checkpoint that cannot be used; the message names key, value and remedy."""


class TargetInfo(BaseModel):
    """The model an adapter was trained for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name_or_path: str
    architecture: str
    model_type: str
    num_hidden_layers: int = Field(ge=2)
    norm_fingerprint: str | None = Field(default=None, pattern=r"^[0-9a-f]{16}$")


class AdapterConfig(BaseModel):
    """Shape, exit layer and provenance of a Kangaroo adapter (arXiv 2404.18911, section 3).

    Sizes are those of the target: hidden size N, query and key/value heads, head dimension,
    vocabulary V. ``exit_layer`` counts decoder layers: the adapter reads the residual stream
    after that many of them. ``intermediate_size`` is that of the feed-forward part, of kinds that
    have one. With ``draft_vocab_size`` only that many tokens, named by the tensor ``draft_vocab``, are
    drafted. ``calibration`` turns confidences into probabilities that the target agrees. ``training`` is free-form
    provenance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model_type: ModelType = "kangaroo_adapter"
    format_version: Literal[1] = 1
    exit_layer: int = Field(ge=1)
    hidden_size: int = Field(ge=1)
    num_attention_heads: int = Field(ge=1)
    num_key_value_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2, multiple_of=2)
    rms_norm_eps: float = Field(gt=0)
    rope_theta: float = Field(gt=0)
    vocab_size: int = Field(ge=1)
    intermediate_size: int | None = Field(default=None, ge=1)
    draft_vocab_size: int | None = Field(default=None, ge=1)
    calibration: Calibration | None = None
    torch_dtype: AdapterDtype
    target: TargetInfo
    training: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}; use the target's head counts"
            )
        if self.exit_layer >= self.target.num_hidden_layers:
            raise ValueError(
                f"exit_layer={self.exit_layer} leaves no layer of the target's "
                f"{self.target.num_hidden_layers} to verify with; use an earlier exit"
            )
        if (self.intermediate_size is not None) != self.kind.feed_forward:
            needs = "needs an" if self.kind.feed_forward else "has no"
            raise ValueError(
                f"intermediate_size={self.intermediate_size} does not fit: a {self.model_type} {needs} "
                "intermediate_size; correct one of the two"
            )
        if (self.draft_vocab_size or 0) > self.vocab_size:
            raise ValueError(
                f"draft_vocab_size={self.draft_vocab_size} is more than vocab_size={self.vocab_size}; "
                "leave it out to draft all tokens"
            )
        return self

    @property
    def kind(self) -> AdapterKind:
        """What this kind of adapter has."""
        return KINDS[self.model_type]

    def tensor_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors of ``model.safetensors``."""
        hidden = self.hidden_size
        query = self.num_attention_heads * self.head_dim
        key = self.num_key_value_heads * self.head_dim
        attention = "layers.0.self_attn"
        shapes: dict[str, tuple[int, ...]] = {
            "norm.weight": (hidden,),
            "layers.0.input_layernorm.weight": (hidden,),
            f"{attention}.q_proj.weight": (query, hidden),
            f"{attention}.k_proj.weight": (key, hidden),
            f"{attention}.v_proj.weight": (key, hidden),
            f"{attention}.o_proj.weight": (hidden, query),
        }
        if (inner := self.intermediate_size) is not None:
            shapes["layers.0.post_attention_layernorm.weight"] = (hidden,)
            shapes["layers.0.mlp.gate_proj.weight"] = (inner, hidden)
            shapes["layers.0.mlp.up_proj.weight"] = (inner, hidden)
            shapes["layers.0.mlp.down_proj.weight"] = (hidden, inner)
        if self.kind.memory:
            shapes["memory.norm.weight"] = (hidden,)
            shapes["memory.proj.weight"] = (hidden, hidden)
        if self.draft_vocab_size is not None:
            shapes[DRAFT_VOCAB] = (self.draft_vocab_size,)
        return shapes

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> AdapterConfig:
        """Read ``config.json`` and check it against the header of ``model.safetensors``.

        Raises:
            AdapterError: missing directory or file, broken JSON, unknown or impossible keys,
                or weights that are torn, of another shape or of another dtype.
        """
        folder = Path(directory)
        if not folder.is_dir():
            raise AdapterError(
                f"adapter directory '{folder}' does not exist; give a directory written by "
                "'vllm-kangaroo train adapter'"
            )
        path = folder / CONFIG_FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise AdapterError(
                f"adapter '{folder}' has no {CONFIG_FILE}; give the directory that holds it"
            ) from None
        except (OSError, ValueError) as error:
            raise AdapterError(
                f"{CONFIG_FILE} of adapter '{folder}' cannot be read ({error}); copy it again"
            ) from None
        if not isinstance(values, dict):
            raise AdapterError(f"{CONFIG_FILE} of adapter '{folder}' is no JSON object; replace it")
        try:
            config = cls.model_validate(values)
        except ValidationError as error:
            raise AdapterError(_first_error(folder, error)) from None
        config.check_weights(folder / WEIGHTS_FILE)
        return config

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` into ``directory``, atomically; the directory is made if absent."""
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{CONFIG_FILE}.{os.getpid()}"
        # Left out where they say nothing: files of the published kind stay as they have always been.
        unset = {
            key for key in ("intermediate_size", "draft_vocab_size") if getattr(self, key) is None
        }
        text = self.model_dump_json(indent=2, exclude=unset)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(folder / CONFIG_FILE)

    def check_weights(self, path: Path) -> None:
        """Compare the tensors named in the header of a safetensors file with this config.

        Raises:
            AdapterError: see `load`.
        """
        found = _read_header(path)
        expected = self.tensor_shapes()
        unknown = sorted(found.keys() - expected.keys())
        if unknown:
            raise AdapterError(f"'{path}' holds the unknown tensor '{unknown[0]}'; remove it")
        for name, shape in expected.items():
            if name not in found:
                raise AdapterError(f"'{path}' lacks the tensor '{name}'; save the adapter again")
            dtype, size = found[name]
            if size != shape:
                raise AdapterError(
                    f"tensor '{name}' of '{path}' has shape {list(size)} where {CONFIG_FILE} asks "
                    f"for {list(shape)}; the two files belong to different adapters"
                )
            if name == DRAFT_VOCAB:
                if dtype != "int32":
                    raise AdapterError(
                        f"tensor '{name}' of '{path}' is {dtype} where token ids are int32; save the "
                        "adapter again"
                    )
            elif dtype != self.torch_dtype:
                raise AdapterError(
                    f"tensor '{name}' of '{path}' is {dtype} where torch_dtype says "
                    f"{self.torch_dtype}; correct torch_dtype in {CONFIG_FILE}"
                )


def _first_error(folder: Path, error: ValidationError) -> str:
    wrong = first_complaint(error)
    where = f"{CONFIG_FILE} of adapter '{folder}'"
    if wrong.kind == "unknown":
        return f"{where} has the unknown key '{wrong.key}'; remove it"
    if wrong.kind == "missing":
        return f"{where} lacks the key '{wrong.key}'; add it or save the adapter again"
    if not wrong.key:
        return f"{where}: {wrong.said}"
    return f"{where} has {wrong.key}={wrong.value!r}: {wrong.said}; correct it"


def _read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Tensor name -> (dtype, shape), from a safetensors file whose length is checked too."""
    remedy = "copy the adapter again"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise ValueError(f"its header of {length} bytes is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end != size:
            raise ValueError(f"it has {size} bytes where its header asks for {8 + length + end}")
        return {
            name: (_HEADER_DTYPES.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]))
            for name, entry in header.items()
        }
    except FileNotFoundError:
        raise AdapterError(f"adapter '{path.parent}' has no {WEIGHTS_FILE}; {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AdapterError(f"'{path}' is no whole safetensors file ({error}); {remedy}") from None
