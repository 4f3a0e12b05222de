"""The distributions that drafts were drawn from, kept until vLLM's rejection sampler asks for them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vllm_kangaroo.drafting.kangaroo import Drafts
from vllm_kangaroo.ladder.ladder import LadderError


class DraftDistributions:
    """By request: its drafts, and the distribution behind each ``[drafts, V]``."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[list[int], Tensor]] = {}

    def keep_round(self, request_ids: Sequence[str], drafts: Drafts) -> None:
        """Those of a round's drafts; requests whose drafts were not drawn lose what is kept of them."""
        for at, request_id in enumerate(request_ids):
            if drafts.distributions:
                self.keep(request_id, drafts.token_ids[at], drafts.distributions[at])
            else:
                self.drop(request_id)

    def keep(self, request_id: str, token_ids: list[int], distributions: Tensor) -> None:
        """Those of a round, in the place of the last."""
        self._kept[request_id] = (token_ids, distributions)

    def drop(self, request_id: str) -> None:
        """The request's newest drafts are deterministic, or it is gone."""
        self._kept.pop(request_id, None)

    def of(
        self, request_ids: Sequence[str], counts: Sequence[int], token_ids: Tensor
    ) -> Tensor | None:
        """What vLLM's rejection sampler takes for ``draft_probs``: ``[tokens, V]``, or None if no draft was drawn.

        Args:
            counts: drafts of each request that are verified: the first ones of those kept.
            token_ids: these drafts, ``[tokens]``.

        Raises:
            LadderError: if they are others than those kept, whose distributions would make the output wrong.
        """
        drafting = [(name, count) for name, count in zip(request_ids, counts, strict=True) if count]
        kept = [self._kept.get(name) for name, _ in drafting]
        known = [each for each in kept if each is not None]
        if not known:
            return None
        width = known[0][1].shape[1]
        rows, offset, host = [], 0, token_ids.tolist()
        for (name, count), own in zip(drafting, kept, strict=True):
            verified = host[offset : offset + count]
            if own is None:
                certain = torch.zeros(count, width, device=token_ids.device)
                at = token_ids[offset : offset + count, None].long()
                rows.append(certain.scatter_(1, at, 1.0))
            elif own[0][:count] != verified:
                raise LadderError(f"{name} drafted {own[0]}, but {verified} are verified")
            else:
                rows.append(own[1][:count])
            offset += count
        return torch.cat(rows).contiguous()
