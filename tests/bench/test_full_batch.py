"""A batch that stays full: what is counted of it, and that nothing is left of it."""

from collections.abc import Sequence
from typing import Any

import pytest

from tests.bench.fake_engine import FakeClock, FakeEngine
from vllm_kangaroo.bench.full_batch import needed, run_full_batch


class Full(FakeEngine):
    """May be given prompts while others run, and be told to drop some."""

    most = 0

    def add_request(self, name: str, prompt: dict[str, Sequence[int]], params: Any) -> None:
        self.reset = self.reset or bool(self.prompts)
        super().add_request(name, prompt, params)
        self._running[name] = self._running[name][: 1 + prompt["prompt_token_ids"][0]]
        self.most = max(self.most, len(self._running))

    def abort_request(self, names: list[str]) -> None:
        for name in names:
            del self._running[name]


@pytest.mark.parametrize(
    ("batch", "lengths", "tokens", "seconds"),
    [
        (1, [2, 3, 4], 3 + 4 + 5, 12.0),
        # The batch is full until the third place falls free with nobody waiting: one request more runs then.
        (2, [2, 5, 2, 1], 3 + 6 + 3, 6.0),
    ],
)
def test_the_time_in_which_it_was_full(
    batch: int, lengths: list[int], tokens: int, seconds: float
) -> None:
    clock = FakeClock()
    engine = Full(clock, 9)
    told = list[int]()
    found = run_full_batch(
        engine, [[each] for each in lengths], batch, None, advance=told.append, clock=clock
    )
    assert engine.most == batch
    assert found.speed.seconds == seconds
    assert found.speed.tokens == tokens
    assert not engine.has_unfinished_requests()
    assert sum(told) == len(lengths)
    assert found.latencies == [1.0 + each for each in lengths[: len(found.latencies)]]


def test_prompts_of_a_run() -> None:
    assert [needed(each) for each in (1, 2, 4, 64)] == [7, 8, 12, 192]
