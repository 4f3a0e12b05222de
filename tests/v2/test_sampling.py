"""Drawn drafts on the V2 runner: tokens are distributed as the model says, by chi-squared over a vocabulary of 16.

In three links, since the interpreter draws two sequences in a second:

* vLLM's sampling kernels, interpreted, and their forms over all rows agree bit by bit;
* with seeds, the whole engine (its layers, KV cache, scheduler and kernels) and the engine's round and rejection sampler over
  tables of the model's logits draw the same sequences;
* the latter draw ``KANGAROO_TRIALS`` sequences a case, which are tested. Planted faults are seen there, and in the engine.

Every request has a seed, so that a run is the same every time.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from vllm.v1.worker.gpu.sample import gumbel
from vllm.v1.worker.gpu.spec_decode import rejection_sampler_utils

from tests.e2e.checkpoints import make_model
from tests.e2e.engines import Engines, sampling, tokens_of
from tests.e2e.test_distribution import LAYERS, PROMPT, TOKENS, VOCABULARY, Sampled, likelihoods
from tests.v2 import sampling_rows
from tests.v2.engines import V2Engine
from tests.v2.round_rows import Drawn, Rounds, layers_of, tables
from vllm_kangaroo.integration.runner_v2.draft_choice import DraftChoice
from vllm_kangaroo.integration.runner_v2.rejection import StoppingRejectionSampler

pytestmark = pytest.mark.core
TRIALS = int(os.environ.get("KANGAROO_TRIALS", "200000"))
FAULTY_TRIALS = 20000
SEQUENCES = 16
"""That the engine draws."""
SEED = 11
SURE, ALARM = 1e-6, 1e-12
"""No case may be less likely than the first by chance, every planted fault must be less likely than the second."""
ENGINE: dict[str, Any] = {
    "max_num_seqs": 1024,
    "max_num_batched_tokens": 4096,
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
EXITS = {"one exit": (1,), "two exits": (1, 2)}
PLAIN: dict[str, Any] = {"temperature": 1.0}
NUCLEUS: dict[str, Any] = {"temperature": 0.8, "top_p": 0.9, "presence_penalty": 0.8}
CASES = [(drafter, options) for drafter in DRAFTERS for options in (PLAIN, NUCLEUS)]


@pytest.fixture(scope="module")
def narrow(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    shape = {"vocab_size": VOCABULARY, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("narrow")
    model = make_model("llama", folder / "model", spread=0.16, num_key_value_heads=1, **shape)
    return Sampled(engines, model, "")


def started(narrow: Sampled, drafter: str) -> V2Engine:
    engine = narrow.engines.get(model=narrow.model, speculative_config=DRAFTERS[drafter], **ENGINE)
    assert isinstance(engine, V2Engine)
    return engine


def rounds(narrow: Sampled, drafter: str) -> Rounds:
    logits = tables(narrow.model, layers_of(EXITS[drafter]))
    return Rounds(started(narrow, drafter), logits)


def by_engine(narrow: Sampled, drafter: str, options: dict[str, Any]) -> NDArray[np.int64]:
    """Sequences of the whole engine, ``[SEQUENCES, TOKENS]``; the k-th sample of a request has the seed s + k."""
    engine = started(narrow, drafter)
    params = sampling(
        n=SEQUENCES, max_tokens=TOKENS, ignore_eos=True, detokenize=False, seed=SEED, **options
    )
    with engine.drafting() as gain:
        (found,) = tokens_of(engine.generate([PROMPT], params))
    assert gain.totals.accepted < gain.counters["proposed"]
    return np.array(found)


def by_rounds(
    narrow: Sampled, drafter: str, options: dict[str, Any], trials: int = SEQUENCES
) -> Drawn:
    return rounds(narrow, drafter).draw(SEED + np.arange(trials), options)


def test_rows_are_drawn_as_the_kernels_draw() -> None:
    """The same tokens, acceptances and logits for the next verification, also where a draft was never proposed."""
    rows, drafts, slots = 24, 3, 32
    torch.manual_seed(0)
    index = torch.randperm(slots)[:rows]
    temperature = torch.rand(slots) + 0.4
    seeds = torch.randint(-(2**62), 2**62, (slots,))
    cold = temperature.clone()
    cold[index[3]] = 0.0  # which takes the likeliest draft
    padded = index.clone()
    padded[5] = -1
    cached = [torch.zeros(slots, drafts, VOCABULARY) for _ in range(2)]
    drawn = []
    for sample, cache in zip((gumbel, sampling_rows), cached, strict=True):
        torch.manual_seed(1)
        found = []
        for at in range(drafts):
            logits = 2.0 * torch.randn(rows, VOCABULARY)
            columns = torch.full((rows,), at) if at else torch.tensor(0)
            places = torch.arange(rows) + at
            named = {"logits_cache": cache, "logits_cache_col": columns}
            given = (logits, padded, cold, seeds, places)
            found.append(sample.gumbel_sample(*given, True, True, **named))
        drawn.append(torch.stack(found, dim=1))
    assert torch.equal(*drawn)
    assert torch.equal(*cached)
    assert len(drawn[0].unique()) > 6

    target = 2.0 * torch.randn(rows, drafts + 1, VOCABULARY)
    target[..., 3] = -torch.inf
    given = torch.cat((torch.zeros(rows, 1, dtype=torch.int64), drawn[0]), dim=1)
    given[4, 2] = given[7, 1] = -1
    ends = torch.arange(0, rows * (drafts + 1) + 1, drafts + 1, dtype=torch.int32)
    local = torch.arange(drafts + 1).repeat(rows)
    places = torch.arange(rows).repeat_interleave(drafts + 1) + local
    arguments = (
        target.flatten(0, 1),
        cached[0],
        given.flatten(),
        ends,
        places,
        index,
        index.repeat_interleave(drafts + 1),
        local,
        temperature,
        seeds,
        drafts,
    )
    (theirs, most), (ours, own) = (
        module.rejection_sample(*arguments) for module in (rejection_sampler_utils, sampling_rows)
    )
    assert torch.equal(own, most)
    assert {1, 2, drafts + 1} <= set(most.tolist()), "too much alike"
    there = torch.arange(drafts + 1) < most[:, None]
    assert torch.equal(ours[there], theirs[there])


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_the_engine_draws_what_its_rounds_draw(narrow: Sampled, drafter: str) -> None:
    for options in (PLAIN, NUCLEUS):
        found = by_engine(narrow, drafter, options)
        assert (found == by_rounds(narrow, drafter, options).tokens).all()


@pytest.mark.parametrize(("drafter", "options"), CASES)
def test_tokens_are_distributed_as_the_model_says(
    narrow: Sampled, drafter: str, options: dict[str, Any]
) -> None:
    drawn = by_rounds(narrow, drafter, options, TRIALS)
    assert 0.1 < drawn.accepted / drawn.proposed < 0.95
    found = likelihoods(drawn.tokens, narrow.truth(options))
    assert min(found.values()) > SURE, found


def other_distribution(patch: pytest.MonkeyPatch) -> None:
    """The sampler is told of other distributions than drafts were drawn from."""
    verify = StoppingRejectionSampler.__call__

    def call(self: Any, logits: Any, step: Any, draft_logits: Any = None, *rest: Any) -> Any:
        return verify(self, logits, step, draft_logits.roll(1, dims=-1).contiguous(), *rest)

    patch.setattr(StoppingRejectionSampler, "__call__", call)


def first_exits_distribution(patch: pytest.MonkeyPatch) -> None:
    """What the second exit draws is told with what the first one drew from."""
    check = DraftChoice.check

    def kept(self: Any, *args: Any) -> Any:
        logits = self._speculator.draft_logits
        before = logits.clone()
        found = check(self, *args)
        logits.copy_(before)
        return found

    patch.setattr(DraftChoice, "check", kept)


def stop_by_the_next_token(patch: pytest.MonkeyPatch) -> None:
    """Whether a draft counts depends on the draft itself: the sampler takes the target's own where it does not."""
    run_pass = DraftChoice.run
    unlikely: dict[int, Any] = {}

    def run(self: Any, offset: int, *args: Any) -> Any:
        state, tokens, confidence = run_pass(self, offset, *args)
        unlikely[offset] = (args[-1].clone(), tokens >= VOCABULARY // 2)
        return state, tokens, confidence

    verify = StoppingRejectionSampler.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        for offset, (slots, wrong) in unlikely.items():
            self.stopped[slots, offset] |= wrong
        return verify(self, *args, **kwargs)

    patch.setattr(DraftChoice, "run", run)
    patch.setattr(StoppingRejectionSampler, "__call__", call)


FAULTS: list[tuple[str, Callable[[pytest.MonkeyPatch], None]]] = [
    ("one exit", other_distribution),
    ("one exit", stop_by_the_next_token),
    ("two exits", first_exits_distribution),
]


@pytest.mark.parametrize(("drafter", "plant"), FAULTS)
def test_a_planted_fault_is_seen(
    narrow: Sampled, drafter: str, plant: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    drawn = by_rounds(narrow, drafter, PLAIN, FAULTY_TRIALS)
    found = likelihoods(drawn.tokens, narrow.truth(PLAIN))
    assert found["(0,)"] > SURE, "the first token is never a draft"
    assert min(found.values()) < ALARM, found


def test_the_engine_shows_a_fault_too(narrow: Sampled, monkeypatch: pytest.MonkeyPatch) -> None:
    right = by_rounds(narrow, "one exit", PLAIN).tokens
    other_distribution(monkeypatch)
    assert (by_engine(narrow, "one exit", PLAIN) != right).any()
