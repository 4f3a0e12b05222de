"""Drafts from a request's own text, against a plain search, and when they are trusted."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vllm_kangaroo.drafting.lookup import (
    BANDS,
    LONGEST,
    PLACES,
    LookupIndex,
    Lookups,
    LookupTrust,
    RequestLookup,
    band_of,
)
from vllm_kangaroo.drafting.lookup_options import LookupOptions
from vllm_kangaroo.ladder.counters import LadderCounters


def searched(tokens: list[int], most: int) -> tuple[list[int], int]:
    """The same by looking at every place where the newest pair stood before: the longest match, the newest of equals.

    Twice as many tokens as match follow, read from a text to which they are added one by one.
    """
    places = [at for at in range(len(tokens) - 1, 1, -1) if tokens[at - 2 : at] == tokens[-2:]]
    longest, best = 0, 0
    for place in places[:PLACES]:
        match = 2
        while match < min(LONGEST, place) and tokens[place - match - 1] == tokens[-match - 1]:
            match += 1
        if match > longest:
            longest, best = match, place
    text = list(tokens)
    for at in range(min(most, 2 * longest)):
        text.append(text[best + at])
    return text[len(tokens) :], longest


@given(st.lists(st.integers(0, 3), max_size=80), st.integers(1, 6))
def test_the_index_finds_what_a_search_finds(tokens: list[int], most: int) -> None:
    index = LookupIndex()
    for at in range(len(tokens)):
        index.extend(tokens[at : at + 1])
        assert index.find(most) == searched(tokens[: at + 1], most)
    at_once = LookupIndex()
    at_once.extend(tokens)
    assert at_once.find(most) == index.find(most)


def test_a_longer_match_is_preferred_to_a_newer_one() -> None:
    index = LookupIndex()
    index.extend([1, 2, 3, 50, 60, 70, 9, 2, 3, 80, 90, 1, 2, 3])
    assert index.find(4) == ([50, 60, 70, 9], 3)
    index.extend([50])
    assert index.find(4) == ([60, 70, 9, 2], 4)


def test_a_repetition_is_drafted() -> None:
    index = LookupIndex()
    index.extend([5, 6, 7, 8, 9, 1, 5, 6, 7])
    assert index.find(6) == ([8, 9, 1, 5, 6, 7], 3)
    assert index.find(9) == ([8, 9, 1, 5, 6, 7], 3)
    assert index.find(2) == ([8, 9], 3)
    assert index.find(0) == ([], 0)


def test_a_loop_is_drafted_on() -> None:
    index = LookupIndex()
    index.extend([7, 1, 2, 1, 2, 1])
    assert index.find(6) == ([2, 1, 2, 1, 2, 1], 3)
    index.extend([5, 5, 5])
    assert index.find(6) == ([5, 5, 5, 5], 2)


def test_bands() -> None:
    assert [band_of(match) for match in (2, 3, 4, 5, 8, 9, LONGEST)] == [0, 1, 1, 2, 2, 3, 3]
    assert len(BANDS) == 4


@given(st.lists(st.tuples(st.integers(2, LONGEST), st.booleans()), max_size=50))
def test_trust_stays_a_probability(rounds: list[tuple[int, bool]]) -> None:
    trust = LookupTrust()
    for match, right in rounds:
        trust.learn(match, right)
        assert 0.0 <= trust.share(match) <= 1.0


def play(text: list[int], answer: list[int], least: float) -> tuple[int, int, int]:
    """Rounds, drafts and accepted drafts of a request whose answer is known, as an engine would have them."""
    counters = LadderCounters.for_tiers(2)
    lookups = Lookups(LookupOptions(confidence_threshold=least), counters)
    whole = np.array([*text, *answer, -1], dtype=np.int32)
    done, rounds, accepted = 0, 0, 0
    while done < len(answer):
        tokens = whole[: len(text) + done]
        drafts = lookups.propose("it", tokens, 6)
        agreed = 0
        while agreed < len(drafts) and answer[done + agreed : done + agreed + 1] == [
            drafts[agreed]
        ]:
            agreed += 1
        accepted += agreed
        rounds += 1
        done += agreed + 1
    assert lookups.propose("it", whole[: len(text) + done], 0) == []
    assert counters.lookup_accepted == accepted
    assert counters.lookup_rounds <= rounds
    return rounds, counters.lookup_drafted, accepted


def test_a_quotation_is_quick_and_noise_costs_no_drafts() -> None:
    rng = random.Random(0)
    text = [rng.randrange(400) for _ in range(300)]
    rounds, _, accepted = play(text, text[20:220], 0.5)
    assert accepted > 150 and rounds < 60
    noise = [rng.randrange(3) for _ in range(400)]
    tried = {least: play(noise[:1], noise[1:], least)[1] for least in (0.0, 0.5)}
    # Matches of noise are long now and then, and their next token is wrong two times of three.
    assert tried[0.5] < 0.3 * tried[0.0]


def test_a_match_that_is_not_trusted_comes_to_be() -> None:
    """Pairs are worth little by the prior; where what follows them is right, they are drafted from all the same."""
    lookup = RequestLookup(LookupOptions(confidence_threshold=0.5))
    rng = random.Random(1)
    phrases = [(1000 + at, 2000 + at, 3000 + at) for at in range(12)]
    lookup.observe([token for phrase in phrases for token in (*phrase, rng.randrange(900))])
    drafted = []
    for first, second, third in phrases:
        lookup.observe([rng.randrange(900)])
        lookup.observe([first])
        lookup.observe([second])
        drafted.append(lookup.propose(6)[:1])
        assert drafted[-1] in ([], [third])
        lookup.observe([third])
    assert drafted[0] == [] and drafted[-1] == [phrases[-1][-1]]
    assert lookup.trust.share(2) > 0.5


def test_what_is_observed_after_a_proposal_was_accepted_but_for_the_last() -> None:
    lookup = RequestLookup(LookupOptions(confidence_threshold=0.0))
    assert lookup.observe([5, 6, 7, 8, 9, 1, 5, 6, 7]) == 0
    assert lookup.propose(6) == [8, 9, 1, 5, 6, 7]
    assert lookup.observe([8, 9, 4]) == 2
    assert lookup.propose(6) == []
    assert lookup.observe([5]) == 0
    assert lookup.observe([6, 7]) == 0, "drafts of something else"


def test_short_matches_stop_tokens_and_limits() -> None:
    text = [5, 6, 7, 8, 9, 1, 2, 5, 6, 7, 8]
    expected = {2: [9, 1, 2, 5, 6, 7], 4: [9, 1, 2, 5, 6, 7], 5: []}
    for least, drafts in expected.items():
        lookup = RequestLookup(LookupOptions(prompt_lookup_min=least, confidence_threshold=0.0))
        lookup.observe(text)
        assert lookup.propose(6) == drafts
    lookup = RequestLookup(LookupOptions())
    lookup.observe([*text, 9, 1])
    assert lookup.propose(3) == [2, 5, 6]
    assert lookup.propose(6, {5, None}) == [2, 5]
    assert lookup.propose(6, {2}) == [2]
    assert lookup.propose(0) == []


def test_a_request_that_begins_anew_is_forgotten() -> None:
    lookups = Lookups(LookupOptions(confidence_threshold=0.0), LadderCounters.for_tiers(2))

    def propose(*tokens: int) -> list[int]:
        return lookups.propose("it", np.array(tokens, dtype=np.int32), 6)

    assert propose(1, 2, 3, 1, 2) == [3, 1, 2, 3]
    assert propose(1, 2, 3) == [], "shorter than before"
    assert propose(1, 2, 4, 7, 2, 4) == [7, 2, 4, 7], "another text"
    assert len(lookups) == 1
    lookups.drop("it")
    lookups.drop("another")
    assert len(lookups) == 0
    assert propose(7, 2) == []


def test_every_rank_finds_the_same() -> None:
    rng = random.Random(2)
    text = np.array([rng.randrange(5) for _ in range(300)], dtype=np.int32)
    ranks = [Lookups(LookupOptions(), LadderCounters.for_tiers(2)) for _ in range(2)]
    for at in range(1, len(text)):
        first, second = (rank.propose("it", text[:at], 4) for rank in ranks)
        assert first == second
