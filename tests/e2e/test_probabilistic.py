"""Drafts that are drawn: vLLM's distribution over a vocabulary of 16 tokens, by chi-squared, in the real engine."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from tests.e2e.checkpoints import make_model
from tests.e2e.engines import Engine, Engines, tokens_of
from tests.e2e.ticks import Ticks
from vllm_kangaroo.drafting import hispec, sampling
from vllm_kangaroo.integration.sampling.distributions import DraftDistributions

VOCAB, BATCH, REPEATS = 16, 256, 24
PROMPT = [3, 14, 15, 9, 2, 6, 5]
EXITS: dict[str, dict[str, Any]] = {
    "kangaroo": {"method": "kangaroo", "exit_layer": 2, "num_speculative_tokens": 3},
    "hispec": {
        "method": "hispec",
        "draft_exit_layer": 1,
        "verify_exit_layer": 3,
        "draft_tokens_per_round": 2,
        "num_speculative_tokens": 3,
    },
}
REQUESTS: dict[str, dict[str, Any]] = {
    "temperature 1": {"temperature": 1.0},
    "cut": {"temperature": 0.7, "top_k": 9, "top_p": 0.9},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_model("llama", tmp_path_factory.mktemp("sixteen"), vocab_size=VOCAB, spread=0.2)


@pytest.fixture(scope="module")
def logits(model: str) -> Tensor:
    """After every pair of tokens that may follow the prompt: ``[V, V, 3, V]``, by plain forwards."""
    from transformers import AutoModelForCausalLM

    target = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    whole = torch.tensor([PROMPT + list(pair) for pair in product(range(VOCAB), repeat=2)])
    with torch.inference_mode():
        found: Tensor = target(whole).logits[:, -3:]
    return found.view(VOCAB, VOCAB, 3, VOCAB)


@pytest.fixture(params=EXITS)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# Bands so narrow that a request sinks with every step; half of the requests run, and blocks suffice for few more.
LAPS_SD: dict[str, Any] = {
    "scheduler_cls": "vllm_kangaroo.LapsSdScheduler",
    "additional_config": {
        "laps_sd": {"base_threshold_s": 1e-3, "max_wait_s": 0.5, "front_s": 0.05}
    },
    "max_num_seqs": BATCH // 2,
    "num_gpu_blocks_override": BATCH // 2 + 40,
}


def start(
    engines: Engines, model: str, method: str, how: str = "probabilistic", **arguments: Any
) -> Engine:
    config = EXITS[method] | {"draft_sample_method": how, "confidence_threshold": 0.05}
    given = {
        "max_num_seqs": BATCH,
        "max_num_batched_tokens": 4096,
        "num_gpu_blocks_override": 2 * BATCH,
        "max_model_len": 64,
    }
    return engines.get(model=model, speculative_config=config, **given | arguments)


def joint(logits: Tensor, wanted: dict[str, Any]) -> Tensor:
    """Probabilities of the three tokens after the prompt, ``[V, V, V]``."""
    cut = logits / wanted["temperature"]
    values, order = cut.sort(dim=-1, descending=True)
    chances = values.softmax(dim=-1)
    keep = torch.arange(VOCAB) < wanted.get("top_k", VOCAB)
    among = (chances * keep) / (chances * keep).sum(dim=-1, keepdim=True)
    keep = keep & (among.cumsum(dim=-1) - among < wanted.get("top_p", 1.0))
    kept = (chances * keep) / (chances * keep).sum(dim=-1, keepdim=True)
    each = torch.zeros_like(kept).scatter_(-1, order, kept)
    return each[:, :1, 0][0, 0][:, None, None] * each[:, 0, 1][:, :, None] * each[:, :, 2]


def sampled(engine: Engine, wanted: dict[str, Any]) -> Tensor:
    """The first three tokens of many outputs, ``[outputs, 3]``."""
    options = {"max_tokens": 5, "ignore_eos": True, "detokenize": False} | wanted
    found = []
    for _ in range(REPEATS):
        outputs = engine.generate([PROMPT] * BATCH, **options)
        found += [own[0][:3] for own in tokens_of(outputs)]
    return torch.tensor(found)


def far(tokens: Tensor, expected: Tensor) -> bool:
    """Whether pairs of the second and third token are no sample of what is expected."""
    counts = torch.bincount(tokens[:, 1] * VOCAB + tokens[:, 2], minlength=VOCAB**2).double()
    wanted = expected.sum(dim=0).flatten().double() * len(tokens)
    keep = wanted >= 5
    assert keep.sum() > 20
    rest = torch.tensor([len(tokens)]) - torch.stack(
        [each[keep].sum() for each in (counts, wanted)]
    )
    observed = torch.cat([counts[keep], rest[:1]]).clamp(min=0)
    against = torch.cat([wanted[keep], rest[1:]]).clamp(min=1e-9)
    if against[-1] < 5:
        observed, against = observed[:-1], against[:-1] * observed[:-1].sum() / against[:-1].sum()
    statistic = chisquare(observed.numpy(), (against / against.sum() * observed.sum()).numpy())
    freedom = len(observed) - 1
    return bool(statistic.statistic > freedom + 10 * (2 * freedom) ** 0.5)


@pytest.mark.parametrize("kind", REQUESTS)
def test_outputs_are_samples_of_the_target(
    engines: Engines, model: str, logits: Tensor, method: str, kind: str
) -> None:
    torch.manual_seed(0)
    # One of the four cases with requests that are paused and evicted between their rounds.
    paced = method == "kangaroo" and kind == "cut"
    engine = start(engines, model, method, **LAPS_SD if paced else {})
    if paced:
        engine.core.scheduler.clock = Ticks(
            0.02
        )  # as a step of a busy machine: requests sink in it
    with engine.drafting() as gain:
        tokens = sampled(engine, REQUESTS[kind])
    if paced:
        assert engine.core.scheduler.pauses > 100, "nothing was paused"
        assert engine.core.scheduler.evictions > 0, "nothing was evicted"
    assert gain.totals.accepted > 0.3 * gain.totals.drafted
    expected = joint(logits, REQUESTS[kind])
    assert float(expected.sum()) == pytest.approx(1.0, abs=1e-4)
    assert not far(tokens, expected)


@pytest.fixture
def broken(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something wrong: at the last tier for Kangaroo, at the intermediate one for HiSpec."""
    if (
        method == "kangaroo"
    ):  # the sampler is told of other distributions than the drafts were drawn from
        honest = DraftDistributions.of

        def of(*args: Any) -> Any:
            found = honest(*args)
            return found if found is None else found.roll(1, dims=-1).contiguous()

        monkeypatch.setattr(DraftDistributions, "of", of)
    else:  # an intermediate verifier that accepts everything, and yet is believed

        def check(drafted: Any, *_: Any) -> sampling.Checked:
            return sampling.Checked([len(own) for own in drafted], [None] * len(drafted))

        monkeypatch.setattr(hispec, "check", check)


