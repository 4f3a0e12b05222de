"""The reference adapter: its mathematics, and its checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from vllm_kangaroo.adapters.checkpoint import load_adapter, norm_fingerprint, save_adapter
from vllm_kangaroo.adapters.config import AdapterConfig, AdapterError, TargetInfo
from vllm_kangaroo.adapters.reference import KangarooAdapter


def make_config(dtype: str = "float32", **changes: object) -> AdapterConfig:
    values: dict[str, object] = {
        "exit_layer": 2,
        "hidden_size": 24,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "vocab_size": 50,
        "torch_dtype": dtype,
        "target": TargetInfo(
            name_or_path="m", architecture="A", model_type="a", num_hidden_layers=4
        ),
    }
    return AdapterConfig.model_validate(values | changes)


def make_adapter(config: AdapterConfig) -> KangarooAdapter:
    torch.manual_seed(0)
    adapter = KangarooAdapter(config)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return adapter


def llama_layer_out(adapter: KangarooAdapter, f: Tensor, positions: Tensor) -> Tensor:
    """The same block by transformers: a Llama layer, whose feed-forward part adds nothing if there is none."""
    config = adapter.config
    llama = LlamaConfig(
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size or 8,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        rms_norm_eps=config.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        attn_implementation="eager",
    )
    layer = LlamaDecoderLayer(llama, 0)
    layer.load_state_dict(adapter.layers[0].state_dict(), strict=False)
    if config.intermediate_size is None:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    mask = torch.full((f.shape[1], f.shape[1]), float("-inf")).triu(1)[None, None]
    cos_sin = LlamaRotaryEmbedding(llama)(f, positions)
    out: Tensor = layer(f, attention_mask=mask, position_embeddings=cos_sin)
    return out


def test_forward_is_a_llama_layer_without_feed_forward() -> None:
    adapter = make_adapter(make_config())
    f = torch.randn(2, 7, 24)
    positions = torch.stack((torch.arange(7), torch.arange(7) + 11))
    with torch.no_grad():
        expected = adapter.norm(llama_layer_out(adapter, f, positions))
        assert torch.allclose(adapter(f, positions), expected, atol=1e-5)
        assert torch.equal(adapter(f), adapter(f, torch.arange(7).expand(2, -1)))


FEED_FORWARD = {"model_type": "kangaroo_ffn_adapter", "intermediate_size": 16}
MEMORY = {"model_type": "kangaroo_memory_adapter", "intermediate_size": 16}


def test_with_feed_forward_it_is_a_llama_layer() -> None:
    adapter = make_adapter(make_config(**FEED_FORWARD))
    f, positions = torch.randn(2, 7, 24), torch.arange(7).expand(2, -1)
    with torch.no_grad():
        expected = adapter.norm(llama_layer_out(adapter, f, positions))
        assert torch.allclose(adapter(f), expected, atol=1e-5)


def test_memory_reaches_its_own_position_alone() -> None:
    """Keys and values know nothing of it: a position's stay right whatever is verified later."""
    adapter = make_adapter(make_config(**MEMORY))
    f, memory = torch.randn(1, 7, 24), torch.randn(1, 7, 24)
    other = memory.clone()
    other[0, 3] += 1
    with torch.no_grad():
        before, after = adapter(f, memory=memory), adapter(f, memory=other)
        assert adapter.memory is not None
        without = make_adapter(make_config(**FEED_FORWARD))
        without.load_state_dict(adapter.state_dict(), strict=False)
        adapter.memory.proj.weight.zero_()
        assert torch.allclose(adapter(f, memory=memory), without(f), atol=1e-6)
    changed = (before != after).any(dim=-1)[0]
    assert changed.tolist() == [i == 3 for i in range(7)]


