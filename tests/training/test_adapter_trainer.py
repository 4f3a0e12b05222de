"""Steps, start values and figures of adapter training, on tiny random models."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2ForCausalLM, Phi3Config, Phi3ForCausalLM

from tests.training.models import make_llama
from vllm_kangaroo.training.adapter_trainer import AdapterTrainer, Progress, start_adapter
from vllm_kangaroo.training.options import AdapterTrainingOptions
from vllm_kangaroo.training.target import Target, TargetError
from vllm_kangaroo.training.windows import Windows


def options(folder: Path, **changes: Any) -> AdapterTrainingOptions:
    values: dict[str, Any] = {
        "model": str(folder),
        "data": ["unread.txt"],
        "exit_layer": 1,
        "out": "unused",
        "dtype": "float32",
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
    }
    return AdapterTrainingOptions.model_validate(values | changes)


def load(options: AdapterTrainingOptions) -> Target:
    return Target.load(options.model, options.exit_layer, torch.float32, "cpu")


def random_windows(vocab_size: int = 97, answers: float = 1.0) -> Windows:
    generator = np.random.default_rng(0)
    ids = generator.integers(vocab_size, size=(40, 24), dtype=np.int32)
    return Windows(ids, generator.random(ids.shape) < answers)


def gemma(folder: Path) -> None:
    """A model that stores its norm weights less one and caps its logits."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=8,
    )
    model = Gemma2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3 if "norm" in name else 0.2)
    model.save_pretrained(folder)


@pytest.mark.parametrize("make", [make_llama, gemma])
def test_random_start_drafts_as_the_bare_head(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    chosen = options(tmp_path, init="random")
    target = load(chosen)
    ids = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))
    exit_state, _ = target.states(ids)
    expected = target.final_norm(exit_state)
    assert torch.allclose(start_adapter(target, chosen)(exit_state), expected, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("make", [make_llama, gemma])
def test_next_layer_start_adds_that_layer_s_attention(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    chosen = options(tmp_path, init="next-layer", exit_layer=2)
    target = load(chosen)
    ids = torch.randint(97, (1, 1), generator=torch.Generator().manual_seed(0))
    exit_state, _ = target.states(ids)
    layer = target.model.get_decoder().layers[2]
    value = layer.self_attn.v_proj(layer.input_layernorm(exit_state))  # all there is to attend to
    mixed = value.view(1, 1, 2, 8).repeat_interleave(3, dim=2).flatten(2)
    expected = target.final_norm(exit_state + layer.self_attn.o_proj(mixed))
    assert torch.allclose(start_adapter(target, chosen)(exit_state), expected, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("make", [make_llama, gemma])
def test_target_is_the_model_itself(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    target = load(options(tmp_path, exit_layer=3))
    ids = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))
    out = target.model(ids, output_hidden_states=True)
    exit_state, final = target.states(ids)
    assert torch.equal(exit_state, out.hidden_states[3])
    assert torch.allclose(target.logits(final), out.logits, atol=1e-5)


def test_training_learns(tmp_path: Path) -> None:
    make_llama(tmp_path)
    chosen = options(tmp_path, exit_layer=3)
    trainer = AdapterTrainer(load(chosen), random_windows(answers=0.5), 60, chosen)
    frozen = {name: tensor.clone() for name, tensor in trainer.target.model.state_dict().items()}
    before = trainer.measure(trainer.windows)
    bare = trainer.measure(trainer.windows, bare=True)
    seen: list[int] = []
    trainer.run(lambda progress: seen.append(progress.step))
    after = trainer.measure(trainer.windows)
    assert seen == list(range(1, 61))
    for start in (before, bare):
        assert after["loss"] < start["loss"] - 0.05
        assert after["expected_acceptance"] > start["expected_acceptance"] + 0.05
    for name, tensor in trainer.target.model.state_dict().items():
        assert torch.equal(tensor, frozen[name])


def test_only_counted_positions_teach(tmp_path: Path) -> None:
    make_llama(tmp_path)
    chosen = options(tmp_path, weight_decay=0.0)
    windows = random_windows(answers=0.0)
    trainer = AdapterTrainer(load(chosen), windows, 3, chosen)
    start = [p.clone() for p in trainer.adapter.parameters()]
    trainer.run(lambda progress: None)
    assert trainer.progress.step == 3
    assert all(map(torch.equal, start, trainer.adapter.parameters()))
    windows.counted[:, 5] = True
    trainer = AdapterTrainer(load(chosen), windows, 3, chosen)
    trainer.run(lambda progress: None)
    assert not any(map(torch.equal, start, trainer.adapter.parameters()))


def test_restored_trainer_ends_with_the_same_weights(tmp_path: Path) -> None:
    make_llama(tmp_path)
    chosen = options(tmp_path)
    target, windows = load(chosen), random_windows()
    whole = AdapterTrainer(target, windows, 20, chosen)

    def after_step(progress: Progress) -> None:
        if progress.step == 13:
            torch.save(whole.state(), tmp_path / "state.pt")

    whole.run(after_step)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    part = AdapterTrainer(target, windows, 20, chosen)
    part.restore(state)
    part.run(lambda progress: None)
    assert part.progress.step == 20
    assert all(map(torch.equal, whole.adapter.parameters(), part.adapter.parameters()))


def test_learning_rate(tmp_path: Path) -> None:
    make_llama(tmp_path)
    chosen = options(tmp_path, warmup_steps=10, learning_rate=1.0)
    trainer = AdapterTrainer(load(chosen), random_windows(), 100, chosen)
    rates = [trainer.learning_rate(step) for step in range(101)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == pytest.approx(1.0) and rates[100] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_targets_that_are_refused(tmp_path: Path) -> None:
    make_llama(tmp_path)
    for layer in (0, 4, -1):
        with pytest.raises(TargetError, match=f"--exit-layer {layer} is outside .* give 1 to 3"):
            load(options(tmp_path, exit_layer=layer))
    with pytest.raises(TargetError, match="is no directory"):
        load(options(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(TargetError, match="cannot be loaded"):
        load(options(tmp_path / "empty"))


def test_model_without_rms_norm(tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=24, n_layer=3, n_head=2)).save_pretrained(
        tmp_path
    )
    with pytest.raises(TargetError, match=r"\(gpt2\) has no rms_norm_eps"):
        load(options(tmp_path))


def test_next_layer_of_another_make_is_refused(tmp_path: Path) -> None:
    config = Phi3Config(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=6,
        pad_token_id=0,
    )
    Phi3ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(TargetError, match=r"finds no self_attn.q_proj.weight .* --init random"):
        start_adapter(load(options(tmp_path)), options(tmp_path))
    chosen = options(tmp_path, init="random")
    start_adapter(load(chosen), chosen)
