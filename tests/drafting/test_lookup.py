"""Drafts from a request's own text, against a plain search, and when they are trusted."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from vllm_kangaroo.drafting.lookup import (
    BANDS,
    LONGEST,
    LookupIndex,
    LookupTrust,
    RequestLookup,
    band_of,
)


def searched(tokens: list[int], most: int) -> tuple[list[int], int]:
    """The same by looking at every place: the last earlier occurrence of the newest pair."""
    if len(tokens) < 2:
        return [], 0
    for place in range(len(tokens) - 1, 1, -1):
        if tokens[place - 2 : place] == tokens[-2:]:
            match = 2
            while match < min(LONGEST, place) and tokens[place - match - 1] == tokens[-match - 1]:
                match += 1
            return tokens[place : place + min(most, match)], match
    return [], 0


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 6))
def test_the_index_finds_what_a_search_finds(tokens: list[int], most: int) -> None:
    index = LookupIndex()
    for at in range(len(tokens)):
        index.extend(tokens[at : at + 1])
        assert index.find(most) == searched(tokens[: at + 1], most)


def test_a_repetition_is_drafted() -> None:
    index = LookupIndex()
    index.extend([5, 6, 7, 8, 9, 1, 5, 6, 7])
    assert index.find(6) == ([8, 9, 1], 3)
    assert index.find(2) == ([8, 9], 3)
    assert index.find(0) == ([], 0)


def test_bands() -> None:
    assert [band_of(match) for match in (2, 3, 4, 5, 8, 9, LONGEST)] == [0, 1, 1, 2, 2, 3, 3]
    assert len(BANDS) == 4


@given(st.lists(st.tuples(st.integers(2, LONGEST), st.integers(0, 6)), max_size=50))
def test_trust_stays_a_probability(rounds: list[tuple[int, int]]) -> None:
    trust = LookupTrust()
    for match, accepted in rounds:
        trust.learn(match, accepted)
        assert 0.0 <= trust.share(match) <= 1.0


def play(text: list[int], answer: list[int], least: float) -> tuple[int, int]:
    """Rounds and accepted drafts of a request whose answer is known."""
    lookup = RequestLookup(least)
    done, rounds, accepted = 0, 0, 0
    while done < len(answer):
        drafts = lookup.propose(text + answer[:done], 6)
        agreed = 0
        while agreed < len(drafts) and answer[done + agreed : done + agreed + 1] == [
            drafts[agreed]
        ]:
            agreed += 1
        accepted += agreed
        rounds += 1
        done += agreed + 1
    return rounds, accepted


def test_a_quotation_is_quick_and_noise_costs_no_drafts() -> None:
    rng = random.Random(0)
    text = [rng.randrange(400) for _ in range(300)]
    rounds, accepted = play(text, text[20:220], 0.5)
    assert accepted > 150 and rounds < 60
    noise = [rng.randrange(3) for _ in range(400)]
    tried = {}
    for least in (0.0, 0.5):
        lookup = RequestLookup(least)
        tried[least] = sum(bool(lookup.propose(noise[: at + 1], 6)) for at in range(len(noise)))
    # Matches of noise are long now and then, and their next token is wrong two times of three.
    assert tried[0.5] < 0.3 * tried[0.0]
