"""Drafts that are looked up: what is proposed, and when it is trusted."""

from __future__ import annotations

import random

import numpy as np
import pytest

from tests.drafting.test_ngram_table import table
from vllm_kangaroo.drafting.lookup import AGREED, CONTRADICTED, Lookups, RequestLookup
from vllm_kangaroo.drafting.lookup_options import LookupOptions
from vllm_kangaroo.ladder.counters import LadderCounters

ANY = LookupOptions(confidence_threshold=0.0)


def proposed(tokens: list[int], most: int) -> list[int]:
    """Drafts behind a text, whatever they are worth."""
    lookup = RequestLookup(ANY)
    lookup.observe(tokens)
    return lookup.propose(most)


def test_a_longer_match_is_preferred_to_a_newer_one() -> None:
    text = [1, 2, 3, 50, 60, 70, 9, 2, 3, 80, 90, 1, 2, 3]
    assert proposed(text, 4) == [50, 60, 70, 9]
    assert proposed([*text, 50], 4) == [60, 70, 9, 2]


def test_what_followed_more_often_is_preferred() -> None:
    text = [1, 2, 50, 1, 2, 50, 7, 1, 2, 60, 1, 2]
    assert proposed(text, 1) == [50]
    assert proposed([*text, 60, 1, 2, 60, 8, 1, 2], 1) == [60]


def test_a_repetition_is_drafted() -> None:
    text = [5, 6, 7, 8, 9, 1, 5, 6, 7]
    assert proposed(text, 6) == [8, 9, 1, 5, 6, 7]
    assert proposed(text, 9) == [8, 9, 1, 5, 6, 7, 8, 9, 1], "it goes on as it did"
    assert proposed(text, 2) == [8, 9]
    assert proposed(text, 0) == []


def test_a_loop_is_drafted_on() -> None:
    assert proposed([7, 1, 2, 1, 2, 1], 6) == [2, 1, 2, 1, 2, 1]
    assert proposed([7, 1, 2, 5, 5, 5], 6) == [5] * 6


def test_a_table_speaks_where_the_text_is_silent() -> None:
    follows = table({(7,): (8, 128), (7, 8): (9, 204), (1, 2): (60, 230)})
    lookup = RequestLookup(ANY, follows)
    lookup.observe([3, 7])
    assert lookup.propose(6) == [8, 9]
    first, second = 128 / 255, 204 / 255
    assert lookup.survivals == pytest.approx([first, first * second])
    assert RequestLookup(ANY).propose(6) == []


def test_two_sources_that_agree_are_likelier_and_less_likely_if_they_do_not() -> None:
    def survival(*votes: tuple[int, int]) -> tuple[list[int], list[float]]:
        known = table({(1, 2): votes[0]}) if votes else None
        lookup = RequestLookup(ANY, known)
        lookup.observe([1, 2, 50, 9, 1, 2])
        return lookup.propose(1), lookup.survivals

    alone, (likely,) = survival()
    assert alone == [50]
    assert survival((50, 51)) == ([50], [pytest.approx(likely + AGREED * (1 - likely) * 0.2)])
    assert survival((60, 51)) == ([50], [pytest.approx(likely * CONTRADICTED)])
    assert survival((60, 240)) == ([60], [pytest.approx(240 / 255 * CONTRADICTED)])


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
    assert tried[0.5] < 0.2 * tried[0.0]


def test_a_match_that_is_not_trusted_comes_to_be() -> None:
    """Drafts are learnt from whether they are proposed or not."""
    lookup = RequestLookup(LookupOptions(confidence_threshold=0.7))
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


def test_drafts_that_were_not_reached_teach_nothing() -> None:
    lookup = RequestLookup(ANY)
    lookup.observe([5, 6, 7, 8, 9, 1, 5, 6, 7])
    lookup.propose(6)
    before = [lookup.trust.of_match(kind, 1.0) for kind in range(8)]
    lookup.observe([4])
    after = [lookup.trust.of_match(kind, 1.0) for kind in range(8)]
    assert [at for at in range(8) if after[at] != before[at]] == [2], "a match of three"


def test_what_is_observed_after_a_proposal_was_accepted_but_for_the_last() -> None:
    lookup = RequestLookup(ANY)
    assert lookup.observe([5, 6, 7, 8, 9, 1, 5, 6, 7]) == 0
    assert lookup.propose(6) == [8, 9, 1, 5, 6, 7]
    assert lookup.observe([8, 9, 4]) == 2
    assert lookup.propose(6) == []
    assert lookup.observe([50]) == 0
    assert lookup.observe([6, 7]) == 0, "drafts of something else"


def test_drafts_are_cut_where_they_are_too_unlikely() -> None:
    text = [5, 6, 7, 8, 9, 1, 5, 6, 7]
    lookup = RequestLookup(ANY)
    lookup.observe(text)
    lookup.propose(6)
    chances = lookup.survivals
    assert len(chances) == 6 and chances == sorted(chances, reverse=True)
    half = RequestLookup(LookupOptions(confidence_threshold=0.5))
    half.observe(text)
    assert half.propose(6) == [8, 9, 1, 5, 6, 7][: sum(one >= 0.5 for one in chances)]
    assert 0 < len(half.survivals) < 6


def test_short_matches_stop_tokens_and_limits() -> None:
    text = [5, 6, 7, 8, 9, 1, 2, 5, 6, 7, 8]
    expected = {1: [9, 1, 2, 5, 6, 7], 4: [9, 1, 2, 5, 6, 7], 5: []}
    for least, drafts in expected.items():
        lookup = RequestLookup(LookupOptions(prompt_lookup_min=least, confidence_threshold=0.0))
        lookup.observe(text)
        assert lookup.propose(6) == drafts
    lookup = RequestLookup(ANY)
    lookup.observe([*text, 9, 1])
    assert lookup.propose(3) == [2, 5, 6]
    assert lookup.propose(6, {5, None}) == [2, 5]
    assert lookup.propose(6, {2}) == [2]
    assert lookup.propose(0) == []


def test_a_request_that_begins_anew_is_forgotten() -> None:
    lookups = Lookups(ANY, LadderCounters.for_tiers(2))

    def propose(*tokens: int) -> list[int]:
        return lookups.propose("it", np.array(tokens, dtype=np.int32), 6)

    assert propose(1, 2, 3, 1, 2) == [3, 1, 2, 3, 1, 2]
    assert propose(1, 2, 3) == [], "shorter than before"
    assert propose(1, 2, 4, 7, 2, 4) == [7, 2, 4, 7, 2, 4], "another text"
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
