"""The embedded prompts and adapter fit the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from vllm_kangaroo import tiny_adapter, tiny_model
from vllm_kangaroo.adapters.checkpoint import load_adapter, norm_fingerprint
from vllm_kangaroo.demo.models import TINY
from vllm_kangaroo.training.adapter.loss import Agreement, agreement
from vllm_kangaroo.training.run.target import Target

pytestmark = pytest.mark.slow

PROMPTS: list[dict[str, Any]] = json.loads(TINY.prompts.read_text())


def test_prompts() -> None:
    assert len({prompt["name"] for prompt in PROMPTS}) == 12
    for prompt in PROMPTS:
        roles = [message["role"] for message in prompt["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"]


@pytest.fixture(scope="module")
def answers() -> list[tuple[Target, torch.Tensor, int]]:
    """The model's own greedy answers: target, ids ``[1, T]`` and the prompt's length."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model())
    exit_layer = load_adapter(Path(tiny_adapter())).config.exit_layer
    target = Target.load(tiny_model(), (exit_layer,), torch.float32, "cpu")
    found = []
    for prompt in PROMPTS:
        ids = tokenizer.apply_chat_template(
            prompt["messages"], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )["input_ids"]
        out = target.model.generate(ids, max_new_tokens=96, do_sample=False, pad_token_id=0)
        found.append((target, out, ids.shape[1]))
    return found


def test_prompts_are_answered_to_the_end(
    answers: list[tuple[Target, torch.Tensor, int]],
) -> None:
    for target, ids, start in answers:
        assert ids[0, -1] == target.config.eos_token_id
        assert ids.shape[1] - start >= 15


def test_adapter_is_this_model_s_and_beats_the_bare_exit_head(
    answers: list[tuple[Target, torch.Tensor, int]],
) -> None:
    adapter = load_adapter(Path(tiny_adapter()), torch.float32)
    target = answers[0][0]
    weight = next(target.final_norm.parameters())
    assert adapter.config.target.norm_fingerprint == norm_fingerprint(weight)
    ours, bare = Agreement(), Agreement()
    for _, ids, start in answers:
        exit_state, final = target.states(ids)
        aim = final[0, start - 1 : -1]
        ours += agreement(adapter(exit_state)[0, start - 1 : -1], aim, target.logits)
        bare += agreement(target.final_norm(exit_state)[0, start - 1 : -1], aim, target.logits)
    assert ours.count == sum(ids.shape[1] - start for _, ids, start in answers)
    for figure in ("top1_agreement", "expected_acceptance"):
        assert ours.means()[figure] > bare.means()[figure] + 0.03
