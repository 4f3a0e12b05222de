"""Sampled requests with a seed: the same again, whatever runs beside them. Their distribution: test_distribution.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.e2e.engines import EXIT_LAYER, Engine, Engines, sampling, tokens_of
from tests.e2e.prompts import mixed
from tests.e2e.reference import Reference
from vllm_kangaroo import tiny_adapter, tiny_model

PROMPTS = mixed()[:8]
OPTIONS: dict[str, Any] = {"temperature": 0.7, "top_p": 0.95, "ignore_eos": True, "max_tokens": 32}


@pytest.fixture(scope="module", params=["own head", "adapter"])
def kangaroo(request: pytest.FixtureRequest, engines: Engines) -> Engine:
    adapter = {"model": tiny_adapter(), "exit_layer": None}
    return engines.kangaroo(options=adapter if request.param == "adapter" else None)


def test_the_same_seeds_give_the_same_tokens(kangaroo: Engine) -> None:
    params = [sampling(seed=number, **OPTIONS) for number in range(len(PROMPTS))]
    others = [sampling(seed=number + 100, **OPTIONS) for number in range(len(PROMPTS))]
    with kangaroo.drafting() as gain:
        first = tokens_of(kangaroo.generate(PROMPTS, params))
    assert gain.totals.accepted < gain.totals.drafted, "no draft was rejected"
    torch.manual_seed(99)  # seeded requests do not look at the process's own generator
    assert tokens_of(kangaroo.generate(PROMPTS, params)) == first
    different = tokens_of(kangaroo.generate(PROMPTS, others))
    assert all(a != b for a, b in zip(first, different, strict=True))


def test_what_runs_beside_a_seeded_request_does_not_matter(kangaroo: Engine) -> None:
    params = [sampling(seed=5, **OPTIONS)] + [sampling(**OPTIONS)] * (len(PROMPTS) - 1)
    with kangaroo.drafting():
        beside = tokens_of(kangaroo.generate(PROMPTS, params))[0]
        alone = tokens_of(kangaroo.generate(PROMPTS[:1], params[0]))[0]
    assert beside == alone


def test_several_samples_of_a_seeded_request_differ_and_come_again(kangaroo: Engine) -> None:
    """vLLM gives the k-th sample the seed s + k."""
    with kangaroo.drafting():
        together = tokens_of(kangaroo.generate(PROMPTS, seed=40, n=3, **OPTIONS))
    single = [tokens_of(kangaroo.generate(PROMPTS, seed=40 + k, **OPTIONS)) for k in range(3)]
    for at, samples in enumerate(together):
        assert samples == [single[k][at][0] for k in range(3)]
        assert len({tuple(sample) for sample in samples}) == 3


def test_the_first_token_is_that_of_vllm_alone(engines: Engines, kangaroo: Engine) -> None:
    """It comes without drafts, from the same generator; later tokens have the same distribution only."""
    params = [
        sampling(seed=number, **OPTIONS | {"max_tokens": 4}) for number in range(len(PROMPTS))
    ]
    expected = tokens_of(engines.plain().generate(PROMPTS, params))
    found = tokens_of(kangaroo.generate(PROMPTS, params))
    assert [sample[0] for (sample,) in found] == [sample[0] for (sample,) in expected]


def test_log_probabilities_of_sampled_tokens_are_the_models(kangaroo: Engine) -> None:
    """Accepted, recovered and bonus tokens alike, before temperature, as vLLM reports them."""
    reference = Reference(tiny_model(), EXIT_LAYER)
    with kangaroo.drafting() as gain:
        outputs = kangaroo.generate(PROMPTS, logprobs=0, seed=1, **OPTIONS)
    assert gain.totals.accepted < gain.totals.drafted, "no draft was rejected"
    for output in outputs:
        (sample,) = output.outputs
        tokens = torch.tensor(list(sample.token_ids))
        context = [*output.prompt_token_ids, *sample.token_ids[:-1]]
        logits = reference.logits(context)[-len(tokens) :]
        expected = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        found = [at[t].logprob for at, t in zip(sample.logprobs, sample.token_ids, strict=True)]
        torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-4, atol=1e-3)
