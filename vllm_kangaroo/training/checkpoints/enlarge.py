"""Make a larger Llama that computes the same function as a small trained one.

Speculation pays where decoding is bound by memory traffic, which a demo-sized model is not. The
enlarged model has the cost of its new size and, to the last logit, the behaviour of the source:

* hidden size d -> D, heads, and feed-forward size are padded with zeros. A norm over D numbers of
  which D - d are zero sees the mean square scaled by d/D; scaling ``rms_norm_eps`` by d/D and the
  norm weights by sqrt(d/D) undoes that. Where D/d is a power of four the factor is a power of two,
  so that even 16-bit weights stay exact.
* depth factor n: each layer is followed by n - 1 copies whose output projections are zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class EnlargeError(ValueError):
    """A shape or source that cannot be enlarged; the message names key, value and remedy."""


@dataclass(frozen=True)
class LlamaShape:
    """The sizes that enlarging changes, and the two that it keeps."""

    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    layers: int
    head_dim: int

    @classmethod
    def of(cls, config: dict[str, Any]) -> LlamaShape:
        """Read the shape from the values of a Llama ``config.json``."""
        heads = config["num_attention_heads"]
        return cls(
            hidden=config["hidden_size"],
            ffn=config["intermediate_size"],
            heads=heads,
            kv_heads=config.get("num_key_value_heads") or heads,
            layers=config["num_hidden_layers"],
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        )

    def enlarged(
        self, *, hidden: int, ffn: int, heads: int, kv_heads: int, depth_factor: int = 1
    ) -> LlamaShape:
        """The shape asked for.

        Raises:
            EnlargeError: a size below the source's, another group size, or a depth factor below 1.
        """
        for flag, value, source in (
            ("--hidden", hidden, self.hidden),
            ("--ffn", ffn, self.ffn),
            ("--heads", heads, self.heads),
            ("--kv-heads", kv_heads, self.kv_heads),
        ):
            if value < source:
                raise EnlargeError(
                    f"{flag} {value} is smaller than the source's {source}; give at least {source}"
                )
        if heads * self.kv_heads != kv_heads * self.heads:
            raise EnlargeError(
                f"--heads {heads} with --kv-heads {kv_heads} changes the number of query heads "
                f"per key/value head; the source has {self.heads} and {self.kv_heads}, keep "
                "their ratio"
            )
        if hidden % heads:
            # transformers refuses such a config, although head_dim is given.
            raise EnlargeError(
                f"--hidden {hidden} is not a multiple of --heads {heads}; give a multiple"
            )
        if depth_factor < 1:
            raise EnlargeError(f"--depth-factor {depth_factor} is below 1; give 1 or more")
        return LlamaShape(hidden, ffn, heads, kv_heads, self.layers * depth_factor, self.head_dim)

    def tensor_shape(self, name: str, source: LlamaShape, shape: tuple[int, ...]) -> list[int]:
        """The shape of the tensor ``name`` in this model, given that in the source."""
        expected = _sizes(name, source, shape)
        if list(shape) != expected:
            raise EnlargeError(
                f"tensor '{name}' has shape {list(shape)} where config.json asks for {expected}; "
                "the source is damaged, copy it again"
            )
        return _sizes(name, self, shape)


# Rows and columns of each kind of tensor; '' is an axis that keeps its size.
_AXES = {
    "embed_tokens": ("", "hidden"),
    "lm_head": ("", "hidden"),
    "norm": ("hidden", ""),
    "input_layernorm": ("hidden", ""),
    "post_attention_layernorm": ("hidden", ""),
    "q_proj": ("heads", "hidden"),
    "k_proj": ("kv_heads", "hidden"),
    "v_proj": ("kv_heads", "hidden"),
    "o_proj": ("hidden", "heads"),
    "gate_proj": ("ffn", "hidden"),
    "up_proj": ("ffn", "hidden"),
    "down_proj": ("hidden", "ffn"),
}
_NORMS = ("norm", "input_layernorm", "post_attention_layernorm")
_OUTPUTS = ("o_proj", "down_proj")


def _kind(name: str) -> str:
    kind = name.split(".")[-2] if "." in name else name
    if kind not in _AXES:
        raise EnlargeError(
            f"tensor '{name}' is not one of a plain Llama; only LlamaForCausalLM checkpoints in "
            "floating point can be enlarged"
        )
    return kind


def _sizes(name: str, model: LlamaShape, like: tuple[int, ...]) -> list[int]:
    """Shape of the tensor ``name`` in ``model``; axes that never grow are taken from ``like``."""
    sizes = {
        "": None,
        "hidden": model.hidden,
        "ffn": model.ffn,
        "heads": model.heads * model.head_dim,
        "kv_heads": model.kv_heads * model.head_dim,
    }
    axes = _AXES[_kind(name)][: len(like)]
    return [sizes[axis] or size for axis, size in zip(axes, like, strict=True)]


def pad(tensor: Tensor, shape: list[int]) -> Tensor:
    """``tensor`` in the low corner of zeros of ``shape``."""
    out = tensor.new_zeros(shape)
    out[tuple(slice(size) for size in tensor.shape)] = tensor
    return out


def enlarge_tensor(name: str, tensor: Tensor, source: LlamaShape, target: LlamaShape) -> Tensor:
    """One tensor of the enlarged model, in the dtype of the source."""
    out = pad(tensor, target.tensor_shape(name, source, tuple(tensor.shape)))
    if _kind(name) in _NORMS:
        out = (out.double() * (source.hidden / target.hidden) ** 0.5).to(tensor.dtype)
    return out


def enlarge_state(
    tensors: Iterable[tuple[str, Tensor]], source: LlamaShape, target: LlamaShape
) -> dict[str, Tensor]:
    """All tensors of the enlarged model."""
    factor = target.layers // source.layers
    state: dict[str, Tensor] = {}
    for name, tensor in tensors:
        out = enlarge_tensor(name, tensor, source, target)
        if not name.startswith("model.layers."):
            state[name] = out
            continue
        _, _, index, rest = name.split(".", 3)
        for copy in range(factor):
            null = copy > 0 and _kind(name) in _OUTPUTS
            layer = int(index) * factor + copy
            state[f"model.layers.{layer}.{rest}"] = (
                out.new_zeros(out.shape) if null else out.clone()
            )
    return state
