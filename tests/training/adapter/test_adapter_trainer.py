"""Steps, start values and figures of adapter training, on tiny random models."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

from tests.training.models import make_gemma, make_llama
from vllm_kangaroo.adapters.reference import KangarooAdapter
from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.adapter_trainer import AdapterTrainer
from vllm_kangaroo.training.adapter.trainee import start_adapter
from vllm_kangaroo.training.data.windows import Windows
from vllm_kangaroo.training.run.target import Target, TargetError
from vllm_kangaroo.training.run.trainer import RunState

pytestmark = pytest.mark.slow


def options(folder: Path, **changes: Any) -> AdapterTrainingOptions:
    values: dict[str, Any] = {
        "model": str(folder),
        "data": ["unread.txt"],
        "exit_layer": (1,),
        "out": "unused",
        "dtype": "float32",
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
    }
    return AdapterTrainingOptions.model_validate(values | changes)


def load(options: AdapterTrainingOptions) -> Target:
    return Target.load(options.model, options.exit_layer, torch.float32, "cpu")


def adapter(trainer: AdapterTrainer) -> KangarooAdapter:
    return trainer.trainees[0].adapter


def random_windows(vocab_size: int = 97, answers: float = 1.0) -> Windows:
    generator = np.random.default_rng(0)
    ids = generator.integers(vocab_size, size=(40, 24), dtype=np.int32)
    counted = generator.random(ids.shape) < answers
    return Windows(ids, counted, np.zeros_like(counted))


@pytest.mark.parametrize("make", [make_llama, make_gemma])
def test_random_start_drafts_as_the_bare_head(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    chosen = options(tmp_path, init="random")
    target = load(chosen)
    ids = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))
    exit_state, _ = target.states(ids)
    expected = target.final_norm(exit_state)
    assert torch.allclose(
        start_adapter(target, target.exits[0], chosen)(exit_state), expected, atol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize("make", [make_llama, make_gemma])
def test_next_layer_start_adds_that_layer_s_attention(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    chosen = options(tmp_path, init="next-layer", exit_layer=(2,))
    target = load(chosen)
    ids = torch.randint(97, (1, 1), generator=torch.Generator().manual_seed(0))
    exit_state, _ = target.states(ids)
    layer = target.model.get_decoder().layers[2]
    value = layer.self_attn.v_proj(layer.input_layernorm(exit_state))  # all there is to attend to
    mixed = value.view(1, 1, 2, 8).repeat_interleave(3, dim=2).flatten(2)
    expected = target.final_norm(exit_state + layer.self_attn.o_proj(mixed))
    assert torch.allclose(
        start_adapter(target, target.exits[0], chosen)(exit_state), expected, atol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize("make", [make_llama, make_gemma])
def test_target_is_the_model_itself(tmp_path: Path, make: Any) -> None:
    make(tmp_path)
    target = load(options(tmp_path, exit_layer=(3,)))
    ids = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))
    out = target.model(ids, output_hidden_states=True)
    exit_state, final = target.states(ids)
    assert torch.equal(exit_state, out.hidden_states[3])
    assert torch.allclose(target.logits(final), out.logits, atol=1e-5)


def test_training_learns(tmp_path: Path) -> None:
    make_llama(tmp_path)
    chosen = options(tmp_path, exit_layer=(3,))
    trainer = AdapterTrainer(load(chosen), random_windows(answers=0.5), 60, chosen)
    frozen = {name: tensor.clone() for name, tensor in trainer.target.model.state_dict().items()}
    before = trainer.measure(trainer.windows)[3]
    bare = trainer.measure(trainer.windows, bare=True)[3]
    seen: list[int] = []
    trainer.run(lambda progress: seen.append(progress.step))
    after = trainer.measure(trainer.windows)[3]
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
    start = [p.clone() for p in adapter(trainer).parameters()]
    trainer.run(lambda progress: None)
    assert trainer.progress.step == 3
    assert all(map(torch.equal, start, adapter(trainer).parameters()))
    windows.counted[:, 5] = True
    trainer = AdapterTrainer(load(chosen), windows, 3, chosen)
    trainer.run(lambda progress: None)
    assert not any(map(torch.equal, start, adapter(trainer).parameters()))


@pytest.mark.parametrize("targets", ["model", "text"])
def test_restored_trainer_ends_with_the_same_weights(tmp_path: Path, targets: str) -> None:
    make_llama(tmp_path)
    chosen = options(tmp_path, targets=targets)
    target, windows = load(chosen), random_windows()
    whole = AdapterTrainer(target, windows, 20, chosen)

    def after_step(progress: RunState) -> None:
        if progress.step == 13:
            torch.save(whole.state(), tmp_path / "state.pt")

    whole.run(after_step)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    part = AdapterTrainer(target, windows, 20, chosen)
    part.restore(state)
    part.run(lambda progress: None)
    assert part.progress.step == 20
    assert all(map(torch.equal, adapter(whole).parameters(), adapter(part).parameters()))


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
            load(options(tmp_path, exit_layer=(layer,)))
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
        start_adapter(load(options(tmp_path)), 1, options(tmp_path))
    chosen = options(tmp_path, init="random")
    start_adapter(load(chosen), 1, chosen)


def trained(folder: Path, steps: int = 12, answers: float = 0.5, **changes: Any) -> AdapterTrainer:
    chosen = options(folder, **changes)
    trainer = AdapterTrainer(load(chosen), random_windows(answers=answers), steps, chosen)
    trainer.run(lambda progress: None)
    return trainer


@pytest.mark.parametrize("targets", ["model", "text"])
def test_adapters_of_one_pass_are_those_trained_alone(tmp_path: Path, targets: str) -> None:
    make_llama(tmp_path)
    together = trained(tmp_path, exit_layer=(1, 3), targets=targets)
    for trainee, layer in zip(together.trainees, (1, 3), strict=True):
        alone = adapter(trained(tmp_path, exit_layer=(layer,), targets=targets))
        assert trainee.exit_layer == layer
        assert all(map(torch.equal, trainee.adapter.parameters(), alone.parameters()))
    first, second = (trainee.adapter.parameters() for trainee in together.trainees)
    assert not any(map(torch.equal, first, second))


@pytest.mark.parametrize("targets", ["model", "text"])
@pytest.mark.parametrize("parts", [2, 3, 4])
def test_accumulated_gradients_are_those_of_the_whole_step(
    tmp_path: Path, parts: int, targets: str
) -> None:
    make_llama(tmp_path)
    whole = trained(tmp_path, targets=targets)
    accumulated = trained(tmp_path, targets=targets, accumulate=parts)
    for ours, theirs in zip(
        adapter(accumulated).parameters(), adapter(whole).parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=2e-4)
    assert accumulated.progress.loss == pytest.approx(whole.progress.loss, rel=1e-4)


def test_a_cache_bounds_memory_and_changes_no_weight(tmp_path: Path) -> None:
    make_llama(tmp_path)
    window = 24 * 3 * 48 * 4  # tokens, two exits and the end, hidden size, float32
    exits = {"exit_layer": (1, 2)}
    parts = [
        trained(tmp_path, 25, cache_gib=(windows * window + 9) / 2**30, **exits)
        for windows in (1, 7, 1000)
    ]
    assert [part.features.kept for part in parts] == [1, 7, 40]
    assert "576 bytes a token" in parts[1].features.describe()
    calls = []
    parts[2].target.model.get_decoder().register_forward_pre_hook(lambda *_: calls.append(1))
    parts[2].features.states(np.arange(40))
    assert not calls
    plain = trained(tmp_path, 25, **exits)
    assert plain.features.kept == 0
    for at in range(2):
        weights = [list(part.trainees[at].adapter.parameters()) for part in [*parts, plain]]
        for other in weights[1:3]:
            assert all(map(torch.equal, weights[0], other))
        for ours, theirs in zip(weights[0], weights[3], strict=True):
            assert torch.allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize(
    ("targets", "key", "other"),
    [
        ("model", "expected_acceptance", "top1_agreement"),
        ("text", "top1_agreement", "expected_acceptance"),
    ],
)
def test_best_weights_are_kept(tmp_path: Path, targets: str, key: str, other: str) -> None:
    make_llama(tmp_path)
    chosen = options(tmp_path, targets=targets)
    trainer = AdapterTrainer(load(chosen), random_windows(), 9, chosen)
    seen: dict[int, list[torch.Tensor]] = {}

    def after_step(progress: RunState) -> None:
        figure = {3: 0.5, 6: 0.7, 9: 0.6}.get(progress.step, 0.0)
        seen[progress.step] = [p.detach().clone() for p in adapter(trainer).parameters()]
        trainer.keep_best({1: {key: figure, other: progress.step / 10}})

    trainer.run(after_step)
    trainer.restore(trainer.state())
    trainer.trainees[0].take_best()
    assert trainer.trainees[0].best.step == 6
    assert all(map(torch.equal, seen[6], adapter(trainer).parameters()))
    assert not any(map(torch.equal, seen[9], adapter(trainer).parameters()))
