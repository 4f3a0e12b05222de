"""Convert an adapter of the original Kangaroo code (arXiv 2404.18911) into one of ours.

The original is a directory with ``config.json``, a Llama config of one layer, and
``pytorch_model.bin``. The latter is a pickle, which can hold code: torch's restricted reader takes
tensors out of it and executes nothing.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vllm_kangaroo.adapters.checkpoint import norm_fingerprint, save_adapter
from vllm_kangaroo.adapters.config import CONFIG_FILE, AdapterConfig, TargetInfo
from vllm_kangaroo.adapters.reference import KangarooAdapter
from vllm_kangaroo.provenance import file_sha256, of_checkpoint, portable

ORIGINAL_WEIGHTS = "pytorch_model.bin"
_ORIGINAL_ROPE_THETA = 10000.0
_IGNORED = "rotary_emb.inv_freq"  # a buffer that older transformers saved
_DTYPES = {getattr(torch, name): name for name in ("float16", "bfloat16", "float32", "float64")}
_FINAL_NORM = "model.norm.weight"


class ConvertError(ValueError):
    """A checkpoint that cannot be converted; the message names key, value and remedy."""


def convert(source: Path, out: Path, exit_layer: int, model: Path) -> AdapterConfig:
    """Write to ``out`` the adapter of ``source``, in the dtype of its tensors.

    Args:
        exit_layer: layers of the target below the exit; the original does not say.
        model: directory of the target, of which ``config.json`` and the final norm are read.

    Raises:
        ConvertError: a source that is torn, holds code or unknown tensors, or does not fit the
            target; a directory ``out`` that holds an adapter.
    """
    if (out / CONFIG_FILE).exists():
        raise ConvertError(f"'{out}' already holds an adapter; name a new directory")
    values = _read_config(source)
    target = _read_config(model)
    state = read_tensors(source / ORIGINAL_WEIGHTS)
    config = _adapter_config(values, target, state, exit_layer, source, model)
    adapter = KangarooAdapter(config)
    adapter.load_state_dict(state)
    save_adapter(adapter, config, out)
    return config


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a file that ``torch.save`` wrote; nothing in it is executed.

    Raises:
        ConvertError: a missing or torn file, or one that holds anything but tensors.
    """
    if not path.is_file():
        raise ConvertError(f"'{path}' is no file; give the directory that holds {path.name}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names no narrower class for torn and forbidden content
        raise ConvertError(
            f"'{path}' is torn or holds more than tensors ({type(error).__name__}), and nothing in "
            "it was executed; get another copy from its publisher"
        ) from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise ConvertError(f"'{path}' is no dictionary of tensors; give a model's state")
    return {str(name): tensor for name, tensor in found.items() if not str(name).endswith(_IGNORED)}


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConvertError(
            f"'{path}' cannot be read ({error}); give a directory that holds it"
        ) from None
    if not isinstance(values, dict):
        raise ConvertError(f"'{path}' is no JSON object; replace it")
    return values


def _adapter_config(
    values: dict[str, Any],
    target: dict[str, Any],
    state: dict[str, Tensor],
    exit_layer: int,
    source: Path,
    model: Path,
) -> AdapterConfig:
    layers = target.get("num_hidden_layers", 0)
    if not 1 <= exit_layer < layers:
        raise ConvertError(
            f"--exit-layer {exit_layer} is outside the {layers} layers of '{model}'; give 1 to "
            f"{layers - 1}"
        )
    ours, theirs = _shape(values, source), _shape(target, model)
    for key, value in ours.items():
        if theirs[key] != value:
            raise ConvertError(
                f"'{source}' has {key}={value} where --model '{model}' has {theirs[key]}; name the "
                "model that the adapter was trained for"
            )
    if values.get("rope_scaling"):
        raise ConvertError(
            f"'{source}' has rope_scaling={values['rope_scaling']}, which adapters cannot have; "
            "train one with 'vllm-kangaroo train adapter'"
        )
    fingerprint = final_norm_fingerprint(model)
    config = AdapterConfig(
        exit_layer=exit_layer,
        **ours,
        rms_norm_eps=values.get("rms_norm_eps", 1e-6),
        rope_theta=values.get("rope_theta") or _ORIGINAL_ROPE_THETA,
        torch_dtype=_dtype(state, source),  # type: ignore[arg-type]
        target=TargetInfo(
            name_or_path=portable(str(model)),
            architecture=(target.get("architectures") or ["LlamaForCausalLM"])[0],
            model_type=target.get("model_type", "llama"),
            num_hidden_layers=layers,
            norm_fingerprint=fingerprint,
        ),
        training={
            "converted_from": {
                "directory": source.name,
                "sha256": file_sha256(source / ORIGINAL_WEIGHTS),
            },
            **of_checkpoint(),
        },
    )
    _check_tensors(state, config, source)
    return config


def _shape(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
        return {
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_key_value_heads": int(values.get("num_key_value_heads") or heads),
            "head_dim": int(values.get("head_dim") or hidden // heads),
            "vocab_size": int(values["vocab_size"]),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ConvertError(
            f"{CONFIG_FILE} of '{folder}' lacks a usable {error}; give a Llama config"
        ) from None


def _dtype(state: dict[str, Tensor], source: Path) -> str:
    dtypes = {tensor.dtype for tensor in state.values()}
    if len(dtypes) != 1 or not dtypes <= _DTYPES.keys():
        names = ", ".join(sorted(str(dtype) for dtype in dtypes)) or "none"
        raise ConvertError(
            f"'{source / ORIGINAL_WEIGHTS}' has tensors of dtype {names}; save them all in one "
            "floating-point dtype"
        )
    return _DTYPES[dtypes.pop()]


def _check_tensors(state: dict[str, Tensor], config: AdapterConfig, source: Path) -> None:
    where = f"'{source / ORIGINAL_WEIGHTS}'"
    expected = config.tensor_shapes()
    unknown = sorted(state.keys() - expected.keys())
    if unknown:
        raise ConvertError(
            f"{where} holds the tensor '{unknown[0]}', which no Kangaroo adapter has; give an "
            "original Kangaroo checkpoint"
        )
    for name, shape in expected.items():
        found = tuple(state[name].shape) if name in state else None
        if found != shape:
            raise ConvertError(
                f"{where} has {'no' if found is None else list(found)} tensor '{name}' where "
                f"{CONFIG_FILE} asks for {list(shape)}; get another copy"
            )


def final_norm_fingerprint(model: Path) -> str | None:
    """Fingerprint of a checkpoint's final norm, None if the directory holds no such weights."""
    path = _file_of(model, _FINAL_NORM)
    if path is None:
        return None
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                return norm_fingerprint(file.get_tensor(_FINAL_NORM))
        except (OSError, SafetensorError) as error:
            raise ConvertError(f"'{path}' cannot be read ({error}); copy it again") from None
    tensors = read_tensors(path)
    return norm_fingerprint(tensors[_FINAL_NORM]) if _FINAL_NORM in tensors else None


def _file_of(model: Path, name: str) -> Path | None:
    """The file of a checkpoint that holds a tensor."""
    for whole in ("model.safetensors", ORIGINAL_WEIGHTS):
        index = model / f"{whole}.index.json"
        if index.is_file():
            file = json.loads(index.read_text(encoding="utf-8"))["weight_map"].get(name)
            return None if file is None else model / file
        if (model / whole).is_file():
            return model / whole
    return None
