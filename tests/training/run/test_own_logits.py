"""Logits at exits are those of the model's own class, whatever it does after its decoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.training.kinds import BEYOND_THE_HEAD, KINDS, make_kind
from vllm_kangaroo.profile.head_reader import Head, Reader
from vllm_kangaroo.training.adapter.adapter_options import AdapterTrainingOptions
from vllm_kangaroo.training.adapter.adapter_trainer import AdapterTrainer
from vllm_kangaroo.training.data.windows import Windows
from vllm_kangaroo.training.exits.exit_options import ExitTrainingOptions
from vllm_kangaroo.training.exits.exit_trainer import ExitTrainer
from vllm_kangaroo.training.run.own_logits import LogitsError, OwnLogits, own_logits
from vllm_kangaroo.training.run.target import Target, TargetError


def some_ids(*shape: int) -> Tensor:
    return torch.randint(3, 97, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("model_type", KINDS)
def test_are_those_of_the_model_s_own_forward(model_type: str) -> None:
    model = make_kind(model_type)
    logits = own_logits(model)
    ids = some_ids(2, 7)
    with torch.no_grad():
        states = model.get_decoder()(ids, use_cache=False).last_hidden_state
        expected = model(ids, use_cache=False).logits
        assert torch.equal(logits(states), expected)
        assert torch.allclose(logits(states[0, 3]), expected[0, 3], atol=1e-5)
        head_alone = model.get_output_embeddings()(states)
    assert torch.allclose(head_alone, expected) == (model_type not in BEYOND_THE_HEAD)


@pytest.mark.parametrize("model_type", KINDS)
def test_some_tokens_alone(model_type: str) -> None:
    model = make_kind(model_type)
    which = torch.tensor([1, 7, 40, 96])
    with torch.no_grad():
        states = model.get_decoder()(some_ids(2, 7), use_cache=False).last_hidden_state
        expected = own_logits(model)(states)
        found = OwnLogits(model, which)(states)
        torch.testing.assert_close(found, expected[..., which], rtol=1e-4, atol=1e-4)
        assert torch.equal(
            own_logits(model)(states), expected
        )  # the model has its whole head still


@pytest.mark.parametrize(
    ("model_type", "written_out"),
    [
        ("granite", lambda head, x: head(x) / 8.0),
        ("cohere", lambda head, x: head(x) * 0.0625),
        ("gemma2", lambda head, x: 3.0 * torch.tanh(head(x) / 3.0)),
        ("minicpm3", lambda head, x: head(x / (48 / 12))),
        ("llama", lambda head, x: head(x)),
    ],
)
def test_their_gradients_are_those_of_what_the_class_does(
    model_type: str, written_out: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    model = make_kind(model_type)
    states = model.get_decoder()(some_ids(1, 5), use_cache=False).last_hidden_state.detach()
    weights = torch.randn(97, generator=torch.Generator().manual_seed(2))
    ours, theirs = states.clone().requires_grad_(), states.clone().requires_grad_()
    (own_logits(model)(ours) * weights).sum().backward()
    (written_out(model.lm_head, theirs) * weights).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)
    assert ours.grad.abs().max() > 0


def test_follow_the_weights_of_the_model(tmp_path: Path) -> None:
    model = make_kind("granite")
    logits = own_logits(model)
    states = torch.randn(3, 48)
    other = copy.deepcopy(model)
    nn.init.normal_(other.lm_head.weight)
    with torch.no_grad():
        model.load_state_dict(other.state_dict())
        model.to(torch.bfloat16)
        assert torch.equal(logits(states), OwnLogits(other.to(torch.bfloat16))(states))
    assert logits(states).dtype is torch.float32


def test_of_a_class_that_keeps_its_multiplier_in_its_decoder() -> None:
    model = make_kind(
        "falcon_h1",
        lm_head_multiplier=0.5,
        mamba_d_ssm=48,
        mamba_n_heads=6,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_expand=1,
    )
    with torch.no_grad():
        ids = some_ids(1, 6)
        states = model.get_decoder()(ids, use_cache=False).last_hidden_state
        assert torch.equal(OwnLogits(model)(states), model(ids, use_cache=False).logits)
        assert torch.allclose(OwnLogits(model)(states), model.lm_head(states) * 0.5)


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("deepseek_v4", "last layer and final norm gave differ"),
        ("falcon_h1", "no 'norm'"),
        ("gpt2", "no 'layers'"),
        ("llama4_text", "no 'layers'"),
    ],
)
def test_refuse_a_model_whose_exits_cannot_be_read_so(model_type: str, said: str) -> None:
    with pytest.raises(LogitsError, match=said):
        own_logits(make_kind(model_type))


def test_refuse_a_class_that_does_more_than_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_kind("llama")
    forward = type(model).forward

    def otherwise(self: Any, input_ids: Tensor | None = None, **how: Any) -> Any:
        out = forward(self, input_ids, **how)
        if input_ids is not None:
            out.logits = out.logits + input_ids[..., None]
        return out

    monkeypatch.setattr(type(model), "forward", otherwise)
    with pytest.raises(LogitsError, match="what its decoder gave differ from those of LlamaFor"):
        own_logits(model)


def saved(model_type: str, folder: Path) -> str:
    make_kind(model_type).save_pretrained(folder)
    return str(folder)


def test_a_target_s_are_those_that_its_class_computes(tmp_path: Path) -> None:
    target = Target.load(saved("granite", tmp_path), (1, 2), torch.float32, "cpu")
    ids = some_ids(2, 7)
    expected = target.model(ids).logits
    assert torch.equal(target.logits(target.states(ids)[-1]), expected)
    assert torch.allclose(expected * 8.0, target.model.lm_head(target.states(ids)[-1]), atol=1e-5)


def test_a_target_without_rms_norms_has_exits_but_no_adapter(tmp_path: Path) -> None:
    name = saved("cohere", tmp_path)
    ids = some_ids(1, 5)
    with pytest.raises(TargetError, match="rms_norm_eps"):
        Target.load(name, (1,), torch.float32, "cpu")
    target = Target.load(name, (1,), torch.float32, "cpu", for_adapter=False)
    assert torch.equal(target.logits(target.states(ids)[-1]), target.model(ids).logits)


def test_a_target_may_have_no_fused_attention(tmp_path: Path) -> None:
    target = Target.load(saved("gpt_oss", tmp_path), (1,), torch.float32, "cpu")
    ids = some_ids(1, 5)
    assert torch.equal(target.logits(target.states(ids)[-1]), target.model(ids).logits)


@pytest.mark.slow
def test_a_target_whose_exits_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"deepseek_v4.*differ.*; give a decoder such as Llama"):
        Target.load(saved("deepseek_v4", tmp_path), (1,), torch.float32, "cpu")


def windows() -> Windows:
    ids = some_ids(4, 16).numpy().astype(np.int32)
    return Windows(ids, np.ones(ids.shape, dtype=bool), np.zeros(ids.shape, dtype=bool))


def test_adapters_are_trained_against_them(tmp_path: Path) -> None:
    """The bare head at the last layer's norm has the model's own distribution: scaled, it accepts less."""
    options = AdapterTrainingOptions(
        model=saved("granite", tmp_path),
        data=(tmp_path / "unread.txt",),
        exit_layer=(2,),
        out=tmp_path / "out",
        dtype="float32",
    )
    target = Target.load(options.model, (2,), torch.float32, "cpu")
    trainer = AdapterTrainer(target, windows(), 1, options)
    found = trainer.measure(windows(), bare=True)[2]
    with torch.no_grad():
        ids = windows().select(np.arange(4))[0]
        out = target.model(ids, output_hidden_states=True)
        theirs = out.logits.softmax(-1)
        ours = (target.model.lm_head(target.final_norm(out.hidden_states[2])) / 8.0).softmax(-1)
        accepted = torch.minimum(theirs, ours).sum(-1).mean().item()
    assert found["expected_acceptance"] == pytest.approx(accepted, abs=1e-5)


def test_a_profile_reads_them(tmp_path: Path) -> None:
    target = Target.load(saved("granite", tmp_path), (2,), torch.float32, "cpu")
    prompt, answer = some_ids(6).tolist(), some_ids(4).tolist()
    [record] = Reader(target, [Head(2)], "float32", "cpu").record([prompt], [answer], 4, ())
    with torch.no_grad():
        out = target.model(torch.tensor([[*prompt, *answer[:-1]]]), output_hidden_states=True)
        state = target.final_norm(out.hidden_states[2])[0, len(prompt) :]
        expected = (target.model.lm_head(state) / 8.0).softmax(-1).max(-1)
    assert record.guesses["2"].token_ids.tolist() == expected.indices.tolist()
    assert np.allclose(record.guesses["2"].confidences, expected.values, atol=1e-5)


def test_exits_are_trained_by_them(tmp_path: Path) -> None:
    model = make_kind("granite")
    options = ExitTrainingOptions(
        data=(tmp_path / "unread.txt",),
        out=tmp_path / "out",
        model="unread",
        exit_scale=0.0,
        layer_dropout=0.0,
        batch_size=4,
        window=16,
        dtype="float32",
    )
    ids = windows().select(np.arange(4))[0]
    with torch.no_grad():
        expected = model(ids, labels=ids).loss.item()
    trainer = ExitTrainer(model, windows(), None, 1, options)
    assert trainer.measure(windows(), [3])[3]["loss"] == pytest.approx(expected, abs=1e-5)
    trainer.step()
    assert trainer.progress.loss == pytest.approx(expected, abs=1e-5)
