"""Convert a GGUF file into a checkpoint that vLLM serves: safetensors, config and tokenizer.

transformers reads the file and undoes llama.cpp's layout. What it would pass over in silence is
refused here: rotary scaling, tensors that it has no place for, and parameters that the file lacks.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vllm_kangaroo.training.checkpoints.gguf_file import (
    ROPE_FACTORS,
    GgufError,
    GgufFile,
    read_gguf,
)
from vllm_kangaroo.training.checkpoints.gguf_tokenizer import load_tokenizer

DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32")}
# Llama 3's scaling as its makers published it; only the factor differs between its models.
LLAMA3_ROPE = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_CHECKED_HEADS = ("llama", "qwen2", "qwen3")


def convert_gguf(
    source: Path,
    out: Path,
    *,
    dtype: str = "auto",
    tokenizer: Path | None = None,
    told: Callable[[str], None] = lambda what: None,
) -> Any:
    """Write to ``out`` the model of a GGUF file; whatever goes wrong, ``out`` is whole or not there.

    Args:
        dtype: of the weights; ``auto`` is the file's own, bfloat16 where it is quantised.
        tokenizer: directory to take the tokenizer from instead of from the file.
        told: called with each stage, in words.

    Returns:
        The model's config.

    Raises:
        GgufError: a file that is torn, foreign or of an unsupported kind, or an ``out`` that is there.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise GgufError(f"--dtype {dtype} is none of auto, {', '.join(DTYPES)}; choose one")
    if out.exists() or out.is_symlink():
        raise GgufError(f"'{out}' is there already; name a new directory")
    if not sys.stderr.isatty():
        _no_bars()
    file = read_gguf(source)
    with _quiet_transformers(), file.shared():
        told("reading configuration and tokenizer")
        config = _config(file)
        found = load_tokenizer(file, tokenizer)
        told("reading and unpacking the weights")
        model = _model(file, config, DTYPES.get(dtype) or file.dtype or torch.bfloat16)
        _set_ends(file, model)
        told("writing the checkpoint")
        with new_directory(out) as folder:
            model.save_pretrained(folder)
            found.save_pretrained(folder)
    return model.config


