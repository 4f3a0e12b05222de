"""The adapter checkpoint's ``config.json``: what an adapter is, and for which target it was made.

This module imports no torch, so that options and command lines can check an adapter cheaply.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vllm_kangaroo.adapters.calibration import Calibration
from vllm_kangaroo.adapters.weights_header import (
    MAX_DIMENSION,
    HeaderError,
    Stored,
    parsed,
    read_header,
)
from vllm_kangaroo.complaints import first_complaint
from vllm_kangaroo.text_inputs import shown

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MAX_CONFIG_BYTES = 16 * 2**20
"""Provenance may name many files of training data."""

AdapterDtype = Literal["float16", "bfloat16", "float32", "float64"]
Size = Annotated[int, Field(ge=1, le=MAX_DIMENSION)]
Name = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Goes into sentences that a terminal prints."""
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

    name_or_path: Name
    architecture: Name
    model_type: Name
    num_hidden_layers: int = Field(ge=2, le=MAX_DIMENSION)
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
    exit_layer: Size
    hidden_size: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_dim: int = Field(ge=2, le=MAX_DIMENSION, multiple_of=2)
    rms_norm_eps: float = Field(gt=0, allow_inf_nan=False)
    rope_theta: float = Field(gt=0, allow_inf_nan=False)
    vocab_size: Size
    intermediate_size: Size | None = None
    draft_vocab_size: Size | None = None
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
    def shape(self) -> str:
        """A short hash of all that shapes a pass with the adapter in it: another text where its graph is another."""
        left_out = {"format_version", "calibration", "target", "training"}
        text = self.model_dump_json(exclude=left_out)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

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
            AdapterError: missing directory or file, a file that is none or leads elsewhere, broken JSON, unknown or
                impossible keys, or weights that are torn, of another shape or of another dtype.
        """
        folder = Path(directory)
        if not folder.is_dir():
            raise AdapterError(
                f"adapter directory '{folder}' does not exist; give a directory written by "
                "'vllm-kangaroo train adapter'"
            )
        path = folder / CONFIG_FILE
        refuse_strange_file(path)
        try:
            if (size := path.stat().st_size) > MAX_CONFIG_BYTES:
                raise ValueError(f"it has {size} bytes where {MAX_CONFIG_BYTES} are the most")
            values = parsed(path.read_text(encoding="utf-8"))
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
            raise AdapterError(f"'{path}' holds the unknown tensor {shown(unknown[0])}; remove it")
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


def refuse_strange_file(path: Path) -> None:
    """Refuse a file of an adapter that is a pipe, a device or a directory, or a link that leaves the adapter.

    Links into the ``blobs`` beside a snapshot are how a hub's cache keeps every file, and stay within it.

    Raises:
        AdapterError: otherwise; not if there is no such file.
    """
    if path.exists() and not path.is_file():
        raise AdapterError(f"'{path}' is no ordinary file; copy the adapter again")
    if not path.is_symlink():
        return
    folder = path.parent.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":
        allowed.append(folder.parent.parent / "blobs")
    try:
        end = path.resolve()
    except (OSError, RuntimeError):  # a circle of links
        end = Path()
    if not any(end.is_relative_to(each) for each in allowed):
        raise AdapterError(
            f"'{path}' is a symbolic link that leads out of the adapter; put the file itself there"
        )


def _first_error(folder: Path, error: ValidationError) -> str:
    wrong = first_complaint(error)
    where = f"{CONFIG_FILE} of adapter '{folder}'"
    if wrong.kind == "unknown":
        return f"{where} has the unknown key {shown(wrong.key)}; remove it"
    if wrong.kind == "missing":
        return f"{where} lacks the key '{wrong.key}'; add it or save the adapter again"
    if not wrong.key:
        return f"{where}: {wrong.said}"
    return f"{where} has {wrong.key}={shown(wrong.value)}: {wrong.said}; correct it"


def _read_header(path: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, whose length is checked too."""
    remedy = "copy the adapter again"
    refuse_strange_file(path)
    try:
        return read_header(path)
    except FileNotFoundError:
        raise AdapterError(f"adapter '{path.parent}' has no {WEIGHTS_FILE}; {remedy}") from None
    except (OSError, HeaderError) as error:
        raise AdapterError(f"'{path}' is no whole safetensors file ({error}); {remedy}") from None
