"""``convert``: original adapters, read without executing them, against the formulas in float64."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from tests.training.models import make_llama
from vllm_kangaroo.adapters.checkpoint import load_adapter, norm_fingerprint
from vllm_kangaroo.cli import main as cli
from vllm_kangaroo.training.checkpoints.original_adapter import ConvertError, convert

HIDDEN, HEADS = 48, 6
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": 40,
    "num_attention_heads": HEADS,
    "num_hidden_layers": 1,
    "rms_norm_eps": 1e-4,
    "vocab_size": 97,
    "torch_dtype": "float32",
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with as many key/value heads as query heads, as Vicuna has."""
    folder = tmp_path_factory.mktemp("target")
    make_llama(folder, kv_heads=HEADS)
    return folder


def original(folder: Path, **changes: Any) -> dict[str, Tensor]:
    """Write an adapter as the original code saves it; returns its tensors."""
    generator = torch.Generator().manual_seed(3)

    def matrix() -> Tensor:
        return torch.randn(HIDDEN, HIDDEN, generator=generator) * 0.2

    state = {f"layers.0.self_attn.{part}_proj.weight": matrix() for part in "qkvo"}
    for name in ("norm.weight", "layers.0.input_layernorm.weight"):
        state[name] = 1 + 0.1 * torch.randn(HIDDEN, generator=generator)
    inverse = torch.arange(0, HIDDEN // HEADS, 2) / (HIDDEN // HEADS)
    state["layers.0.self_attn.rotary_emb.inv_freq"] = 10000.0**-inverse
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    torch.save(state, folder / "pytorch_model.bin")
    return state


def reference(state: dict[str, Tensor], f: Tensor, eps: float = 1e-4) -> Tensor:
    """The adapter's formulas, one head and one position at a time, in float64: ``[T, N]``."""
    weights = {name: tensor.double() for name, tensor in state.items()}
    f = f.double()

    def norm(x: Tensor, name: str) -> Tensor:
        return x / math.sqrt(x.square().mean().item() + eps) * weights[name]

    def turned(x: Tensor, position: int) -> Tensor:
        half = len(x) // 2
        out = x.clone()
        for i in range(half):
            angle = position * 10000.0 ** (-2 * i / len(x))
            cos, sin = math.cos(angle), math.sin(angle)
            out[i] = x[i] * cos - x[i + half] * sin
            out[i + half] = x[i + half] * cos + x[i] * sin
        return out

    normed = [norm(row, "layers.0.input_layernorm.weight") for row in f]
    q, k, v = (
        [weights[f"layers.0.self_attn.{part}_proj.weight"] @ row for row in normed]
        for part in "qkv"
    )
    size, rows = HIDDEN // HEADS, []
    for t in range(len(f)):
        mixed = torch.zeros(HIDDEN, dtype=torch.float64)
        for head in range(HEADS):
            part = slice(head * size, (head + 1) * size)
            query = turned(q[t][part], t)
            scores = torch.stack([query @ turned(k[s][part], s) for s in range(t + 1)])
            shares = (scores / math.sqrt(size)).softmax(0)
            mixed[part] = sum(share * v[s][part] for s, share in enumerate(shares))
        out = f[t] + weights["layers.0.self_attn.o_proj.weight"] @ mixed
        rows.append(norm(out, "norm.weight"))
    return torch.stack(rows)


@torch.no_grad()
def test_against_the_formulas_in_float64(tmp_path: Path, target: Path) -> None:
    state = original(tmp_path / "original")
    config = convert(tmp_path / "original", tmp_path / "ours", 2, target)
    adapter = load_adapter(tmp_path / "ours")
    f = torch.randn(9, HIDDEN, generator=torch.Generator().manual_seed(4)) * 2
    expected = reference(state, f)
    assert adapter.norm.weight.dtype == torch.float32
    assert (adapter(f[None])[0].double() - expected).abs().max() < 1e-5
    assert (expected - f).abs().max() > 0.1
    assert config.exit_layer == 2 and config.rope_theta == 10000.0
    assert config.target.architecture == "LlamaForCausalLM"
    assert config.target.num_hidden_layers == 4
    weight = make_llama(tmp_path / "again", kv_heads=HEADS).model.norm.weight
    assert config.target.norm_fingerprint == norm_fingerprint(weight)
    assert len(config.training["converted_from"]["sha256"]) == 64


class Trap:
    """A pickle that creates a file when it is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_the_file_is_not_executed(tmp_path: Path, target: Path, new_format: bool) -> None:
    state: dict[str, Any] = dict(original(tmp_path / "original"))
    state["norm.weight"] = Trap(tmp_path / "sprung")
    file = tmp_path / "original" / "pytorch_model.bin"
    torch.save(state, file, _use_new_zipfile_serialization=new_format)
    arguments = ["convert", str(tmp_path / "original"), str(tmp_path / "ours")]
    arguments += ["--exit-layer", "2", "--model", str(target)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2
    assert "holds more than tensors" in result.stderr and result.stderr.count("\n") == 1
    assert not (tmp_path / "sprung").exists() and not (tmp_path / "ours").exists()
    torch.load(file, weights_only=False)
    assert (tmp_path / "sprung").exists(), "the trap itself must work"


def test_as_a_user_types_it(tmp_path: Path, target: Path) -> None:
    original(tmp_path / "original")
    arguments = ["convert", str(tmp_path / "original"), str(tmp_path / "ours")]
    arguments += ["--exit-layer", "1", "--model", str(target)]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    assert load_adapter(tmp_path / "ours").config.exit_layer == 1
    again = CliRunner().invoke(cli.app, arguments)
    assert again.exit_code == 2 and "already holds an adapter" in again.stderr


def test_a_target_without_weights(tmp_path: Path, target: Path) -> None:
    original(tmp_path / "original")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((target / "config.json").read_text())
    assert (
        convert(
            tmp_path / "original", tmp_path / "ours", 1, tmp_path / "bare"
        ).target.norm_fingerprint
        is None
    )


@pytest.mark.parametrize("sharded", [True, False])
def test_a_target_in_bin_files(tmp_path: Path, target: Path, sharded: bool) -> None:
    original(tmp_path / "original")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text((target / "config.json").read_text())
    weight = torch.randn(HIDDEN)
    name = "pytorch_model-00002-of-00002.bin" if sharded else "pytorch_model.bin"
    torch.save({"model.norm.weight": weight}, model / name)
    if sharded:
        index = {"weight_map": {"model.norm.weight": name}}
        (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    config = convert(tmp_path / "original", tmp_path / "ours", 1, model)
    assert config.target.norm_fingerprint == norm_fingerprint(weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads=3 where --model"),
        ({"vocab_size": 98}, "vocab_size=98 where --model .* has 97"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"hidden_size": None}, "lacks a usable"),
    ],
)
def test_configs_that_are_refused(
    tmp_path: Path, target: Path, changes: dict[str, Any], message: str
) -> None:
    original(tmp_path / "original", **changes)
    with pytest.raises(ConvertError, match=message):
        convert(tmp_path / "original", tmp_path / "ours", 2, target)


def test_files_that_are_refused(tmp_path: Path, target: Path) -> None:
    folder = tmp_path / "original"
    state = original(folder)

    def refused(message: str, exit_layer: int = 2) -> None:
        with pytest.raises(ConvertError, match=message):
            convert(folder, tmp_path / "ours", exit_layer, target)

    refused("--exit-layer 4 is outside the 4 layers", 4)
    torch.save(state | {"layers.0.mlp.up_proj.weight": torch.ones(1)}, folder / "pytorch_model.bin")
    refused("tensor 'layers.0.mlp.up_proj.weight'")
    torch.save({**state, "norm.weight": torch.ones(3)}, folder / "pytorch_model.bin")
    refused(r"\[3\] tensor 'norm.weight'")
    torch.save({**state, "norm.weight": torch.ones(48).half()}, folder / "pytorch_model.bin")
    refused("dtype torch.float16, torch.float32")
    torch.save([1], folder / "pytorch_model.bin")
    refused("no dictionary of tensors")
    (folder / "pytorch_model.bin").write_bytes(b"torn")
    refused("torn or holds more")
    (folder / "pytorch_model.bin").unlink()
    refused("is no file")
    (folder / "config.json").unlink()
    refused("cannot be read")
