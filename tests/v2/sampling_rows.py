"""vLLM's two sampling functions over all rows at once, in NumPy, with the signatures of its own.

Triton's interpreter runs a kernel program by program and draws two sequences in a second. These draw thousands, by the same
random numbers and in the same order of float32 operations: ``test_sampling.py`` compares them with the kernels, bit by bit.
Only what those tests need is here: no block verification, no synthetic acceptance, no float64, and one block of vocabulary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tests.v2.quick_interpreter import uniform

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
LEAST = np.float32(4.6566127342e-10)
SALT = 1 << 30
"""Of a draft's random numbers: see vLLM's ``gumbel.py``."""
PHILOX = (0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85)


def gumbel_sample(
    logits: Tensor,
    expanded_idx_mapping: Tensor,
    temperature: Tensor,
    seed: Tensor,
    pos: Tensor,
    apply_temperature: bool,
    is_drafting: bool,
    logits_cache: Tensor | None = None,
    logits_cache_col: Tensor | None = None,
    use_fp64: bool = False,
    logits_cache_source: Tensor | None = None,
) -> Tensor:
    """See ``vllm.v1.worker.gpu.sample.gumbel``: tokens drawn from ``logits [tokens, V]``, int64 ``[tokens]``."""
    assert not use_fp64 and logits_cache_source is None
    slots = expanded_idx_mapping
    valid = slots >= 0
    if logits_cache is not None:
        assert logits_cache_col is not None
        columns = logits_cache_col.expand(len(slots))
        logits_cache[slots[valid], columns[valid]] = logits[valid].to(logits_cache.dtype)
    known = slots.clamp(min=0)
    scale = torch.where(valid, temperature[known], 0.0)
    seeds = torch.where(valid, seed[known], 0)
    found = _drawn(
        logits.float().numpy(),
        seeds.numpy(),
        pos.numpy() + (SALT if is_drafting else 0),
        scale.float().numpy(),
        divide=apply_temperature,
    )
    return torch.from_numpy(found)


def _drawn(logits: Floats, seeds: Ints, pos: Ints, scale: Floats, *, divide: bool) -> Ints:
    """Tokens of the largest logits after noise, ``[tokens]``; without any where the temperature is 0."""
    warm = (scale != 0.0)[:, None]
    if divide:
        logits = np.where(warm, logits / np.where(warm, scale[:, None], np.float32(1.0)), logits)
    places = np.arange(logits.shape[1], dtype=np.int32)
    noise = -np.log(-_log1p_neg(uniform(seeds[:, None], pos[:, None], places)))
    found: Ints = np.where(warm, logits + noise, logits).argmax(axis=1)
    return found


def _log1p_neg(value: Floats) -> Floats:
    """log(1 - value) as the kernel approximates it."""
    polynomial: Any = np.float32(1.0 / 8.0)
    for term in (7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0):
        polynomial = np.float32(1.0 / term) + value * polynomial
    series = -value * polynomial
    direct = np.log(np.maximum(np.float32(1.0) - value, np.float32(5.960464477539063e-08)))
    found: Floats = np.where(value < np.float32(0.25), series, direct)
    return found


def _philox(seeds: Ints, pos: Ints) -> Floats:
    """``tl.rand``: Philox4x32 with ten rounds, the first of its four numbers."""
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    mul_a, mul_b = np.uint64(PHILOX[0]), np.uint64(PHILOX[1])
    key_a, key_b = np.uint32(PHILOX[2]), np.uint32(PHILOX[3])
    c0, c1 = (pos & 0xFFFFFFFF).astype(np.uint32), (pos >> 32).astype(np.uint32)
    c2, c3 = np.zeros_like(c0), np.zeros_like(c0)
    k0, k1 = (seeds & 0xFFFFFFFF).astype(np.uint32), (seeds >> 32 & 0xFFFFFFFF).astype(np.uint32)
    for _ in range(10):
        by_b, by_a = c2.astype(np.uint64) * mul_b, c0.astype(np.uint64) * mul_a
        c0 = (by_b >> high).astype(np.uint32) ^ c1 ^ k0
        c2 = (by_a >> high).astype(np.uint32) ^ c3 ^ k1
        c1, c3 = (by_b & low).astype(np.uint32), (by_a & low).astype(np.uint32)
        k0, k1 = k0 + key_a, k1 + key_b
    signed = c0.view(np.int32)
    found: Floats = np.where(signed < 0, ~signed, signed).astype(np.float32) * LEAST
    return found


def _log_sum(logits: Floats) -> Floats:
    """log of the sum of exponentials, ``[rows]``."""
    most = logits.max(axis=1)
    total = np.exp(logits - most[:, None]).sum(axis=1)
    found: Floats = most + np.log(total)
    return found


def rejection_sample(
    target_logits: Tensor,
    draft_logits: Tensor | None,
    draft_sampled: Tensor,
    cu_num_logits: Tensor,
    pos: Tensor,
    idx_mapping: Tensor,
    expanded_idx_mapping: Tensor,
    expanded_local_pos: Tensor,
    temperature: Tensor,
    seed: Tensor,
    num_speculative_steps: int,
    *_: Any,
    **__: Any,
) -> tuple[Tensor, Tensor]:
    """See ``vllm.v1.worker.gpu.spec_decode.rejection_sampler_utils``: tokens ``[requests, K + 1]`` and how many of them count.

    Every request has K drafts, a temperature, and its drafts' logits.
    """
    assert draft_logits is not None
    requests, drafts = len(idx_mapping), num_speculative_steps
    width, rows = drafts + 1, np.arange(requests)
    slots = idx_mapping.numpy()
    scale, seeds = temperature.numpy()[slots], seed.numpy()[slots]
    assert (scale > 0.0).all()
    assert cu_num_logits.tolist() == list(range(0, requests * width + 1, width))
    target = target_logits.float().numpy().reshape(requests, width, -1)
    given = draft_sampled.numpy().astype(np.int64).reshape(requests, width)
    places = pos.numpy().astype(np.int64).reshape(requests, width)
    drawn_from = draft_logits.numpy()[slots].astype(np.float32) / scale[:, None, None]
    accepted = np.zeros(requests, np.int64)
    ours, theirs = np.zeros(requests, np.float32), np.zeros(requests, np.float32)
    verifying = np.ones(requests, bool)
    sampled = np.zeros((requests, width), np.int64)
    for step in range(drafts):
        token = given[:, step + 1]
        verifying = verifying & (token >= 0)
        token = np.maximum(token, 0)
        target_sum, draft_sum = _log_sum(target[:, step]), _log_sum(drawn_from[:, step])
        ours, theirs = (
            np.where(verifying, target_sum, ours),
            np.where(verifying, draft_sum, theirs),
        )
        chance = np.maximum(_philox(seeds, places[:, step]), LEAST)
        likely = target[rows, step, token] - target_sum
        proposed = drawn_from[rows, step, token] - draft_sum
        sampled[:, step] = np.where(verifying, token, sampled[:, step])
        verifying = verifying & (likely > np.log(chance) + proposed)
        accepted += verifying
    left = target[rows, accepted]
    next_draft = np.where(accepted < drafts, given[rows, np.minimum(accepted + 1, drafts)], -1)
    known = left - ours[:, None]
    drafted = drawn_from[rows, np.minimum(accepted, drafts - 1)] - theirs[:, None]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.exp(drafted - known)
        residual = np.where(
            ratio < np.float32(1.0), known + np.log(np.float32(1.0) - ratio), -np.inf
        )
    residual = np.where((next_draft >= 0)[:, None], residual.astype(np.float32), left)
    last = _drawn(residual, seeds, places[rows, accepted], scale, divide=False)
    sampled[rows, accepted] = last
    return torch.from_numpy(sampled), torch.from_numpy((accepted + 1).astype(np.int32))


def num_sampled_and_rejected(
    num_sampled: Tensor, seq_lens: Tensor, cu_num_logits: Tensor, *_: Any
) -> tuple[Tensor, Tensor]:
    """See ``vllm.v1.worker.gpu.input_batch``: of requests past their prompts."""
    return num_sampled, cu_num_logits.diff().to(num_sampled.dtype) - num_sampled
