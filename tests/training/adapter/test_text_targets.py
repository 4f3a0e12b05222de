"""``--targets text``: what follows in the text teaches, and no layer above the deepest exit runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from tests.training.adapter.test_adapter_trainer import adapter, load, options, random_windows
from tests.training.models import make_gemma, make_llama
from vllm_kangaroo.training.adapter.adapter_trainer import AdapterTrainer
from vllm_kangaroo.training.data.windows import Windows
from vllm_kangaroo.training.run.target import Target

pytestmark = pytest.mark.slow


def calls(target: Target) -> dict[int, int]:
    """Forward passes of each layer from now on; -1 for the final norm."""
    found: dict[int, int] = {}
    decoder = target.model.get_decoder()
    for number, module in [*enumerate(decoder.layers), (-1, decoder.norm)]:
        found[number] = 0

        def count(*_: Any, number: int = number) -> None:
            found[number] += 1

        module.register_forward_pre_hook(count)
    return found


def greedy_windows(target: Target, count: int = 24, length: int = 24) -> Windows:
    """What the model writes by itself after two drawn tokens, at temperature 0."""
    ids = torch.randint(97, (count, 2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        while ids.shape[1] < length:
            ids = torch.cat((ids, target.model(ids).logits[:, -1:].argmax(-1)), dim=1)
    answers = np.ones(ids.shape, np.bool_)
    answers[:, :1] = False
    return Windows(ids.numpy().astype(np.int32), answers, np.zeros_like(answers))


@pytest.mark.parametrize("make", [make_llama, make_gemma])
@pytest.mark.parametrize("whole_first", [True, False])
def test_exit_states_are_those_of_the_whole_model(
    tmp_path: Path, make: Any, whole_first: bool
) -> None:
    make(tmp_path)
    target = load(options(tmp_path, exit_layer=(1, 3)))
    ids = torch.randint(97, (2, 12), generator=torch.Generator().manual_seed(0))
    if whole_first:
        target.states(ids)
    found = target.exit_states(ids)
    *expected, _ = target.states(ids)
    assert len(found) == len(expected) == 2
    assert all(map(torch.equal, found, expected))
    assert len(target.model(ids, output_hidden_states=True).hidden_states) == 5


@pytest.mark.parametrize("cache", [0.0, 1.0])
@pytest.mark.parametrize(("targets", "above"), [("text", 0), ("model", 6)])
def test_no_layer_above_the_deepest_exit_runs_in_a_step(
    tmp_path: Path, targets: str, above: int, cache: float
) -> None:
    make_llama(tmp_path)
    chosen = options(tmp_path, exit_layer=(2, 1), targets=targets, batch_size=1, cache_gib=cache)
    trainer = AdapterTrainer(load(chosen), random_windows(), 6, chosen)
    seen = calls(trainer.target)
    trainer.run(lambda progress: None)
    assert seen == {0: 6, 1: 6, 2: above, 3: above, -1: above}
    trainer.measure(trainer.windows.take(slice(1)))
    assert seen == {0: 7, 1: 7, 2: above + 1, 3: above + 1, -1: above + 1}


def test_a_step_follows_the_gradient_of_the_plain_formula(tmp_path: Path) -> None:
    make_llama(tmp_path)
    chosen = options(tmp_path, targets="text", accumulate=3, clip=1e9)
    windows = random_windows(answers=0.4)
    windows.begins[:, 7] = True
    trainer = AdapterTrainer(load(chosen), windows, 1, chosen)
    rows = trainer.order.rows(0)
    ids = torch.from_numpy(windows.ids[rows]).long()
    states = trainer.target.states(ids)[0]
    logits = trainer.target.logits(adapter(trainer)(states))
    total, count = torch.zeros(()), 0
    for at, row in enumerate(rows):
        for place in range(23):
            if windows.counted[row, place] and place != 6:
                total = total + functional.cross_entropy(logits[at, place], ids[at, place + 1])
                count += 1
    (total / count).backward()
    expected = {
        name: p.grad.clone()
        for name, p in adapter(trainer).named_parameters()
        if p.grad is not None
    }
    adapter(trainer).zero_grad()
    grads: dict[str, torch.Tensor] = {}
    trainee = trainer.trainees[0]

    def look(rate: float) -> None:
        grads.update(
            {name: p.grad for name, p in trainee.adapter.named_parameters() if p.grad is not None}
        )

    trainee.step = look  # type: ignore[method-assign]
    trainer.step()
    assert trainer.progress.loss == pytest.approx((total / count).item(), rel=1e-5)
    assert grads.keys() == expected.keys() and len(grads) == 6
    for name, gradient in expected.items():
        assert torch.allclose(grads[name], gradient, atol=1e-5), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_s_own_text_teaches_to_agree_with_it(tmp_path: Path, dtype: str) -> None:
    make_llama(tmp_path)
    chosen = options(tmp_path, exit_layer=(3,), targets="text", dtype=dtype)
    target = Target.load(chosen.model, chosen.exit_layer, getattr(torch, dtype), "cpu")
    trainer = AdapterTrainer(target, greedy_windows(load(chosen)), 60, chosen)
    before = trainer.measure(trainer.windows)[3]["top1_agreement"]
    trainer.run(lambda progress: None)
    assert math.isfinite(trainer.progress.loss)
    assert trainer.measure(trainer.windows)[3]["top1_agreement"] > before + 0.1


def test_a_cache_holds_exit_states_alone(tmp_path: Path) -> None:
    make_llama(tmp_path)
    chosen = options(
        tmp_path, targets="text", exit_layer=(1, 2), cache_gib=7 * 24 * 2 * 192 / 2**30
    )
    trainer = AdapterTrainer(load(chosen), random_windows(), 25, chosen)
    assert "384 bytes a token" in trainer.features.describe()
    trainer.run(lambda progress: None)
    assert trainer.features.kept == 7
    without = options(tmp_path, targets="text", exit_layer=(1, 2))
    plain = AdapterTrainer(load(without), random_windows(), 25, without)
    plain.run(lambda progress: None)
    for ours, theirs in zip(
        adapter(trainer).parameters(), adapter(plain).parameters(), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=2e-3)
