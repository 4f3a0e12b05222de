"""What is learnt of drafts that are looked up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_kangaroo.drafting.lookup_trust import (
    MATCHES,
    PRIOR,
    SHARED,
    SHARES,
    TABLE,
    LookupTrust,
    class_of,
)


def test_classes() -> None:
    assert [class_of(match) for match in MATCHES] == list(range(TABLE))
    assert [class_of(match) for match in (6, 13, 14, 99)] == [4, 6, 7, 7]
    assert {len(each) for each in PRIOR} == {len(SHARES) + 1}


def test_more_votes_are_trusted_more() -> None:
    trust = LookupTrust()
    for kind in range(TABLE):
        shares = [trust.of_match(kind, share) for share in (0.1, 0.5, 0.7, 0.9, 1.0)]
        assert shares == sorted(shares) and shares == list(PRIOR[kind])


def test_a_class_is_learnt_without_the_others() -> None:
    trust = LookupTrust()
    before = [trust.of_match(kind, 1.0) for kind in range(TABLE)]
    for _ in range(50):
        trust.learn(2, 0.8, False)
        trust.learn(TABLE, 0.3, True)
    assert trust.of_match(2, 1.0) < 0.4 * before[2]
    assert trust.scaled(TABLE, 0.3) == pytest.approx(0.3 * 14 / 7, rel=0.02)
    assert [trust.of_match(kind, 1.0) for kind in (0, 1, 3)] == [before[at] for at in (0, 1, 3)]


@given(
    st.lists(st.tuples(st.integers(0, SHARED), st.floats(0.01, 1.0), st.booleans()), max_size=60)
)
def test_trust_stays_a_probability(rounds: list[tuple[int, float, bool]]) -> None:
    trust = LookupTrust()
    for kind, probability, right in rounds:
        trust.learn(kind, probability, right)
        found = trust.scaled(kind, 1.0) if kind >= TABLE else trust.of_match(kind, 0.5)
        assert 0.0 < found <= 1.0
