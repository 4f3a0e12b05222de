"""Adapter checkpoints on disk: ``config.json`` beside ``model.safetensors``."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from vllm_kangaroo.adapters.config import (
    CONFIG_FILE,
    DRAFT_VOCAB,
    WEIGHTS_FILE,
    AdapterConfig,
    AdapterError,
)
from vllm_kangaroo.adapters.reference import KangarooAdapter
from vllm_kangaroo.text_inputs import shown


def norm_fingerprint(weight: Tensor) -> str:
    """First 16 hex digits of the SHA-256 of a final norm weight, as bfloat16 bytes.

    It tells whether an adapter meets the target that it was trained for.
    """
    data = weight.detach().to(device="cpu", dtype=torch.bfloat16).contiguous()
    return hashlib.sha256(data.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def load_adapter(
    directory: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> KangarooAdapter:
    """Load a checkpoint, in its own dtype or in ``dtype``.

    Raises:
        AdapterError: see `AdapterConfig.load`, `read_weights` and `check_draft_vocab`.
    """
    config = AdapterConfig.load(directory)
    weights = read_weights(directory, config)
    adapter = KangarooAdapter(config, dtype)
    adapter.load_state_dict(weights)
    if adapter.draft_vocab is not None:
        check_draft_vocab(adapter.draft_vocab, config, directory)
    return adapter


def read_weights(directory: str | os.PathLike[str], config: AdapterConfig) -> dict[str, Tensor]:
    """The tensors of a checkpoint, of the names, shapes and dtypes that ``config`` asks for, and finite.

    Raises:
        AdapterError: otherwise.
    """
    path = Path(directory) / WEIGHTS_FILE
    config.check_weights(path)
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(
            f"'{path}' cannot be read ({shown(str(error))}); copy the adapter again"
        ) from None
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise AdapterError(
                f"tensor '{name}' of '{path}' holds numbers that are not finite; train or copy the adapter again"
            )
    return weights


def check_draft_vocab(
    token_ids: Tensor, config: AdapterConfig, directory: str | os.PathLike[str]
) -> None:
    """Check that a reduced draft vocabulary ``[Vd]`` names tokens of the target, each once, in order.

    Raises:
        AdapterError: otherwise.
    """
    wide = token_ids.long()
    inside = int(wide[0]) >= 0 and int(wide[-1]) < config.vocab_size
    if not inside or not bool((wide.diff() > 0).all()):
        raise AdapterError(
            f"tensor '{DRAFT_VOCAB}' of '{Path(directory) / WEIGHTS_FILE}' is no ascending list of "
            f"token ids below vocab_size={config.vocab_size}; save the adapter again"
        )


def save_adapter(
    adapter: KangarooAdapter, config: AdapterConfig, directory: str | os.PathLike[str]
) -> None:
    """Write a checkpoint, stored as ``config.torch_dtype``, into ``directory``.

    An adapter already there is replaced. ``config.json`` goes first and comes last, so that a
    crash in between leaves a directory that `AdapterConfig.load` refuses, never a mixture.
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, config.torch_dtype)
    state = {
        name: tensor.detach()
        .to(device="cpu", dtype=dtype if tensor.is_floating_point() else torch.int32)
        .contiguous()
        for name, tensor in adapter.state_dict().items()
    }
    temporary = folder / f".{WEIGHTS_FILE}.{os.getpid()}"
    save_file(state, temporary, metadata={"format": "pt"})
    try:
        config.check_weights(temporary)
    except AdapterError:
        temporary.unlink()
        raise
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    temporary.replace(folder / WEIGHTS_FILE)
    config.save(folder)
