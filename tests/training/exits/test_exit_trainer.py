"""Layer dropout, early-exit loss and the steps of early-exit training, on tiny random models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.training.models import make_llama
from vllm_kangaroo.training.data.windows import Windows
from vllm_kangaroo.training.exits.exit_loss import backward, exit_weights
from vllm_kangaroo.training.exits.exit_options import ExitTrainingOptions
from vllm_kangaroo.training.exits.exit_trainer import ExitTrainer
from vllm_kangaroo.training.exits.layer_dropout import draw, hooked, probabilities
from vllm_kangaroo.training.run.trainer import RunState

pytestmark = pytest.mark.slow


def options(**changes: Any) -> ExitTrainingOptions:
    values: dict[str, Any] = {
        "model": "unread",
        "data": ["unread.txt"],
        "out": "unused",
        "dtype": "float32",
        "batch_size": 4,
        "window": 24,
        "learning_rate": 3e-3,
        "warmup_steps": 3,
    }
    return ExitTrainingOptions.model_validate(values | changes)


def counting_windows(length: int = 24) -> Windows:
    """Sequences that count up by one to three: easy to learn."""
    generator = np.random.default_rng(0)
    starts = generator.integers(97, size=(40, 1))
    ids = (starts + generator.integers(1, 4, size=(40, 1)) * np.arange(length)) % 97
    none = np.zeros(ids.shape, np.bool_)
    return Windows(ids.astype(np.int32), ~none, none).whole()


def trainer(folder: Path, steps: int, long: bool = False, **changes: Any) -> ExitTrainer:
    chosen = options(**changes)
    long_windows = counting_windows(48) if long else None
    return ExitTrainer(make_llama(folder), counting_windows(), long_windows, steps, chosen)


def test_dropout_grows_with_depth() -> None:
    found = probabilities(5, 0.2)
    assert found == pytest.approx([0.2 * (2 ** (i / 4) - 1) for i in range(5)])
    assert found[0] == 0 and found[-1] == pytest.approx(0.2) and probabilities(1, 0.2) == [0.0]
    mask = draw(100_000, found, seed=3)
    assert mask.float().mean(1).tolist() == pytest.approx(found, abs=0.005)
    assert torch.equal(mask, draw(100_000, found, seed=3))
    assert not torch.equal(mask, draw(100_000, found, seed=4))


@torch.no_grad()
def test_skipped_layers_are_as_if_not_there(tmp_path: Path) -> None:
    decoder = make_llama(tmp_path).get_decoder()
    ids = torch.arange(1, 25).view(2, 12)
    skipped = torch.tensor([[False, False], [True, False], [False, False], [True, False]])
    with hooked(decoder.layers, skipped, {1, 3}) as states:
        out = decoder(ids, use_cache=False).last_hidden_state
    shorter = copy.deepcopy(decoder)
    shorter.layers = torch.nn.ModuleList([decoder.layers[0], decoder.layers[2]])
    shorter.config.num_hidden_layers = 2
    plain = decoder(ids, use_cache=False, output_hidden_states=True)
    assert torch.allclose(out[0], shorter(ids, use_cache=False).last_hidden_state[0], atol=1e-5)
    assert torch.allclose(out[1], plain.last_hidden_state[1], atol=1e-5)
    assert not torch.allclose(out[0], plain.last_hidden_state[0], atol=1e-2)
    assert sorted(states) == [1, 3]
    assert torch.allclose(states[1], plain.hidden_states[1], atol=1e-6)
    assert torch.allclose(states[3][1], plain.hidden_states[3][1], atol=1e-5)


def test_weights_of_exits() -> None:
    assert exit_weights([], 8, 0.5) == {8: 1.0}
    weights = exit_weights([2, 4], 8, 0.5)
    assert weights == pytest.approx({2: 1 / 6, 4: 1 / 6, 8: 2 / 3})
    deep = exit_weights([2, 4], 8, 1.0, "depth")
    assert deep == pytest.approx({2: 0.5 * 3 / 13, 4: 0.5 * 10 / 13, 8: 0.5})


@pytest.mark.parametrize("chunk", [3, 1000])
def test_gradient_of_a_step_is_autograd_s(tmp_path: Path, chunk: int) -> None:
    """Tied head, shared norm, two exits and the end, against the sum as it is written."""
    model = make_llama(tmp_path, tied=True)
    ids = torch.arange(1, 25).view(2, 12)
    weights = {1: 0.2, 3: 0.3, 4: 0.5}
    decoder, labels = model.get_decoder(), ids[:, 1:].flatten()

    def normed(states: dict[int, Tensor], final: Tensor) -> list[Tensor]:
        outputs = [decoder.norm(states[1]), decoder.norm(states[3]), final]
        return [out[:, :-1].flatten(0, 1) for out in outputs]

    with hooked(decoder.layers, None, {1, 3}) as states:
        final = decoder(ids, use_cache=False).last_hidden_state
    parts = zip(weights.values(), normed(states, final), strict=True)
    sum(w * functional.cross_entropy(model.lm_head(x), labels) for w, x in parts).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    with hooked(decoder.layers, None, {1, 3}) as states:
        final = decoder(ids, use_cache=False).last_hidden_state
    losses = backward(
        normed(states, final), labels, [*weights.values()], model.lm_head, len(labels), chunk
    )
    assert len(losses) == 3 and losses[0] != losses[2]
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, expected[name], atol=1e-5), name


def test_exits_rotate(tmp_path: Path) -> None:
    every = trainer(tmp_path, 10, random_exits=0)
    assert [every.exits(step) for step in range(6)] == [[1], [2], [3], [1], [2], [3]]
    some = trainer(tmp_path, 10, exit_layer=(1, 3), random_exits=1)
    found = [some.exits(step) for step in range(60)]
    assert all((1, 3)[step % 2] in exits for step, exits in enumerate(found))
    assert {exit_layer for exits in found for exit_layer in exits} == {1, 2, 3}
    assert found == [some.exits(step) for step in range(60)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_exits_learn_what_the_model_learns(tmp_path: Path, optimizer: str) -> None:
    more = {"optimizer": optimizer, "learning_rate": 1e-2, "exit_layer": (1, 2)}
    trained = trainer(tmp_path, 60, **more)
    without = trainer(tmp_path, 60, **more, exit_scale=0.0)
    windows = counting_windows()
    before = trained.measure(windows, [1, 2, 4])
    for each in (trained, without):
        each.run(lambda progress: None)
    after, bare = trained.measure(windows, [1, 2, 4]), without.measure(windows, [1, 2, 4])
    assert all(after[layer]["loss"] < before[layer]["loss"] - 1 for layer in (1, 2, 4))
    assert after[1]["loss"] < bare[1]["loss"] - 0.5
    assert after[1]["top1_agreement"] > bare[1]["top1_agreement"] + 0.1
    assert after[4]["top1_agreement"] == 1


def test_accumulated_gradients_are_those_of_the_whole_step(tmp_path: Path) -> None:
    # Plain dropout masks and exits belong to the step, not to its parts.
    whole, parts = trainer(tmp_path, 6), trainer(tmp_path, 6, accumulate=3)
    for each in (whole, parts):
        each.run(lambda progress: None)
    for ours, theirs in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_restored_trainer_ends_with_the_same_weights(tmp_path: Path, optimizer: str) -> None:
    more: dict[str, Any] = {"optimizer": optimizer, "long_window": 48, "long_share": 0.5}
    whole = trainer(tmp_path, 20, long=True, **more)

    def after_step(progress: RunState) -> None:
        if progress.step == 13:
            torch.save(whole.state(), tmp_path / "state.pt")

    whole.run(after_step)
    part = trainer(tmp_path, 20, long=True, **more)
    part.restore(torch.load(tmp_path / "state.pt", weights_only=True))
    part.run(lambda progress: None)
    assert part.progress.step == 20
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, part.model.state_dict()[name])


def test_rates(tmp_path: Path) -> None:
    each = trainer(tmp_path, 100, warmup_steps=10, decay_share=0.3)
    rates = [each.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10:70] == [1.0] * 60 and rates[99] == pytest.approx(1 / 30)
    assert each._ramp(0) == 1
    ramp = trainer(tmp_path, 101, dropout_ramp=True)
    assert [ramp._ramp(step) for step in (0, 50, 100)] == pytest.approx([0, 2**0.5 - 1, 1])
