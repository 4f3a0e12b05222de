"""Training from answers on disk: what a draft remembers, kinds of adapter, reduced vocabularies, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console
from transformers import LlamaForCausalLM

from tests.training.models import make_llama
from vllm_kangaroo.adapters.checkpoint import load_adapter
from vllm_kangaroo.adapters.config import AdapterConfig
from vllm_kangaroo.training.adapter import answer_trainer
from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.answer_data import AnswerData, BatchOrder
from vllm_kangaroo.training.adapter.answer_trainer import AnswerTrainer
from vllm_kangaroo.training.adapter.draft_rounds import at_draft, drawn_rounds, recall
from vllm_kangaroo.training.adapter.loss import acceptance_loss
from vllm_kangaroo.training.adapter.train_from_answers import train_from_answers
from vllm_kangaroo.training.answers import shards
from vllm_kangaroo.training.answers.shards import FINAL, Answer, exit_key
from vllm_kangaroo.training.run.target import Target, TargetError

pytestmark = pytest.mark.slow


def make_answers(model: LlamaForCausalLM, folder: Path, count: int, seed: int) -> None:
    """Greedy answers of 20 tokens to random prompts, with their states, in two shards."""
    shards.begin(folder, {"made": "by a test"})
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        length = int(torch.randint(3, 9, (1,), generator=generator))
        ids = torch.randint(3, 97, (1, length), generator=generator)
        for _ in range(20):
            ids = torch.cat((ids, model(ids).logits[:, -1:].argmax(-1)), dim=1)
        out = model.model(ids[:, :-1], output_hidden_states=True)
        states = {exit_key(1): out.hidden_states[1][0], FINAL: out.last_hidden_state[0]}
        found.append(Answer(number, ids[0].tolist(), length, 0.0, states))
    shards.write(folder, found[: count // 2])
    shards.write(folder, found[count // 2 :])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("answers")
    model = make_llama(folder / "model")
    with torch.no_grad():
        make_answers(model, folder / "train", 40, 0)
        make_answers(model, folder / "held-out", 10, 1)
    return folder


def options(made: Path, **changes: Any) -> AdapterTrainingOptions:
    values: dict[str, Any] = {
        "model": str(made / "model"),
        "answers": [made / "train"],
        "held_out_answers": [made / "held-out"],
        "exit_layer": (1,),
        "out": made / "unused",
        "dtype": "float32",
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 5,
    }
    return AdapterTrainingOptions.model_validate(values | changes)


def trainer(made: Path, steps: int, **changes: Any) -> AnswerTrainer:
    chosen = options(made, **changes)
    target = Target.load(chosen.model, chosen.exit_layer, torch.float32, "cpu")
    return AnswerTrainer(target, AnswerData(chosen.answers, (1,)), steps, chosen)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 7), st.integers(0, 9))
def test_a_draft_remembers_the_position_before_its_round(
    lengths: list[int], longest: int, seed: int
) -> None:
    found = drawn_rounds(np.array(lengths), longest, np.random.default_rng(seed))
    for row, length in zip(found, lengths, strict=True):
        assert row[0] == -1 and (row[length:] == -1).all()
        distance = np.arange(length) - row[:length]
        assert ((distance >= 1) & (distance <= longest)).all()
        # Within a round all remember the same; the next begins right behind.
        steps = np.diff(row[:length])
        assert ((steps == 0) | (row[1:length] == np.arange(1, length) - 1)).all()


def test_rounds_of_every_length_are_drawn() -> None:
    lengths = np.array([600])
    found = drawn_rounds(lengths, 4, np.random.default_rng(0))[0]
    assert set((np.arange(600) - found).tolist()) == {1, 2, 3, 4}
    assert at_draft(np.array([4]), 2).tolist() == [[-1, -1, 0, 1]]


def test_recall() -> None:
    final = torch.randn(1, 3, 5)
    found = recall(final, np.array([[-1, 0, 0]]))
    assert torch.equal(found[0], torch.stack((torch.zeros(5), final[0, 0], final[0, 0])))


def test_every_document_is_taken_once_a_pass() -> None:
    lengths = np.random.default_rng(0).integers(5, 90, size=64)
    order = BatchOrder(lengths, 4, seed=3)
    for number in range(2):
        steps = range(number * order.steps, (number + 1) * order.steps)
        taken = np.concatenate([order.documents(step) for step in steps])
        assert sorted(taken.tolist()) == list(range(64))
    again = BatchOrder(lengths, 4, seed=3)
    assert np.array_equal(again.documents(20), order.documents(20))


def test_batches_hold_what_was_written(made: Path) -> None:
    data = AnswerData([made / "train"], (1,))
    batch = data.batch(np.array([0, 25]))
    model = LlamaForCausalLM.from_pretrained(made / "model").float()
    for row in range(2):
        length = int(batch.lengths[row])
        assert int(batch.counted[row].sum()) == 20 and bool(batch.counted[row, length - 1])
        # The answers are greedy: the head says of the final state what comes next.
        likeliest = model.lm_head(batch.final[row]).argmax(-1)
        counted = batch.counted[row]
        assert torch.equal(likeliest[counted], batch.labels[row][counted])
    assert data.answer_tokens == 40 * 20


@pytest.mark.parametrize("targets", ["model", "text", "acceptance"])
@pytest.mark.parametrize("kind", ["attention", "ffn", "memory"])
def test_training_helps(made: Path, kind: str, targets: str) -> None:
    run = trainer(made, 60, kind=kind, targets=targets, draft_vocab=40)
    before = run.measure(run.data)[1]
    while run.progress.step < 60:
        run.step()
    after = run.measure(run.data)[1]
    key = "top1_agreement" if targets == "text" else "expected_acceptance"
    assert after[key] > before[key] + 0.02, (before, after)
    if kind == "memory":
        memory = run.trainees[0].adapter.memory
        assert memory is not None and memory.proj.weight.abs().sum() > 0


@pytest.mark.parametrize("native", [True, False])
def test_products_in_bfloat16_where_the_device_has_it(
    made: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    monkeypatch.setattr(answer_trainer, "has_bfloat16", lambda device: native)
    run = trainer(made, 20, kind="memory", draft_vocab=40, dtype="bfloat16")
    seen: list[torch.dtype] = []
    run.trainees[0].adapter.layers[0].mlp.down_proj.register_forward_hook(
        lambda module, inputs, out: seen.append(out.dtype)
    )
    before = run.measure(run.data)[1]["expected_acceptance"]
    while run.progress.step < 20:
        run.step()
    assert run.measure(run.data)[1]["expected_acceptance"] > before + 0.02
    assert set(seen) == {torch.bfloat16 if native else torch.float32}
    weights = run.trainees[0].adapter.parameters()
    assert {weight.dtype for weight in weights} == {torch.float32}


def test_an_adapter_is_calibrated_on_held_out_answers(made: Path, tmp_path: Path) -> None:
    """What it says of its drafts is what comes true of them, by the same trainer's own drafts."""
    chosen = options(made, kind="memory", steps=12, out=tmp_path / "out")
    (config,) = train_from_answers(chosen, Console(quiet=True))
    assert AdapterConfig.load(tmp_path / "out").calibration == config.calibration is not None
    assert len(config.training["calibration_error"]) == 2
    data = AnswerData(chosen.held_out_answers, chosen.exit_layer)
    trainer = AnswerTrainer(Target.load(chosen.model, (1,), torch.float32, "cpu"), data, 1, chosen)
    trainer.trainees[0].adapter.load_state_dict(load_adapter(tmp_path / "out").state_dict())
    _, tried = trainer.try_drafts(data)
    promised = config.calibration.probabilities(tried[1].confidences)
    assert promised.mean() == pytest.approx(tried[1].right.mean(), abs=0.05)
    assert abs(tried[1].confidences.mean() - tried[1].right.mean()) > 0.05, "nothing to calibrate"


