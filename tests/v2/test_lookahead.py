"""A round writes K + 1 KV slots past what was scheduled. With a slot less kept, it writes outside of its request's blocks."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.engines import Engines, tokens_of
from tests.e2e.prompts import STORY, encode
from tests.v2.engines import DRAFTS, OPTIONS, V2Engine
from vllm_kangaroo.integration.config.plan import EarlyExitV2VllmConfig
from vllm_kangaroo.integration.runner_v2.speculator import KangarooSpeculator

BLOCK = 32
PROMPTS = [encode("<|bos|>" + STORY)[: blocks * BLOCK - DRAFTS] for blocks in (1, 2)]
"""The last pass of the first round writes the first slot of the next block."""
ROOM: dict[str, Any] = {"max_model_len": 128, "max_num_seqs": 2, "num_gpu_blocks_override": 20}


def outside(engine: V2Engine, patch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Positions that drafting writes without a block of their request, noted as they are written."""
    found: list[tuple[str, int]] = []
    manager = engine.core.scheduler.kv_cache_manager
    place, eager = KangarooSpeculator._place, KangarooSpeculator._eager_round
    steps: list[Any] = []

    def note(self: Any, slots: Any, num_reqs: int) -> None:
        place(self, slots, num_reqs)
        for row, name in enumerate(steps[-1].req_ids[:num_reqs]):
            if self.writer[row] >= 0 and name in engine.core.scheduler.requests:
                position = int(self.input_buffers.positions[row])
                if position >= BLOCK * len(manager.get_block_ids(name)[0]):
                    found.append((name, position))

    def begin(self: Any, step: Any, *rest: Any) -> None:
        steps.append(step)
        eager(self, step, *rest)

    patch.setattr(KangarooSpeculator, "_place", note)
    patch.setattr(KangarooSpeculator, "_eager_round", begin)
    return found


@pytest.mark.parametrize(("kept", "faults"), [(DRAFTS + 1, False), (DRAFTS, True)])
def test_slots_lie_in_the_blocks_of_their_request(
    engines: Engines, kept: int, faults: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EarlyExitV2VllmConfig, "num_lookahead_tokens", property(lambda self: kept))
    # A seed of its own: engines of other lookahead are others.
    engine = engines.kangaroo(options=OPTIONS | {"confidence_threshold": 0.0}, seed=kept, **ROOM)
    assert isinstance(engine, V2Engine)
    found = outside(engine, monkeypatch)
    outputs = tokens_of(engine.generate(PROMPTS, max_tokens=8, ignore_eos=True))
    assert [len(own[0]) for own in outputs] == [8, 8]
    assert bool(found) == faults, found
    if faults:
        assert {position % BLOCK for _, position in found} == {0}
