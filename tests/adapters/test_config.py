"""Every way an adapter checkpoint can be wrong is refused in one sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters.test_reference import make_adapter, make_config
from vllm_kangaroo.adapters.checkpoint import save_adapter
from vllm_kangaroo.adapters.config import AdapterConfig, AdapterError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = make_config()
    save_adapter(make_adapter(config), config, tmp_path)
    return tmp_path


def edit(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        for key, value in changes.items():
            if value is None:
                del values[key]
            else:
                values[key] = value
        path.write_text(json.dumps(values))

    return apply


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def garbage(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)


def empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def rename(old: str, new: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[new] = tensors.pop(old)
        save_file(tensors, folder / "model.safetensors")

    return apply


def extra(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"bias": torch.zeros(2)}, folder / "model.safetensors")


O_PROJ = "layers.0.self_attn.o_proj.weight"
CASES: list[tuple[Callable[[Path], None], str]] = [
    (lambda f: (f / "config.json").unlink(), "has no config.json; give"),
    (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors; copy"),
    (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    (lambda f: (f / "config.json").write_text("[]"), "no JSON object"),
    (edit(exit_layers=2), "unknown key 'exit_layers'; remove"),
    (edit(exit_layer=None), "lacks the key 'exit_layer'"),
    (edit(exit_layer=0), "exit_layer=0"),
    (edit(exit_layer=4), "exit_layer=4 leaves no layer"),
    (edit(num_key_value_heads=4), "num_key_value_heads=4"),
    (edit(model_type="llama"), "model_type='llama'"),
    (edit(format_version=2), "format_version=2"),
    (edit(torch_dtype="int8"), "torch_dtype='int8'"),
    (edit(torch_dtype="bfloat16"), "is float32 where torch_dtype says bfloat16"),
    (edit(hidden_size=32), r"has shape \[24\] where config.json asks for \[32\]"),
    (edit(target={"name_or_path": "m"}), "lacks the key 'target.architecture'"),
    (truncate, "no whole safetensors file"),
    (garbage, "no whole safetensors file"),
    (empty, "no whole safetensors file"),
    (rename(O_PROJ, "o_proj.weight"), "unknown tensor 'o_proj.weight'"),
    (extra, "unknown tensor 'bias'; remove"),
]


@pytest.mark.parametrize(("damage", "message"), CASES)
def test_refusals(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    AdapterConfig.load(folder)
    damage(folder)
    with pytest.raises(AdapterError, match=message) as error:
        AdapterConfig.load(folder)
    text = str(error.value)
    assert "\n" not in text and str(folder) in text


def test_missing_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[O_PROJ]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(AdapterError, match=f"lacks the tensor '{O_PROJ}'; save"):
        AdapterConfig.load(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "kangaroo_ffn_adapter"}, "kangaroo_ffn_adapter needs an intermediate_size"),
        ({"intermediate_size": 16}, "kangaroo_adapter has no intermediate_size"),
        ({"draft_vocab_size": 51}, "draft_vocab_size=51 is more than vocab_size=50"),
        ({"draft_vocab_size": 3}, "lacks the tensor 'draft_vocab'"),
        ({"model_type": "kangaroo_tree_adapter"}, "model_type='kangaroo_tree_adapter'"),
    ],
)
def test_kinds_that_do_not_fit(folder: Path, changes: dict[str, object], message: str) -> None:
    edit(**changes)(folder)
    with pytest.raises(AdapterError, match=message):
        AdapterConfig.load(folder)


def test_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="nowhere' does not exist; give"):
        AdapterConfig.load(tmp_path / "nowhere")


def test_config_module_imports_no_torch() -> None:
    code = (
        "import sys, vllm_kangaroo.adapters.config; "
        "sys.exit('torch' in sys.modules or 'vllm' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
