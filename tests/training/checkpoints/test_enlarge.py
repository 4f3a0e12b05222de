"""An enlarged Llama and its adapter compute what the small ones compute."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from tests.training.models import make_adapter_for, make_llama
from vllm_kangaroo import tiny_model
from vllm_kangaroo.adapters.checkpoint import load_adapter, norm_fingerprint
from vllm_kangaroo.training.checkpoints.enlarge import EnlargeError
from vllm_kangaroo.training.checkpoints.enlarge_checkpoint import enlarge_adapter, enlarge_model

pytestmark = pytest.mark.slow


def load(folder: Path, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    model: LlamaForCausalLM = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    )
    return model.eval()


def tokens(vocab_size: int) -> Tensor:
    return torch.randint(vocab_size, (2, 33), generator=torch.Generator().manual_seed(5))


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("depth", [1, 3])
def test_logits_of_a_random_llama(tmp_path: Path, tied: bool, bias: bool, depth: int) -> None:
    small = make_llama(tmp_path / "small", tied=tied, bias=bias)
    enlarge_model(
        tmp_path / "small",
        tmp_path / "large",
        hidden=108,
        ffn=77,
        heads=12,
        kv_heads=4,
        depth_factor=depth,
    )
    large = load(tmp_path / "large")
    assert large.config.num_hidden_layers == 4 * depth == len(large.model.layers)
    assert large.model.embed_tokens.weight.shape == (97, 108)
    assert (large.lm_head.weight is large.model.embed_tokens.weight) is tied
    ids = tokens(97)
    expected = small(ids, output_hidden_states=True)
    found = large(ids, output_hidden_states=True)
    assert expected.logits.abs().max() > 1
    assert torch.allclose(found.logits, expected.logits, atol=1e-4)
    for layer in range(4):
        states = found.hidden_states[layer * depth]
        assert torch.allclose(states[..., :48], expected.hidden_states[layer], atol=1e-4)
        assert not states[..., 48:].any()


@torch.no_grad()
def test_a_llama_by_its_other_name(tmp_path: Path) -> None:
    make_llama(tmp_path / "small")
    path = tmp_path / "small" / "config.json"
    path.write_text(path.read_text().replace("LlamaForCausalLM", "LLaMAForCausalLM"))
    enlarge_model(tmp_path / "small", tmp_path / "large", hidden=96, ffn=77, heads=12, kv_heads=4)
    small, large = load(tmp_path / "small"), load(tmp_path / "large")
    assert torch.allclose(large(tokens(97)).logits, small(tokens(97)).logits, atol=1e-4)


@torch.no_grad()
def test_logits_of_the_demo_model(tmp_path: Path) -> None:
    enlarge_model(
        Path(tiny_model()), tmp_path / "large", hidden=768, ffn=6144, heads=12, kv_heads=4
    )
    small, large = load(Path(tiny_model())), load(tmp_path / "large")
    assert sum(p.numel() for p in large.parameters()) > 180_000_000
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "large")
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Can you find me a bus to San Francisco?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )["input_ids"]
    assert torch.allclose(large(ids).logits, small(ids).logits, atol=1e-4)


@pytest.mark.parametrize("factor", [4, 16])
def test_bf16_weights_stay_exact(tmp_path: Path, factor: int) -> None:
    """A norm factor that is a power of two loses no bit: dividing it out gives the source back."""
    make_llama(tmp_path / "small", dtype=torch.bfloat16)
    enlarge_model(
        tmp_path / "small", tmp_path / "large", hidden=48 * factor, ffn=80, heads=12, kv_heads=4
    )
    small = load_file(tmp_path / "small" / "model.safetensors")
    large = load_file(tmp_path / "large" / "model.safetensors")
    assert small.keys() == large.keys()
    for name, tensor in small.items():
        part = large[name][tuple(slice(size) for size in tensor.shape)]
        scale = factor**0.5 if "norm" in name else 1
        assert large[name].dtype == torch.bfloat16
        assert torch.equal(part * scale, tensor)
        assert large[name].count_nonzero() == part.count_nonzero()


@torch.no_grad()
@pytest.mark.parametrize("depth", [1, 2])
def test_enlarged_adapter(tmp_path: Path, depth: int) -> None:
    model = make_llama(tmp_path / "small")
    adapter = make_adapter_for(model, 3, tmp_path / "adapter")
    enlarge_model(
        tmp_path / "small",
        tmp_path / "large",
        hidden=192,
        ffn=80,
        heads=12,
        kv_heads=4,
        depth_factor=depth,
    )
    enlarge_adapter(tmp_path / "adapter", tmp_path / "out", tmp_path / "small", tmp_path / "large")
    large, out = load(tmp_path / "large"), load_adapter(tmp_path / "out")
    assert out.config.exit_layer == 3 * depth
    assert out.config.target.num_hidden_layers == 4 * depth
    assert out.config.target.norm_fingerprint == norm_fingerprint(large.model.norm.weight)
    ids = tokens(97)
    small_state = model(ids, output_hidden_states=True).hidden_states[3]
    large_state = large(ids, output_hidden_states=True).hidden_states[3 * depth]
    expected = model.lm_head(adapter(small_state))
    assert expected.abs().max() > 1
    assert torch.allclose(large.lm_head(out(large_state)), expected, atol=1e-4)


SIZES = {"hidden": 96, "ffn": 80, "heads": 12, "kv_heads": 4}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 47}, "--hidden 47 is smaller than the source's 48; give at least 48"),
        ({"ffn": 39}, "--ffn 39 is smaller"),
        ({"heads": 3, "kv_heads": 1}, "--heads 3 is smaller"),
        ({"heads": 12, "kv_heads": 6}, "--heads 12 with --kv-heads 6 changes .* ratio"),
        ({"hidden": 100}, "--hidden 100 is not a multiple of --heads 12"),
        ({"heads": 13}, "--heads 13 with --kv-heads 4 changes"),
        ({"depth_factor": 0}, "--depth-factor 0 is below 1"),
    ],
)
def test_impossible_shapes(tmp_path: Path, change: dict[str, int], message: str) -> None:
    make_llama(tmp_path / "small")
    with pytest.raises(EnlargeError, match=message):
        enlarge_model(tmp_path / "small", tmp_path / "large", **SIZES | change)
    assert not (tmp_path / "large").exists()


def test_sources_that_cannot_be_enlarged(tmp_path: Path) -> None:
    small, large = tmp_path / "small", tmp_path / "large"
    with pytest.raises(EnlargeError, match=r"no readable config.json"):
        enlarge_model(small, large, **SIZES)
    make_llama(small)
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3ForCausalLM"]}))
    with pytest.raises(EnlargeError, match="Qwen3ForCausalLM"):
        enlarge_model(small, large, **SIZES)
    (small / "config.json").write_text(json.dumps(config | {"intermediate_size": 41}))
    with pytest.raises(EnlargeError, match=r"shape \[48, 40\] where config.json asks for"):
        enlarge_model(small, large, **SIZES)
    (small / "config.json").write_text(json.dumps(config))
    weights = load_file(small / "model.safetensors")
    name = "model.layers.0.self_attn.q_norm.weight"
    save_file(weights | {name: torch.ones(8)}, small / "model.safetensors")
    with pytest.raises(EnlargeError, match=f"{name}' is not one of a plain Llama"):
        enlarge_model(small, large, **SIZES)
    (small / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(EnlargeError, match="cannot be read"):
        enlarge_model(small, large, **SIZES)
    assert not large.exists()


def test_full_target_and_foreign_adapter(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "small")
    make_adapter_for(model, 1, tmp_path / "adapter")
    enlarge_model(tmp_path / "small", tmp_path / "large", **SIZES)
    with pytest.raises(EnlargeError, match="is not empty"):
        enlarge_model(tmp_path / "small", tmp_path / "large", **SIZES)
    with pytest.raises(EnlargeError, match="was not made for the model"):
        enlarge_adapter(
            tmp_path / "adapter", tmp_path / "out", tmp_path / "large", tmp_path / "large"
        )
    with torch.no_grad():
        model.model.norm.weight += 1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(EnlargeError, match="was not made for the model"):
        enlarge_adapter(
            tmp_path / "adapter", tmp_path / "out", tmp_path / "other", tmp_path / "large"
        )


def test_sharded_source(tmp_path: Path) -> None:
    model = make_llama(tmp_path / "small")
    model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    enlarge_model(tmp_path / "small", tmp_path / "one", **SIZES)
    enlarge_model(tmp_path / "shards", tmp_path / "two", **SIZES)
    one = load_file(tmp_path / "one" / "model.safetensors")
    two = load_file(tmp_path / "two" / "model.safetensors")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_it_tells_how_far_it_is(tmp_path: Path) -> None:
    make_llama(tmp_path / "small")
    said = io.StringIO()
    console = Console(file=said, width=1000)
    enlarge_model(tmp_path / "small", tmp_path / "large", console=console, **SIZES)
    count = len(load_file(tmp_path / "small" / "model.safetensors"))
    first, last, writing = said.getvalue().splitlines()
    assert first == f"enlarging: 0 of {count} tensors"
    assert last.startswith(f"enlarging: {count} of {count} tensors, took ")
    assert writing == "writing model.safetensors"
