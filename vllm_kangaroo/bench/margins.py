"""How close a call it was where two outputs part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vllm_kangaroo.bench.bench_results import Divergence, Equality
from vllm_kangaroo.bench.rounds import RoundOutputs

CANDIDATES = 20
"""As many log-probabilities as vLLM gives without being told to give more."""


def with_margins(
    plain: Any, equality: Equality, prompts: Sequence[Sequence[int]], rounds: Sequence[RoundOutputs]
) -> Equality:
    """Compute with vLLM alone how far apart the two tokens of each divergence are.

    Args:
        plain: the engine of vLLM alone.
        prompts: token ids of the prompts.
    """
    found = [
        one.model_copy(update={"margin": _margin(plain, one, prompts[one.index], rounds)})
        for one in equality.divergences
    ]
    return equality.model_copy(update={"divergences": found})


def _margin(
    plain: Any, one: Divergence, prompt: Sequence[int], rounds: Sequence[RoundOutputs]
) -> float | None:
    from vllm import SamplingParams

    outputs = rounds[one.round]
    theirs = outputs.plain.outputs[one.index].token_ids
    ours = outputs.drafting.outputs[one.index].token_ids
    if one.token >= min(len(theirs), len(ours)):
        return None
    params = SamplingParams(temperature=0, max_tokens=1, logprobs=CANDIDATES)
    context = {"prompt_token_ids": [*prompt, *theirs[: one.token]]}
    [answer] = plain.generate(context, params, use_tqdm=False)
    logprobs = answer.outputs[0].logprobs[0]
    pair = [logprobs.get(output[one.token]) for output in (theirs, ours)]
    if pair[0] is None or pair[1] is None:
        return None
    return abs(float(pair[0].logprob) - float(pair[1].logprob))