def test_a_reduced_head_is_a_part_of_the_whole(made: Path) -> None:
    run = trainer(made, 1, draft_vocab=30)
    assert run.draft_vocab is not None
    hidden = torch.randn(3, 48)
    whole = run.target.logits(hidden)
    torch.testing.assert_close(run.head(hidden), whole[:, run.draft_vocab])
    counts = np.zeros(97, dtype=int)
    for shard in shards.shards(made / "train"):
        for at in range(len(shard)):
            np.add.at(counts, shard.tokens(at)[int(shard.answer_starts[at]) :], 1)
    kept = counts[run.draft_vocab.numpy()]
    others = np.delete(counts, run.draft_vocab.numpy())
    assert kept.min() >= others.max()


def test_acceptance_loss_follows_acceptance() -> None:
    wanted = torch.tensor([[0.7, 0.2, 0.1]])
    same, other = wanted.log(), torch.tensor([[0.1, 0.2, 0.7]]).log()
    assert acceptance_loss(same, wanted) < acceptance_loss(other, wanted)
    logits = other.clone().requires_grad_()
    acceptance_loss(logits, wanted).backward()
    assert logits.grad is not None and logits.grad[0, 0] < 0 < logits.grad[0, 2]


def test_a_run_that_goes_on_ends_with_the_same_weights(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape: dict[str, Any] = {"kind": "memory", "draft_vocab": 40, "steps": 12, "eval_every": 5}
    quiet = Console(quiet=True)
    (config,) = train_from_answers(options(made, out=tmp_path / "whole", **shape), quiet)
    assert config.model_type == "kangaroo_memory_adapter" and config.draft_vocab_size == 40
    assert len(config.training["figures_by_draft"]) == 6

    stopped = options(made, out=tmp_path / "parts", save_every=3, **shape)
    step = AnswerTrainer.step

    def interrupted(self: AnswerTrainer) -> None:
        if self.progress.step == 7:
            raise KeyboardInterrupt
        step(self)

    monkeypatch.setattr(AnswerTrainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_from_answers(stopped, quiet)
    monkeypatch.setattr(AnswerTrainer, "step", step)
    train_from_answers(stopped, quiet)
    whole, parts = load_adapter(tmp_path / "whole"), load_adapter(tmp_path / "parts")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], tensor), name


