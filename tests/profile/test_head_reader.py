"""Adapters are read as they are served: with their memory, within their vocabulary, calibrated."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.e2e.checkpoints import make_memory_adapter
from vllm_kangaroo import tiny_model
from vllm_kangaroo.adapters.calibration import Calibration
from vllm_kangaroo.adapters.checkpoint import load_adapter
from vllm_kangaroo.adapters.config import CONFIG_FILE
from vllm_kangaroo.profile.head_reader import Head, Reader
from vllm_kangaroo.training.run.target import Target

EXIT = 2
CALIBRATION = {"slope": 0.5, "offset": -1.0}
PROMPT, ANSWER = [1, 5, 9, 300, 301], [12, 14, 300, 7, 8, 9]


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("memory")
    make_memory_adapter(tiny_model(), EXIT, folder, spread=0.02)
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"calibration": CALIBRATION}))
    return folder


@pytest.fixture(scope="module")
def target() -> Target:
    return Target.load(tiny_model(), (EXIT,), torch.float32, "cpu")


def test_an_adapter_with_a_memory_and_a_part_of_the_vocabulary(
    adapter: Path, target: Target
) -> None:
    head = Head(EXIT, adapter)
    (record,) = Reader(target, [head], "float32", "cpu").record([PROMPT], [ANSWER], 16, ())
    guesses = record.guesses[head.name]
    own = load_adapter(adapter, torch.float32)
    assert own.draft_vocab is not None
    with torch.inference_mode():
        states, final = target.states(torch.tensor([[*PROMPT, *ANSWER[:-1]]]))
        before = torch.cat((torch.zeros_like(final[:, :1]), final[:, :-1]), dim=1)
        hidden = own(states, memory=before)[0, len(PROMPT) :]
        logits = target.logits(hidden)[:, own.draft_vocab]
        forgetful = target.logits(own(states)[0, len(PROMPT) :])[:, own.draft_vocab]
    expected = own.draft_vocab[logits.argmax(-1)]
    assert guesses.token_ids.tolist() == expected.tolist()
    sure = logits.softmax(-1).amax(-1).double().numpy()
    np.testing.assert_allclose(
        guesses.confidences, Calibration(**CALIBRATION).probabilities(sure), rtol=1e-4
    )
    assert not torch.allclose(logits, forgetful), "the memory changes nothing"


def test_tokens_that_a_head_does_not_know_are_never_accepted(adapter: Path, target: Target) -> None:
    reader = Reader(target, [Head(EXIT, adapter)], "float32", "cpu")
    drafter = reader._drafters[Head(EXIT, adapter).name]
    logits = drafter.logits(torch.randn(3, target.config.hidden_size))
    known = load_adapter(adapter).draft_vocab
    assert known is not None
    finite = torch.isfinite(logits)
    assert finite.sum(-1).tolist() == [len(known)] * 3
    assert finite[:, known].all()
