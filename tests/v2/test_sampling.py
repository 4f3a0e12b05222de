"""Drawn drafts on the V2 runner: tokens are distributed as the model says, by chi-squared over a vocabulary of 16.

``KANGAROO_TRIALS`` sets the sequences drawn per case. The interpreter draws two in a second, so that the default sees gross
faults alone; from 512 on planted faults have to be seen as well, which takes a quarter of an hour. Every request has a seed, so
that a run is the same every time.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.e2e.checkpoints import make_model
from tests.e2e.engines import Engines, sampling, tokens_of
from tests.e2e.test_distribution import LAYERS, PROMPT, VOCABULARY, Sampled, likelihoods
from tests.v2.engines import V2Engine
from vllm_kangaroo.integration.runner_v2.draft_choice import DraftChoice
from vllm_kangaroo.integration.runner_v2.rejection import StoppingRejectionSampler

TRIALS = int(os.environ.get("KANGAROO_TRIALS", "48"))
SURE, ALARM = 1e-4, 1e-7
"""No case may be less likely than the first by chance, every planted fault must be less likely than the second."""
ENGINE: dict[str, Any] = {
    "max_num_seqs": 64,
    "max_num_batched_tokens": 512,
    "num_gpu_blocks_override": 140,
    "max_model_len": 64,
    "skip_tokenizer_init": True,
}
SHARED: dict[str, Any] = {
    "num_speculative_tokens": 3,
    "confidence_threshold": 0.15,
    "draft_sample_method": "probabilistic",
}
DRAFTERS: dict[str, dict[str, Any]] = {
    "one exit": {"method": "kangaroo", "exit_layer": 1, **SHARED},
    "two exits": {"method": "hispec", "draft_exit_layer": 1, "verify_exit_layer": 2, **SHARED},
}
PLAIN: dict[str, Any] = {"temperature": 1.0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "nucleus and penalties": (
        "one exit",
        {"temperature": 0.8, "top_p": 0.9, "presence_penalty": 0.8},
    ),
    "two exits": ("two exits", PLAIN),
}


@pytest.fixture(scope="module")
def narrow(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    shape = {"vocab_size": VOCABULARY, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("narrow")
    model = make_model("llama", folder / "model", spread=0.16, num_key_value_heads=1, **shape)
    return Sampled(engines, model, "")


def started(narrow: Sampled, drafter: str = "one exit") -> V2Engine:
    engine = narrow.engines.get(model=narrow.model, speculative_config=DRAFTERS[drafter], **ENGINE)
    assert isinstance(engine, V2Engine)
    return engine


def drawn(narrow: Sampled, drafter: str, options: dict[str, Any]) -> NDArray[np.int64]:
    """Sequences of four tokens, ``[trials, 4]``: of the second to the fourth each may be a draft."""
    engine = started(narrow, drafter)
    params = sampling(n=TRIALS, max_tokens=4, ignore_eos=True, detokenize=False, seed=11, **options)
    with engine.drafting() as gain:
        (found,) = tokens_of(engine.generate([PROMPT], params))
    assert 0.1 < gain.totals.accepted / gain.counters["proposed"] < 0.95
    return np.array(found)


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_distributed_as_the_model_says(narrow: Sampled, case: str) -> None:
    drafter, options = CASES[case]
    found = likelihoods(drawn(narrow, drafter, options), narrow.truth(options))
    assert min(found.values()) > SURE, found


def other_distribution(patch: pytest.MonkeyPatch) -> None:
    """The sampler is told of other distributions than drafts were drawn from."""
    verify = StoppingRejectionSampler.__call__

    def call(self: Any, logits: Any, step: Any, draft_logits: Any = None, *rest: Any) -> Any:
        return verify(self, logits, step, draft_logits.roll(1, dims=-1).contiguous(), *rest)

    patch.setattr(StoppingRejectionSampler, "__call__", call)


def stop_by_the_next_token(patch: pytest.MonkeyPatch) -> None:
    """Whether a draft counts depends on the draft itself: the sampler takes the target's own where it does not."""
    run_pass = DraftChoice.run

    def run(self: Any, offset: int, *args: Any) -> Any:
        state, tokens, confidence = run_pass(self, offset, *args)
        stopped = self._speculator.stopped
        slots = self._speculator.idx_mapping[: len(tokens)]
        rows = torch.where(slots < 0, len(stopped) - 1, slots)
        self.unlikely = getattr(self, "unlikely", {}) | {offset: (rows, tokens >= VOCABULARY // 2)}
        return state, tokens, confidence

    verify = StoppingRejectionSampler.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        for offset, (rows, wrong) in self.choice.unlikely.items():
            self.stopped[rows, offset] |= wrong
        return verify(self, *args, **kwargs)

    patch.setattr(DraftChoice, "run", run)
    patch.setattr(StoppingRejectionSampler, "__call__", call)


@pytest.mark.skipif(TRIALS < 512, reason="too few sequences to tell a fault from chance")
@pytest.mark.parametrize("plant", [other_distribution, stop_by_the_next_token])
def test_a_planted_fault_is_seen(
    narrow: Sampled, plant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = started(narrow)
    engine.runner.rejection_sampler.choice = engine.speculator.choice
    plant(monkeypatch)
    found = likelihoods(drawn(narrow, "one exit", PLAIN), narrow.truth(PLAIN))
    assert found["(0,)"] > SURE, "the first token is never a draft"
    assert min(found.values()) < ALARM, found
