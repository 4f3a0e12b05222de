"""Sampled requests: the tokens of drafting engines are distributed exactly as the model says.

A model of 16 tokens, so that all sequences of three can be counted and their probabilities worked out by a plain
forward pass. ``KANGAROO_TRIALS`` sets the sequences sampled per case. Its default keeps the suite quick and sees
probabilities that are off by a tenth of themselves; 200000 sees those that are off by two hundredths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import Tensor
from vllm.v1.sample import rejection_sampler

from tests.e2e.checkpoints import make_adapter, make_model
from tests.e2e.engines import Engine, Engines, Totals, tokens_of
from tests.e2e.fixed_costs import fix
from tests.e2e.reference import Reference

TRIALS = int(os.environ.get("KANGAROO_TRIALS", "6000"))
FAULTY_TRIALS = 3000
MOST_SAMPLES = 8192  # of one request: vLLM takes no more than 16384
VOCABULARY, LAYERS, TOKENS = 16, 3, 4
"""Of the four tokens the second and third can be drafts; the fourth follows a whole round that was accepted."""
PROMPT = [1, 5, 9, 3]
SURE, ALARM = 1e-6, 1e-12
"""No case may be less likely than the first by chance, every planted fault must be less likely than the second."""
ENGINE: dict[str, Any] = {
    "max_num_seqs": 256,
    "max_num_batched_tokens": 2048,
    "num_gpu_blocks_override": 600,
    "max_model_len": 64,
    "skip_tokenizer_init": True,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "temperature": ("own head", {"temperature": 1.0}),
    "nucleus": ("own head", {"temperature": 0.7, "top_k": 6, "top_p": 0.9}),
    "penalties, seeded": (
        "own head",
        {"temperature": 1.3, "presence_penalty": 0.8, "frequency_penalty": 0.5, "seed": 7},
    ),
    "adapter": ("adapter", {"temperature": 1.0, "top_k": 10}),
    "two exits": ("hispec", {"temperature": 1.0, "top_p": 0.95}),
    "lookup": ("lookup", {"temperature": 1.0, "top_k": 12}),
    "drafts that are weighed": ("goodput", {"temperature": 1.0}),
    "lookup beside drawn drafts": ("drawn and lookup", {"temperature": 0.8}),
}
REPEATING = [1, 3, 0, 9, 3, 1, 9, 3, 2, 9, 3, 4, 9, 3, 5, 9, 3, 9, 9, 3, 10, 9, 3, 11, 9, 3]
"""A prompt in which eight of the tokens that may come next followed the last one before, which are then looked up."""


@dataclass
class Sampled:
    """A narrow model, the engines that draft for it, and the truth."""

    engines: Engines
    model: str
    adapter: str

    def engine(self, drafter: str) -> Engine:
        shared = {"num_speculative_tokens": 3, "confidence_threshold": 0.2}
        configs: dict[str, dict[str, Any]] = {
            "own head": {"method": "kangaroo", "exit_layer": 1, **shared},
            "adapter": {"method": "kangaroo", "model": self.adapter, **shared},
            "hispec": {"method": "hispec", "draft_exit_layer": 1, "verify_exit_layer": 2},
        }
        looked_up = {
            "confidence_threshold": 0.0,
            "prompt_lookup_min": 2,
            "num_speculative_tokens": 2,
        }
        configs["lookup"] = configs["own head"] | {"lookup": looked_up}
        weighed = {"draft_sample_method": "probabilistic", "goodput": {"profile": False}}
        configs["goodput"] = configs["own head"] | weighed | {"confidence_threshold": 0.0}
        configs["drawn and lookup"] = configs["lookup"] | {"draft_sample_method": "probabilistic"}
        found = self.engines.get(model=self.model, speculative_config=configs[drafter], **ENGINE)
        if drafter == "goodput":
            fix(found, draft=0.02, token=0.0005)
        return found

    def draw(
        self, drafter: str, trials: int, options: dict[str, Any]
    ) -> tuple[NDArray[np.int64], Totals]:
        """Sequences of one prompt, ``[trials, TOKENS]``, and what became of the drafts."""
        engine = self.engine(drafter)
        torch.manual_seed(0)
        options = {"max_tokens": TOKENS, "ignore_eos": True, "detokenize": False, **options}
        samples: list[list[int]] = []
        with engine.drafting() as gain:
            while len(samples) < trials:
                more = min(MOST_SAMPLES, trials - len(samples))
                (drawn,) = tokens_of(engine.generate([prompt_of(drafter)], n=more, **options))
                samples += drawn
                if "seed" in options:  # the k-th sample of a request has the seed s + k
                    options["seed"] += more
        counters = gain.counters
        assert counters["defects"] == 0
        if drafter == "goodput":
            lengths = engine.proposer.goodput.controller.stats.lengths
            assert min(lengths[1:3]) > trials / 50, "confidences decide next to nothing"
        if "lookup" in drafter:
            assert counters["rounds"] > trials / 4, "few drafts of the exit"
            assert trials / 4 < counters["lookup_rounds"], "few drafts were looked up"
            assert 0 < counters["lookup_accepted"] < counters["lookup_drafted"]
        return np.array(samples), gain.totals

    def truth(self, options: dict[str, Any], prompt: Sequence[int] = PROMPT) -> NDArray[np.float64]:
        """Probability of every sequence, ``[VOCABULARY] * TOKENS``, by plain forward passes."""
        tokens = torch.cartesian_prod(*[torch.arange(VOCABULARY)] * (TOKENS - 1))
        with torch.inference_mode():
            prompts = torch.tensor(prompt).expand(len(tokens), -1)
            logits = Reference(self.model, LAYERS).model(torch.cat((prompts, tokens), 1)).logits
        joint = torch.ones((), dtype=torch.float64)
        for place in range(TOKENS):
            # Rows that agree on the tokens before this place have the same logits there.
            rows = slice(None, None, VOCABULARY ** (TOKENS - 1 - place))
            before = torch.nn.functional.one_hot(tokens[rows, :place], VOCABULARY).sum(dim=1)
            found = probabilities(logits[rows, len(prompt) - 1 + place].double(), before, options)
            joint = joint[..., None] * found.view([VOCABULARY] * (place + 1))
        return joint.numpy()


def prompt_of(drafter: str) -> list[int]:
    """The prompt of an engine's requests."""
    return REPEATING if "lookup" in drafter else PROMPT


