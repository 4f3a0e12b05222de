"""The distributions that drafts were sampled from, kept until vLLM's rejection sampler asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_kangaroo.drafting.kangaroo import Drafts
from vllm_kangaroo.ladder.counters import LadderCounters


class DraftDistributions:
    """By request: its drafts, and the distribution behind each.

    Memory for all of them is taken at once, when the model is loaded, so that vLLM's profiling counts it: float32
    ``[requests, drafts, V]``.

    Args:
        requests: most that are kept; drafts of further ones (paused requests come on top of a batch) are verified as
            deterministic ones, which is exact and accepts fewer.
        drafts: most of a request.
    """

    def __init__(
        self,
        requests: int,
        drafts: int,
        vocab_size: int,
        device: torch.device,
        counters: LadderCounters,
    ) -> None:
        self._pool = torch.empty(requests, drafts, vocab_size, device=device)
        self._free = list(range(requests))
        self._kept: dict[str, tuple[list[int], int]] = {}  # drafts, place in the pool
        self._counters = counters

    @property
    def nbytes(self) -> int:
        return self._pool.nbytes

    def gathered(self) -> Tensor:
        """Memory as :meth:`of` takes at most, for vLLM's profiling to see."""
        return torch.empty_like(self._pool)

    def keep_round(self, request_ids: Sequence[str], drafts: Drafts) -> None:
        """Those of a round's drafts; requests whose drafts were not sampled lose what is kept of them."""
        for at, request_id in enumerate(request_ids):
            if drafts.distributions:
                self.keep(request_id, drafts.token_ids[at], drafts.distributions[at])
            else:
                self.drop(request_id)

    def keep(self, request_id: str, token_ids: list[int], distributions: Tensor) -> None:
        """Those of a round ``[drafts, V]``, in the place of the last."""
        if request_id in self._kept:
            _, place = self._kept[request_id]
        elif self._free:
            place = self._free.pop()
        else:
            return
        self._pool[place, : len(token_ids)] = distributions
        self._kept[request_id] = token_ids, place

    def drop(self, request_id: str) -> None:
        """The request's newest drafts are deterministic, or it is gone."""
        if request_id in self._kept:
            _, place = self._kept.pop(request_id)
            self._free.append(place)

    def of(
        self, request_ids: Sequence[str], counts: Sequence[int], token_ids: Tensor
    ) -> Tensor | None:
        """What vLLM's rejection sampler takes for ``draft_probs``: ``[tokens, V]``, or None if no draft was sampled.

        Drafts of which nothing is kept are deterministic ones: all probability is on them, which is exact whatever
        they are.

        Args:
            counts: drafts of each request that are verified: the first ones of those kept.
            token_ids: these drafts, ``[tokens]``.
        """
        places: list[int] = []  # in the flat pool, of each token; -1 if deterministic
        offset, host = 0, token_ids.tolist()
        _, drafts, width = self._pool.shape
        for name, count in zip(request_ids, counts, strict=True):
            verified = host[offset : offset + count]
            offset += count
            kept, place = self._kept.get(name, (None, 0))
            if kept is not None and kept[:count] != verified:
                self._counters.defect(f"A request drafted {kept}, but {verified} are verified")
                kept = None
            first = place * drafts
            places += [-1] * count if kept is None else range(first, first + count)
        if all(place < 0 for place in places):
            return None
        index = torch.tensor(places, device=token_ids.device)
        found = self._pool.view(-1, width).index_select(0, index.clamp(min=0))
        if min(places) < 0:
            one_hot = torch.zeros(width, device=token_ids.device)
            for row in [row for row, place in enumerate(places) if place < 0]:
                found[row] = one_hot.index_fill(0, token_ids[row].long(), 1.0)
        return found
