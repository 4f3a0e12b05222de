"""Enlarge checkpoints on disk: a Llama, and a Kangaroo adapter made for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vllm_kangaroo.adapters.checkpoint import load_adapter, norm_fingerprint, save_adapter
from vllm_kangaroo.adapters.reference import KangarooAdapter
from vllm_kangaroo.console import Progress, telling
from vllm_kangaroo.training.checkpoints.enlarge import (
    EnlargeError,
    LlamaShape,
    enlarge_state,
    enlarge_tensor,
)

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FINAL_NORM = "model.norm.weight"
NOT_A_WEIGHT = "rotary_emb.inv_freq"


def enlarge_model(
    source: Path, target: Path, *, console: Console | None = None, **sizes: int
) -> LlamaShape:
    """Write to ``target`` an enlargement of the checkpoint in ``source``.

    Args:
        console: is told how far it is.
        sizes: ``hidden``, ``ffn``, ``heads``, ``kv_heads`` and optionally ``depth_factor``.

    Raises:
        EnlargeError: a shape that cannot be reached, a source that is no plain Llama, or a
            target directory that is not empty.
    """
    config = _read_config(source)
    old = LlamaShape.of(config)
    new = old.enlarged(**sizes)
    if target.exists() and any(target.iterdir()):
        raise EnlargeError(f"'{target}' is not empty; name a new directory")
    told = console or Console(quiet=True)
    with Progress(told, "enlarging", _count(source), unit="tensors") as progress:
        state = enlarge_state(_counted(_tensors(source), progress), old, new)
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and _is_companion(file.name):
            shutil.copyfile(file, target / file.name)
    with telling(told, f"writing {WEIGHTS_FILE}"):
        save_file(state, target / WEIGHTS_FILE, metadata={"format": "pt"})
    config |= {
        "hidden_size": new.hidden,
        "intermediate_size": new.ffn,
        "num_attention_heads": new.heads,
        "num_key_value_heads": new.kv_heads,
        "head_dim": new.head_dim,
        "num_hidden_layers": new.layers,
        "rms_norm_eps": config["rms_norm_eps"] * old.hidden / new.hidden,
    }
    # Last, so that an interrupted run leaves nothing that loads.
    (target / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return new


def enlarge_adapter(source: Path, target: Path, old_model: Path, new_model: Path) -> None:
    """Write to ``target`` the adapter of ``source``, enlarged as ``new_model`` was.

    Raises:
        EnlargeError: an adapter that was not made for ``old_model``.
        AdapterError: an adapter checkpoint that cannot be read.
    """
    old = LlamaShape.of(_read_config(old_model))
    new_config = _read_config(new_model)
    new = LlamaShape.of(new_config)
    adapter = load_adapter(source)
    config = adapter.config
    shape = LlamaShape(
        config.hidden_size,
        old.ffn,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.target.num_hidden_layers,
        config.head_dim,
    )
    found = norm_fingerprint(_tensor(old_model, FINAL_NORM))
    if shape != old or config.target.norm_fingerprint not in (None, found):
        raise EnlargeError(
            f"--adapter '{source}' was not made for the model in '{old_model}'; give the model "
            f"that it was trained for ({config.target.name_or_path})"
        )
    factor = new.layers // old.layers
    enlarged = config.model_copy(
        update={
            "exit_layer": config.exit_layer * factor,
            "hidden_size": new.hidden,
            "num_attention_heads": new.heads,
            "num_key_value_heads": new.kv_heads,
            "rms_norm_eps": config.rms_norm_eps * old.hidden / new.hidden,
            "target": config.target.model_copy(
                update={
                    "name_or_path": new_model.name,
                    "num_hidden_layers": new.layers,
                    "norm_fingerprint": norm_fingerprint(_tensor(new_model, FINAL_NORM)),
                }
            ),
        }
    )
    out = KangarooAdapter(enlarged)
    out.load_state_dict(
        {name: enlarge_tensor(name, t, old, new) for name, t in adapter.state_dict().items()}
    )
    save_adapter(out, enlarged, target)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EnlargeError(
            f"'{folder}' has no readable config.json ({error}); give a local checkpoint directory"
        ) from None
    architectures = config.get("architectures")
    if (
        architectures not in (["LlamaForCausalLM"], ["LLaMAForCausalLM"])
        or "quantization_config" in config
    ):
        raise EnlargeError(
            f"'{folder}' has architectures {architectures}; only LlamaForCausalLM checkpoints in "
            "floating point can be enlarged"
        )
    return config


def _is_companion(name: str) -> bool:
    """Whether a file beside the weights holds for the enlarged model as well."""
    stem = name.split(".")[0]
    return stem in ("generation_config", "special_tokens_map", "added_tokens") or stem.startswith(
        ("tokenizer", "vocab", "merges", "chat_template")
    )


def _shards(folder: Path) -> list[Path]:
    if (folder / INDEX_FILE).is_file():
        index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        return [folder / name for name in sorted(set(index["weight_map"].values()))]
    return [folder / WEIGHTS_FILE]


def _counted(
    tensors: Iterable[tuple[str, Tensor]], progress: Progress
) -> Iterator[tuple[str, Tensor]]:
    for each in tensors:
        yield each
        progress.advance()


def _tensors(
    folder: Path, wanted: Callable[[str], bool] = lambda _: True
) -> Iterator[tuple[str, Tensor]]:
    for path in _shards(folder):
        with _readable(path) as file:
            for name in filter(wanted, file.keys()):
                if not name.endswith(NOT_A_WEIGHT):
                    yield name, file.get_tensor(name)


def _count(folder: Path) -> int:
    """Tensors that `_tensors` has of all."""
    found = 0
    for path in _shards(folder):
        with _readable(path) as file:
            found += sum(not name.endswith(NOT_A_WEIGHT) for name in file.keys())  # noqa: SIM118
    return found


@contextmanager
def _readable(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise EnlargeError(
            f"'{path}' cannot be read ({error}); give a whole safetensors checkpoint"
        ) from None


def _tensor(folder: Path, name: str) -> Tensor:
    for _, tensor in _tensors(folder, lambda other: other == name):
        return tensor
    raise EnlargeError(f"'{folder}' lacks the tensor '{name}'; give a whole Llama checkpoint")