def _no_bars() -> None:
    """No progress bars of tqdm's in this process, unless it has been imported. Children are to decide for themselves."""
    if "TQDM_DISABLE" in os.environ:
        return
    os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported
    try:
        importlib.import_module("tqdm.auto")
    finally:
        del os.environ["TQDM_DISABLE"]


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory beside ``out`` that takes its place when all went well, and vanishes otherwise.

    Raises:
        GgufError: if it cannot be written.
    """
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        yield part
        for path in part.iterdir():  # safetensors are written for their owner alone
            path.chmod(0o644)
        part.rename(out)
    except OSError as error:
        raise GgufError(
            f"'{out}' cannot be written ({error.strerror or error}); make room, or name another place"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _config(file: GgufFile) -> Any:
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            file.path.parent, gguf_file=file.path.name, local_files_only=True
        )
    except Exception as error:  # transformers names no class for what it does not support
        said = " ".join(str(error).split())[:200]
        raise GgufError(
            f"'{file.path}' has general.architecture={file.architecture!r}, which transformers does "
            f"not read ({type(error).__name__}: {said}); give a model of another kind"
        ) from None
    if file.architecture in _CHECKED_HEADS:
        _set_head_size(file, config)
    _set_rope(file, config)
    return config


def _set_head_size(file: GgufFile, config: Any) -> None:
    size = file.own("attention.key_length") or config.hidden_size // config.num_attention_heads
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.own(key) not in (None, size):
            raise GgufError(
                f"'{file.path}' has heads of {size} but {file.architecture}.{key}={file.own(key)}, "
                "which this conversion does not know; give a model of another kind"
            )
    config.head_dim = size


def _set_rope(file: GgufFile, config: Any) -> None:
    kind = file.own("rope.scaling.type")
    if kind not in (None, "none") or file.own("rope.scale_linear") not in (None, 1.0):
        raise GgufError(
            f"'{file.path}' has {file.architecture}.rope.scaling.type={kind!r}, which transformers "
            "would pass over; give a file without it"
        )
    factors = file.rope_factors()
    if factors is None:
        return
    factor = float(factors.max())
    expected = llama3_factors(2 * len(factors), config.rope_parameters["rope_theta"], factor)
    if not np.allclose(factors, expected, rtol=1e-3):
        raise GgufError(
            f"the tensor '{ROPE_FACTORS}' of '{file.path}' holds other factors than Llama 3's, which "
            "have no name in a config; give a model of another kind"
        )
    scaling = {"rope_type": "llama3", "factor": factor, **LLAMA3_ROPE}
    config.rope_parameters = config.rope_parameters | scaling


def llama3_factors(head_dim: int, theta: float, factor: float) -> np.ndarray:
    """By what Llama 3.1 divides each rotary frequency, ``[head_dim / 2]``."""
    low, high, before = LLAMA3_ROPE.values()
    rotations = before / (2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim))
    smooth = np.clip((rotations - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / factor + smooth))


def _model(file: GgufFile, config: Any, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    try:
        model, told = AutoModelForCausalLM.from_pretrained(
            file.path.parent,
            gguf_file=file.path.name,
            config=config,
            dtype=dtype,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            local_files_only=True,
        )
    except ImportError as error:
        raise GgufError(f"GGUF files cannot be read here ({error}); install accelerate") from None
    except Exception as error:  # transformers names no class for tensors that do not fit
        said = " ".join(str(error).split())[:200]
        raise GgufError(
            f"'{file.path}' cannot be loaded as a {config.model_type} that generates text "
            f"({type(error).__name__}: {said}); give a model of another kind"
        ) from None
    for kind in ("missing_keys", "mismatched_keys", "unexpected_keys"):
        if told[kind]:
            name = str(sorted(map(str, told[kind]))[0])
            raise GgufError(
                f"'{file.path}' does not fit a {config.model_type}: {kind.replace('_', ' ')}, such "
                f"as {name}; give a model of another kind"
            )
    _refuse_shapes(file, model)
    _refuse_left_over(file, model)
    # Nothing is quantised any more.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model


def _refuse_shapes(file: GgufFile, model: Any) -> None:
    """Where weights were packed, transformers takes tensors of whatever shape."""
    with torch.device("meta"):
        expected = type(model)(model.config).state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.shape != expected[name].shape:
            raise GgufError(
                f"'{file.path}' has {list(tensor.shape)} for {name} where its own keys ask for "
                f"{list(expected[name].shape)}; get another copy"
            )


def _refuse_left_over(file: GgufFile, model: Any) -> None:
    """transformers drops tensors that it has no place for; then a value of the file is in no parameter."""
    ignored = {ROPE_FACTORS} | ({"output.weight"} if model.config.tie_word_embeddings else set())
    held = sum(count for name, count in file.elements().items() if name not in ignored)
    placed = {tensor.data_ptr(): tensor.numel() for tensor in model.state_dict().values()}
    if held != sum(placed.values()):
        raise GgufError(
            f"'{file.path}' holds {held} weights where a {model.config.model_type} of its shape has "
            f"{sum(placed.values())}, so that some would be lost; give a model of another kind"
        )


def _set_ends(file: GgufFile, model: Any) -> None:
    """Stop at the end of a text and at that of a turn, which a chat model may mark otherwise."""
    from transformers import GenerationConfig

    ids = {
        key: file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("bos", "eos", "eot")
    }
    ends = [ids[key] for key in ("eos", "eot") if ids[key] is not None]
    ends = list(dict.fromkeys(ends))
    model.generation_config = GenerationConfig(
        bos_token_id=ids["bos"],
        eos_token_id=ends[0] if len(ends) == 1 else ends or None,
        pad_token_id=file.metadata.get("tokenizer.ggml.padding_token_id"),
    )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No advice for those who keep weights packed."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
