"""Features of a prompt for the length learner: what a scheduler has at hand, hashed into one sparse vector."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vllm_kangaroo.laps_sd.lengths import RequestFacts

HASH_BITS = 14
SIZE = 1 << HASH_BITS
HEAD, TAIL = 96, 96
"""Tokens read from the beginning and the end of a prompt, where instructions stand."""

_MULTIPLIERS = np.array([0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D], dtype=np.uint32)


def features(facts: RequestFacts) -> NDArray[np.int64]:
    """Indices below :data:`SIZE` of the features that are present, sorted, each once.

    Single tokens, pairs of neighbours, the first few tokens by position, prompt length and ``max_tokens`` by powers of
    two, and the temperature's kind.
    """
    ids = facts.prompt_token_ids
    if len(ids) > HEAD + TAIL:
        ids = [*ids[:HEAD], *ids[-TAIL:]]
    tokens = np.asarray(ids, dtype=np.int64).astype(np.uint32)
    parts = [
        np.array(
            [
                _scalar(1, facts.prompt_tokens.bit_length()),
                _scalar(2, facts.max_tokens.bit_length()),
                _scalar(3, min(int(facts.temperature * 2 + 0.5), 4)),
                _scalar(4, int(2 * np.log2(facts.prompt_tokens + 1))),
            ],
            dtype=np.int64,
        )
    ]
    if len(tokens):
        parts.append(_mix(tokens * _MULTIPLIERS[0] + np.uint32(11)))
        first = tokens[:8]
        parts.append(
            _mix(
                first * _MULTIPLIERS[2]
                + np.arange(len(first), dtype=np.uint32) * _MULTIPLIERS[1]
                + np.uint32(37)
            )
        )
    if len(tokens) > 1:
        parts.append(
            _mix(tokens[:-1] * _MULTIPLIERS[1] + tokens[1:] * _MULTIPLIERS[2] + np.uint32(23))
        )
    return np.unique(np.concatenate(parts))


def _scalar(kind: int, value: int) -> int:
    return ((kind * 0x9E3779B1 + value * 0x85EBCA77) & 0xFFFFFFFF) >> (32 - HASH_BITS)


def _mix(values: NDArray[np.uint32]) -> NDArray[np.int64]:
    mixed = values ^ (values >> np.uint32(15))
    mixed = mixed * np.uint32(0x2C1B3C6D)
    return (mixed >> np.uint32(32 - HASH_BITS)).astype(np.int64)
