"""The learner learns, falls back while it knows nothing, and survives a restart."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from vllm_kangaroo.laps_sd.learned import LearnedLengths
from vllm_kangaroo.laps_sd.lengths import RequestFacts
from vllm_kangaroo.laps_sd.policy_options import LapsSdError


def stream(count: int, seed: int) -> list[tuple[RequestFacts, int]]:
    """Two kinds of prompts, told apart by how they begin: short answers and long ones."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        long = bool(rng.integers(2))
        body = rng.integers(100, 4000, int(rng.integers(10, 60))).tolist()
        prompt = [7, 8, 9, *body] if long else [17, 18, 19, *body]
        length = int(rng.normal(600, 50) if long else rng.normal(20, 3))
        found.append((RequestFacts(len(prompt), 2048, prompt), max(length, 1)))
    return found


def taught(count: int, file: Path | None = None) -> LearnedLengths:
    found = LearnedLengths(min_history=100, file=file)
    for facts, length in stream(count, seed=0):
        found.learn(facts, length)
    return found


def test_tells_short_answers_from_long_ones():
    found = taught(640)
    for facts, length in stream(50, seed=1):
        expected = found.predict(facts).remaining(0)
        assert (expected > 300) == (length > 300)
    # A short one that goes on is no longer expected to be short.
    short = next(facts for facts, length in stream(50, seed=1) if length < 100)
    assert found.predict(short).remaining(100) > 100


def test_answers_empirically_until_it_has_seen_enough():
    found = taught(96)
    found_alike = {id(found.predict(facts)) for facts, _ in stream(20, seed=1)}
    assert len(found_alike) == 1
    assert found_alike == {id(found.empirical.predict(stream(1, seed=1)[0][0]))}


def test_requests_leave_nothing_behind():
    """Once it has learnt, it is as large after a thousand requests as after a hundred more."""
    found = taught(128)
    before = len(pickle.dumps(found))
    for facts, length in stream(1024, seed=4):
        found.learn(facts, length)
    assert found.learnt == 1152
    assert abs(len(pickle.dumps(found)) - before) < 100  # a counter may need a byte more


def test_goes_on_after_a_restart_where_it_was(tmp_path: Path):
    file = tmp_path / "deep" / "lengths.npz"
    first = taught(512, file)
    first.save()
    second = LearnedLengths(min_history=100, file=file)
    assert second.learnt == first.learnt == 512
    more = stream(64, seed=2)
    for facts, length in more:
        first.learn(facts, length)
        second.learn(facts, length)
    for facts, _ in stream(20, seed=3):
        one, other = (each.predict(facts).remaining(0) for each in (first, second))
        assert np.isclose(one, other, rtol=0.1)


def test_saves_by_itself(tmp_path: Path):
    file = tmp_path / "lengths.npz"
    taught(LearnedLengths.SAVE_EVERY, file)
    assert file.exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04torn"])
def test_torn_file_is_refused_by_name(tmp_path: Path, content: bytes):
    file = tmp_path / "lengths.npz"
    file.write_bytes(content)
    with pytest.raises(LapsSdError, match=r"predictor_file=.*lengths\.npz.*delete it"):
        LearnedLengths(file=file)