def test_training_goes_on_from_an_earlier_adapter(made: Path, tmp_path: Path) -> None:
    shape: dict[str, Any] = {"kind": "memory", "draft_vocab": 40}
    quiet = Console(quiet=True)
    train_from_answers(options(made, out=tmp_path / "first", steps=30, **shape), quiet)
    first = load_adapter(tmp_path / "first", torch.float32)
    chosen = {**shape, "start_from": tmp_path / "first"}
    run = trainer(made, 30, **chosen)
    for name, tensor in run.trainees[0].adapter.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name]), name
    before = run.measure(run.data)[1]["expected_acceptance"]
    assert before > trainer(made, 30, **shape).measure(run.data)[1]["expected_acceptance"] + 0.02
    while run.progress.step < 30:
        run.step()
    assert run.measure(run.data)[1]["expected_acceptance"] > before
    (config,) = train_from_answers(options(made, out=tmp_path / "on", steps=3, **chosen), quiet)
    assert config.draft_vocab_size == 40

    for changes, said in (
        ({"draft_vocab": 30}, "trained with --draft-vocab 40, this run has 30"),
        ({"draft_vocab": None}, "trained with --draft-vocab 40, this run has None"),
        ({"kind": "ffn"}, "trained with --kind memory, this run has ffn"),
    ):
        with pytest.raises(TargetError, match=said):
            trainer(made, 1, **(chosen | changes))
    make_llama(tmp_path / "other", kv_heads=1)
    with pytest.raises(TargetError, match="trained for other weights than those of --model"):
        trainer(made, 1, **chosen, model=str(tmp_path / "other"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_layer": (1, 2), "start_from": "x"}, "--start-from is an adapter of one exit"),
        ({"data": ["x.txt"]}, "--data and --answers exclude each other"),
        ({"answers": []}, "--data and --answers are both missing"),
        ({"held_out_answers": []}, "--answers needs --held-out-answers"),
        ({"on_policy": True}, "--on-policy has no effect with --answers"),
        ({"answers": [], "data": ["x"], "held_out_answers": [], "kind": "ffn"}, "--kind ffn needs"),
        (
            {"answers": [], "data": ["x"], "held_out_answers": [], "targets": "acceptance"},
            "--targets acceptance needs",
        ),
    ],
)
def test_options_that_contradict(made: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        options(made, **changes)
