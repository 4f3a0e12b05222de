"""What requests learn of each other's answers."""

from __future__ import annotations

import random

import numpy as np
import pytest

from vllm_kangaroo.drafting.lookup import Lookups
from vllm_kangaroo.drafting.lookup_options import LookupOptions
from vllm_kangaroo.drafting.ngram_table import LONGEST
from vllm_kangaroo.drafting.shared_ngrams import ONCE, SharedNgrams
from vllm_kangaroo.ladder.counters import LadderCounters


def learnt(*texts: list[int], most: int = 1000) -> SharedNgrams:
    shared = SharedNgrams(most)
    for text in texts:
        shared.learn(text, 0)
    return shared


def test_the_longest_context_answers() -> None:
    shared = learnt([9, 5, 6, 7], [8, 5, 6, 4])
    assert shared.after([9, 5, 6]) == (7, ONCE[3])
    assert shared.after([8, 5, 6]) == (4, ONCE[3])
    assert shared.after([9, 5]) == (6, ONCE[2])
    assert shared.after([5]) == (6, pytest.approx((2 - 0.5) / (2 + 0.6)))
    assert shared.after([7]) is None and shared.after([]) is None


def test_a_majority_stays_and_a_minority_goes() -> None:
    shared = learnt([1, 2], [1, 2], [1, 3])
    assert shared.after([1]) == (2, pytest.approx(0.5 / 3.6))
    shared.learn([1, 3], 0)
    assert shared.after([1]) == (3, pytest.approx(0.5 / 4.6))
    shared.learn([1, 3], 0)
    assert shared.after([1]) == (3, pytest.approx(1.5 / 5.6))


def test_tokens_before_the_answer_are_contexts_alone() -> None:
    shared = SharedNgrams(1000)
    shared.learn([1, 2, 3, 4], 3)
    assert shared.after([1, 2, 3]) == (4, ONCE[3])
    assert shared.after([1, 2]) is None and shared.after([1]) is None
    assert len(shared) == 3


def test_what_was_not_touched_the_longest_is_forgotten() -> None:
    shared = learnt([1, 2], [3, 4], [5, 6], most=3)
    shared.learn([1, 2], 0)
    shared.learn([7, 8], 0)
    assert len(shared) == 3
    assert [shared.after([one]) is None for one in (1, 3, 5, 7)] == [False, True, False, False]


def test_one_request_drafts_what_another_was_answered() -> None:
    rng = random.Random(3)
    answer = [rng.randrange(5000) for _ in range(60)]
    options = {"confidence_threshold": 0.1, "shared_contexts": 1000}
    lookups = Lookups(LookupOptions(**options), LadderCounters.for_tiers(2))  # type: ignore[arg-type]
    apart = Lookups(LookupOptions(confidence_threshold=0.1), LadderCounters.for_tiers(2))

    def write(name: str, into: Lookups) -> int:
        """An answer step by step; how many steps it takes."""
        done, steps = 1, 0
        while done < len(answer):
            text = np.array([*range(7000, 7010), *answer[:done]], dtype=np.int32)
            drafts = into.propose(name, text, 6)
            right = 0
            while right < len(drafts) and answer[done + right : done + right + 1] == [
                drafts[right]
            ]:
                right += 1
            done += right + 1
            steps += 1
        into.drop(name)
        return steps

    assert [write(name, apart) for name in "ab"] == [59, 59]
    assert write("a", lookups) == 59
    assert write("b", lookups) < 30 and write("c", lookups) < 20
    assert lookups.shared is not None and apart.shared is None
    assert len(lookups.shared) <= LONGEST * len(answer)
