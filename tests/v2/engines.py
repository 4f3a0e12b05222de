"""Engines on the V2 model runner, small enough for Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.e2e.engines import Engine, Gain, Totals, difference

SMALL: dict[str, Any] = {
    "max_model_len": 128,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 48,
    "num_gpu_blocks_override": 8,
}
"""Prompts come in pieces, and there are too few KV blocks for all."""
DRAFTS = 4
OPTIONS: dict[str, Any] = {"num_speculative_tokens": DRAFTS, "confidence_threshold": 0.3}


class V2Engine(Engine):
    """An ``LLM`` on the V2 runner, asynchronously scheduled."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        config = self.llm.llm_engine.vllm_config
        assert config.use_v2_model_runner
        assert config.scheduler_config.async_scheduling
        assert config.max_concurrent_batches == 2

    @property
    def speculator(self) -> Any:
        return self.runner.speculator

    @contextmanager
    def drafting(self) -> Iterator[Gain]:
        """Count what happens within; fails unless drafts were proposed and accepted, and whole steps were few."""
        gain, totals = Gain(), Totals(**vars(self.totals))
        counters = self.runner.early_exit_counters()
        yield gain
        for name, value in vars(self.totals).items():
            setattr(gain.totals, name, value - getattr(totals, name))
        gain.counters = difference(self.runner.early_exit_counters(), counters)
        assert gain.totals.accepted > 0, "no draft was accepted"
        assert gain.counters["proposed"] > gain.totals.accepted
        assert gain.counters["verifications"] > 0, "no step ran the upper layers alone"
