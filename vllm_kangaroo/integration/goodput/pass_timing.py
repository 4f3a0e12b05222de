"""The passes of a cut model, timed once at the start of an engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.forward_context import set_forward_context

from vllm_kangaroo.goodput.cost_profile import SIZES, CostProfile, Curve
from vllm_kangaroo.integration.passes import warm_up
from vllm_kangaroo.integration.passes.model import TieredModel

REPEATS = 3
"""Runs of each size, of which the fastest counts."""
DOUBTS = 2
"""Times that a size is timed again which seems to take longer than a larger one."""
BUDGET = 2.0
"""Seconds after which no further size of a pass is timed."""
STEADY = 1.5
"""How much longer than its fastest run the middle one of a pass may take on a machine that does nothing else."""


class PassTimer:
    """Times passes as they run outside a step: without attention, of which each step learns by itself.

    Args:
        share: gives all ranks what the first of them has.
        clock: seconds.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        share: Callable[[Any], Any],
        clock: Callable[[], float],
    ) -> None:
        self._config = vllm_config
        self._device = vllm_config.device_config.device
        self._share = share
        self._clock = clock
        self._unsteady = self._timed = 0
        self._most_tokens: int = vllm_config.scheduler_config.max_num_batched_tokens
        self._most_requests: int = vllm_config.scheduler_config.max_num_seqs

    def profile(self, model: TieredModel) -> CostProfile:
        """Of all passes that a step may take. Passes are to have been compiled before."""
        with torch.inference_mode():
            verify = self._curve(lambda tokens: self._whole(model, tokens), self._most_tokens)
            draft = check = None
            if model.passes.draft is not None:
                draft = self._curve(lambda tokens: self._draft(model, tokens), self._most_requests)
            if model.passes.verifier:
                check = self._curve(lambda tokens: self._check(model, tokens), self._most_tokens)
        return CostProfile(verify=verify, draft=draft, check=check)

    def _curve(self, run: Callable[[int], Callable[[], Any]], most: int) -> Curve:
        found: dict[int, float] = {}
        spent = 0.0
        for size in _sizes(most):
            found[size] = self._seconds(run(size), size)
            spent += (1 + REPEATS) * found[size]
            if spent > BUDGET and len(found) > 2:
                break
        for _ in range(DOUBTS):
            for size in Curve.doubtful(found):
                found[size] = min(found[size], self._seconds(run(size), size))
        return Curve.timed(found)

    @property
    def steady(self) -> bool:
        """Whether the machine was quiet enough for the timings to be kept for later starts."""
        return self._unsteady <= self._timed // 4

    def _seconds(self, run: Callable[[], Any], tokens: int) -> float:
        taken = []
        with set_forward_context(None, self._config, num_tokens=tokens):
            run()
            for _ in range(REPEATS):
                self._wait()
                began = self._clock()
                run()
                self._wait()
                taken.append(self._clock() - began)
        self._timed += 1
        self._unsteady += sorted(taken)[REPEATS // 2] > STEADY * min(taken)
        seconds: float = self._share(max(min(taken), 1e-9))
        return seconds

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _inputs(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        zeros = torch.zeros(tokens, dtype=torch.int64, device=self._device)
        return zeros.to(torch.int32), zeros

    def _whole(self, model: TieredModel, tokens: int) -> Callable[[], Any]:
        inputs = self._inputs(tokens)
        if model.passes.whole is not None:
            return lambda: model.whole(*inputs)
        return lambda: warm_up.warm_tiers(model, *inputs)

    def _draft(self, model: TieredModel, tokens: int) -> Callable[[], Any]:
        inputs = self._inputs(tokens)
        memory = warm_up.memory_of(model, inputs[0])
        return lambda: model.draft(*inputs, memory)

    def _check(self, model: TieredModel, tokens: int) -> Callable[[], Any]:
        input_ids, positions = self._inputs(tokens)
        memory = warm_up.memory_of(model, input_ids)
        with set_forward_context(None, self._config, num_tokens=tokens):
            state = model.bottom(input_ids, positions)
        return lambda: model.verifier(positions, tuple(part.clone() for part in state), memory)


def _sizes(most: int) -> Sequence[int]:
    """Those that are timed, two at least: of one token Dynamo and a GPU's kernels may think otherwise than of many."""
    return [size for size in SIZES if size <= max(most, 2)]