@pytest.mark.usefixtures("broken")
def test_chi_squared_sees_a_fault(
    engines: Engines, model: str, logits: Tensor, method: str
) -> None:
    torch.manual_seed(0)
    tokens = sampled(start(engines, model, method), REQUESTS["temperature 1"])
    assert far(tokens, joint(logits, REQUESTS["temperature 1"]))


def test_more_is_accepted_than_of_the_likeliest_tokens(
    engines: Engines, model: str, method: str
) -> None:
    lengths = {}
    for how in ("greedy", "probabilistic"):
        torch.manual_seed(0)
        engine = start(engines, model, method, how)
        options = {"max_tokens": 24, "ignore_eos": True, "temperature": 1.0, "detokenize": False}
        with engine.drafting() as gain:
            engine.generate([PROMPT] * BATCH, **options)
        lengths[how] = 1 + gain.totals.accepted / gain.counters["rounds"]
    assert lengths["probabilistic"] > lengths["greedy"] + 0.1


def test_seeds_decide_and_greedy_requests_stay_greedy(
    engines: Engines, model: str, method: str
) -> None:
    from tests.e2e.engines import sampling as parameters

    engine = start(engines, model, method)
    options = {"max_tokens": 20, "ignore_eos": True, "detokenize": False}
    params = [
        parameters(temperature=float(at % 2), seed=at if at % 2 else None, **options)
        for at in range(16)
    ]
    runs = []
    for other in (1, 2):
        torch.manual_seed(other)
        with engine.drafting():
            runs.append(tokens_of(engine.generate([PROMPT] * 16, params)))
    assert runs[0] == runs[1]
    assert len({tuple(own[0]) for own in runs[0][1::2]}) == 8
    plain = engines.plain(model=model).generate([PROMPT], parameters(**options))
    assert runs[0][::2] == tokens_of(plain) * 8