@pytest.mark.parametrize("kind", [FEED_FORWARD, MEMORY])
def test_other_kinds_round_trip(tmp_path: Path, kind: dict[str, object]) -> None:
    config = make_config("bfloat16", **kind, draft_vocab_size=3)
    adapter = make_adapter(config)
    assert adapter.draft_vocab is not None
    adapter.draft_vocab.copy_(torch.tensor([4, 7, 49]))
    save_adapter(adapter, config, tmp_path)
    again = load_adapter(tmp_path)
    assert again.config == config and again.draft_vocab is not None
    assert again.draft_vocab.tolist() == [4, 7, 49]
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize("token_ids", [[4, 4, 9], [9, 4, 5], [1, 2, 50], [-1, 2, 3]])
def test_a_draft_vocabulary_that_cannot_be(tmp_path: Path, token_ids: list[int]) -> None:
    config = make_config(draft_vocab_size=3)
    adapter = make_adapter(config)
    assert adapter.draft_vocab is not None
    adapter.draft_vocab.copy_(torch.tensor(token_ids))
    save_adapter(adapter, config, tmp_path)
    with pytest.raises(AdapterError, match="ascending list of token ids below vocab_size=50"):
        load_adapter(tmp_path)


def test_positions_matter_only_relatively() -> None:
    adapter = make_adapter(make_config("float64"))
    f = torch.randn(1, 5, 24, dtype=torch.float64)
    near = adapter(f, torch.arange(5)[None])
    assert torch.allclose(near, adapter(f, torch.arange(5)[None] + 100), atol=1e-9)
    assert not torch.allclose(near, adapter(f, torch.arange(5)[None] * 3), atol=1e-3)


@pytest.mark.parametrize("kind", ["kangaroo_adapter", "kangaroo_memory_adapter"])
def test_outputs_of_some_positions_alone(kind: str) -> None:
    with_more = {"model_type": kind, "intermediate_size": 40} if "memory" in kind else {}
    adapter = make_adapter(make_config(**with_more))
    f, memory = torch.randn(3, 7, 24), torch.randn(3, 7, 24)
    wanted = torch.rand(3, 7) < 0.5
    remembered = memory if with_more else None
    found = adapter(f, memory=remembered, wanted=wanted)
    assert 0 < len(found) < 21
    torch.testing.assert_close(found, adapter(f, memory=remembered)[wanted])


def test_forward_is_causal() -> None:
    adapter = make_adapter(make_config())
    f = torch.randn(1, 6, 24)
    changed = f.clone()
    changed[0, 4] += 1
    before, after = adapter(f), adapter(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 5], after[:, 5])


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtypes(dtype: str) -> None:
    adapter = make_adapter(make_config())
    other = KangarooAdapter(make_config(dtype))
    other.load_state_dict(adapter.state_dict())
    f = torch.randn(2, 6, 24)
    tolerance = 1e-5 if dtype == "float64" else 0.15
    kind = getattr(torch, dtype)
    out = other(f.to(kind))
    assert out.dtype == kind
    assert torch.allclose(out.float(), adapter(f), atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_checkpoint_round_trip(tmp_path: Path, dtype: str) -> None:
    config = make_config(dtype, training={"seed": 3})
    adapter = make_adapter(config)
    folder = tmp_path / "deep" / "adapter"
    save_adapter(adapter, config, folder)
    loaded = load_adapter(folder)
    assert loaded.config == config
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors"]
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert load_adapter(folder, torch.float64).norm.weight.dtype == torch.float64


def test_saving_replaces_the_adapter_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    save_adapter(make_adapter(make_config()), make_config(), tmp_path)
    config = make_config(exit_layer=3)
    adapter = make_adapter(config)
    with torch.no_grad():
        adapter.norm.weight.fill_(7)
    save_adapter(adapter, config, tmp_path)
    assert load_adapter(tmp_path).norm.weight.eq(7).all()
    assert AdapterConfig.load(tmp_path).exit_layer == 3
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_saving_under_a_config_of_another_shape_keeps_the_old_adapter(tmp_path: Path) -> None:
    config = make_config()
    save_adapter(make_adapter(config), config, tmp_path)
    with pytest.raises(AdapterError, match="shape"):
        save_adapter(make_adapter(config), make_config(head_dim=4), tmp_path)
    assert AdapterConfig.load(tmp_path) == config
    assert len(list(tmp_path.iterdir())) == 2


def test_fingerprint() -> None:
    weight = torch.linspace(0.5, 1.5, 24)
    found = norm_fingerprint(weight)
    assert len(found) == 16 and int(found, 16)
    assert found == norm_fingerprint(weight.bfloat16())
    assert found == norm_fingerprint(torch.nn.Parameter(weight.double()))
    changed = weight.clone()
    changed[3] *= 1.02
    assert norm_fingerprint(changed) != found
