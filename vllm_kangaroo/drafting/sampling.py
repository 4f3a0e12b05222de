"""Drafts sampled from an exit's distribution, and nested rejection sampling between two exits.

A deterministic draft is accepted with the probability the verifier gives that one token. A draft sampled from the exit's
own distribution ``q`` is accepted with ``min(1, p / q)``, and a rejection draws from ``(p - q)+``: the outcome is a
sample of ``p`` all the same, and more is accepted (Leviathan et al., arXiv 2211.17192, section 2.3). HiSpec does this
twice: the intermediate verifier's check makes the buffer an exact sample of the intermediate exit, and the full model
verifies it as such (arXiv 2510.01336).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class Sampling(Protocol):
    """The sampling parameters and random numbers of the requests of a round, by their index in it."""

    def probabilities(self, logits: Tensor, who: Sequence[int]) -> Tensor:
        """Distributions that requests ``who`` draw from: logits ``[rows, V]`` -> float32 ``[rows, V]``.

        All of the probability is on the largest logit where a request is greedy or its drafts must be deterministic.
        """
        ...

    def exponential(self, who: Sequence[int], like: Tensor) -> Tensor:
        """A standard exponential number for each entry of ``like [rows, V]``, from each request's own generator."""
        ...

    def uniform(self, who: Sequence[int]) -> Tensor:
        """A number of ``[0, 1)`` for each row, float64 ``[rows]``; rows of one request stand together."""
        ...

    def pick(self, which: Sequence[int]) -> Sampling:
        """The same for some of the requests."""
        ...


class LogitsPass(Protocol):
    """Tier 1 and its exit head over one token per request."""

    def __call__(
        self, input_ids: Tensor, positions: Tensor, memory: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """``[b]`` tokens at ``[b]`` positions, ``memory [b, M]`` -> tier state, float32 logits ``[b, V]``."""
        ...


class SampledDrafting:
    """Sampled drafts of one chain.

    Args:
        run: the pass.
        requests: how many draft.
    """

    def __init__(self, run: LogitsPass, sampling: Sampling, requests: int) -> None:
        self.sampling = sampling
        self.distributions: list[list[Tensor]] = [[] for _ in range(requests)]
        """What each draft was sampled from, ``[V]``."""
        self._run = run

    def __call__(
        self, alive: Sequence[int], input_ids: Tensor, positions: Tensor, memory: Tensor | None
    ) -> tuple[tuple[Tensor, ...], Tensor, Tensor]:
        """One draft for each request of ``alive``: tier state, tokens ``[b]``, their un-tempered probabilities."""
        state, logits = self._run(input_ids, positions, memory)
        probabilities = self.sampling.probabilities(logits, alive)
        token_ids = sample(probabilities, self.sampling.exponential(alive, probabilities))
        for who, row in zip(alive, probabilities.unbind(), strict=True):
            self.distributions[who].append(row)
        own = logits.gather(1, token_ids[:, None]).squeeze(1)
        return state, token_ids.to(torch.int32), (own - logits.logsumexp(dim=-1)).exp()


def sample(probabilities: Tensor, exponential: Tensor) -> Tensor:
    """A token of each distribution ``[rows, V]``, which need not be normalised, by an exponential race: ``[rows]``."""
    return (probabilities / exponential).argmax(dim=-1)


@dataclass(slots=True)
class Checked:
    """What an intermediate verification leaves of each request's drafts."""

    agreed: list[int] = field(default_factory=list)
    """How many were accepted."""
    own: list[int | None] = field(default_factory=list)
    """The verifier's token in the place of the first that was not."""


def check(
    drafted: Sequence[Sequence[int]],
    distributions: Sequence[Tensor],
    verifier: Tensor,
    sampling: Sampling,
) -> Checked:
    """Accept each draft x ~ q with ``min(1, p(x) / q(x))`` up to the first rejection, which samples from ``(p - q)+``.

    Args:
        drafted: tokens of each request, at least one.
        distributions: what each request's were sampled from, ``[its tokens, V]``.
        verifier: the distribution p at each draft, all requests' end to end, ``[tokens, V]``.
    """
    owners = [who for who, tokens in enumerate(drafted) for _ in tokens]
    flat = torch.tensor([token for tokens in drafted for token in tokens], device=verifier.device)
    q = torch.cat(list(distributions))
    p_of, q_of = (each.gather(1, flat[:, None]).squeeze(1) for each in (verifier, q))
    accepted = (sampling.uniform(owners) * q_of < p_of).tolist()
    found = Checked(own=[None] * len(drafted))
    rejected, places, offset = [], [], 0
    for who, tokens in enumerate(drafted):
        flags = accepted[offset : offset + len(tokens)]
        agreed = flags.index(False) if False in flags else len(tokens)
        found.agreed.append(agreed)
        if agreed < len(tokens):
            rejected.append(who)
            places.append(offset + agreed)
        offset += len(tokens)
    if rejected:
        at = torch.tensor(places, device=verifier.device)
        p = verifier.index_select(0, at)
        rest = (p - q.index_select(0, at)).clamp(min=0)
        # Rounding may leave nothing where p and q are one.
        rest = torch.where(rest.sum(dim=-1, keepdim=True) > 0, rest, p)
        tokens_ = sample(rest, sampling.exponential(rejected, rest)).tolist()
        for who, token in zip(rejected, tokens_, strict=True):
            found.own[who] = token
    return found
