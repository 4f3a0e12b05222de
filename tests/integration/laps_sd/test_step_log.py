"""The log of engine steps that a simulation is fitted to."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.laps_sd.host import Host, make_scheduler
from vllm_kangaroo.laps_sd.policy_options import LapsSdError
from vllm_kangaroo.laps_sd.step_records import read_steps


def test_every_step_is_there_as_soon_as_it_is_done(tmp_path: Path) -> None:
    file = tmp_path / "steps.jsonl"
    host = Host(0, drafts=2, blocks=64, step_log=str(file))
    for length in (9, 12, 15):
        host.add([5] * length, max_tokens=40, ignore_eos=True)
    for step in range(1, 8):
        host.step()
        assert len(read_steps(file)) == step
    first, *_, last = read_steps(file)
    assert (first.requests, first.tokens, first.prompt_tokens, first.kv_tokens) == (3, 36, 36, 36)
    assert last.prompt_tokens == 0
    assert last.requests <= last.tokens <= last.requests * 3
    assert last.kv_tokens > 36
    host.scheduler.shutdown()
    another = make_scheduler(blocks=64, step_log=str(file))
    another.shutdown()
    assert len(read_steps(file)) == 7, "a new engine must add to the file"


def test_a_file_that_cannot_be_written_is_refused_at_start(tmp_path: Path) -> None:
    with pytest.raises(LapsSdError, match=r"\['step_log'\]=.*nowhere.* cannot be written"):
        make_scheduler(blocks=8, step_log=str(tmp_path / "nowhere" / "steps.jsonl"))