def probabilities(logits: Tensor, counts: Tensor, options: dict[str, Any]) -> Tensor:
    """What a request's options make of logits ``[rows, V]``, after ``counts`` ``[rows, V]`` of each token."""
    logits = logits - options.get("presence_penalty", 0.0) * (counts > 0)
    logits = (logits - options.get("frequency_penalty", 0.0) * counts) / options["temperature"]
    ordered, order = logits.sort(dim=-1, descending=True)
    ordered[:, options.get("top_k", VOCABULARY) :] = -torch.inf
    chances = ordered.softmax(dim=-1)
    chances[chances.cumsum(dim=-1) - chances >= options.get("top_p", 1.0)] = 0.0
    chances = chances / chances.sum(dim=-1, keepdim=True)
    return torch.zeros_like(chances).scatter(1, order, chances)


def likelihoods(drawn: NDArray[np.int64], truth: NDArray[np.float64]) -> dict[str, float]:
    """p-values of the chi-squared test: of each token alone, and of three tokens together."""
    found = {}
    together: Sequence[tuple[int, ...]] = ((0,), (1,), (2,), (3,), (0, 1, 2), (1, 2, 3))
    for places in together:
        others = tuple(place for place in range(TOKENS) if place not in places)
        expected = truth.sum(axis=others).ravel() * len(drawn)
        cells = np.ravel_multi_index(tuple(drawn[:, places].T), (VOCABULARY,) * len(places))
        observed = np.bincount(cells, minlength=len(expected))
        assert (observed[expected == 0] == 0).all(), "a token came that cannot come"
        rare = (expected < 5) & (expected > 0)
        few, many = observed[expected >= 5], expected[expected >= 5]
        if expected[rare].sum() >= 5:
            few, many = np.append(few, observed[rare].sum()), np.append(many, expected[rare].sum())
        else:
            many = many * few.sum() / many.sum()
        found[str(places)] = float(chisquare(few, many).pvalue)
    return found


@pytest.fixture(scope="module")
def narrow(engines: Engines, tmp_path_factory: pytest.TempPathFactory) -> Sampled:
    shape = {"vocab_size": VOCABULARY, "num_hidden_layers": LAYERS, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("narrow")
    model = make_model("llama", folder / "model", spread=0.16, num_key_value_heads=1, **shape)
    return Sampled(engines, model, make_adapter(model, 1, folder / "adapter"))


@pytest.mark.parametrize("case", CASES)
def test_tokens_are_distributed_as_the_model_says(narrow: Sampled, case: str) -> None:
    drafter, options = CASES[case]
    drawn, totals = narrow.draw(drafter, TRIALS, options)
    assert 0.1 < totals.accepted / totals.drafted < 0.9
    found = likelihoods(drawn, narrow.truth(options, prompt_of(drafter)))
    assert min(found.values()) > SURE, found


def accept_all(num_tokens: int, *_: Any) -> Tensor:
    return torch.zeros(num_tokens, dtype=torch.float64)


def recover_from_all(*arguments: Any, **_: Any) -> Tensor:
    """Does not leave the rejected draft out."""
    target_probs: Tensor = arguments[5]
    return torch.multinomial(target_probs, 1)[:, 0].to(arguments[3].dtype)


def forget_temperature(x: Tensor, _: Tensor, num_tokens: int, **__: Any) -> Tensor:
    return x.new_ones(num_tokens)


FAULTS: dict[str, tuple[str, Callable[..., Tensor], dict[str, Any]]] = {
    "every draft is accepted": ("generate_uniform_probs", accept_all, {"temperature": 1.0}),
    "a rejected draft may come back": (
        "sample_recovered_tokens",
        recover_from_all,
        {"temperature": 1.0},
    ),
    "drafts are verified at temperature 1": (
        "expand_batch_to_tokens",
        forget_temperature,
        {"temperature": 0.6},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_seen(
    narrow: Sampled, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, broken, options = FAULTS[fault]
    narrow.engine("own head")  # which puts its own correction of the sampler in place
    monkeypatch.setattr(rejection_sampler, name, broken)
    drawn, _ = narrow.draw("own head", FAULTY_TRIALS, options)
    found = likelihoods(drawn, narrow.truth(options))
    assert found["(0,)"] > SURE, "the first token is never a draft"
    assert min(found.values()) < ALARM, found
