"""HiSpec's rounds against the paper's loop, one request at a time and from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.drafting.hispec_toy import VERDICTS, HiSpecToy, Settings
from tests.ladder.toy import VOCAB

tokens = st.integers(0, VOCAB - 1)
prompts = st.lists(st.lists(tokens, min_size=2, max_size=7), min_size=1, max_size=5)
exits = st.sampled_from([(1, 2, 3), (1, 3, 6), (2, 3, 5)])
verdicts = st.sampled_from(sorted(VERDICTS))
MOST = 7


def primed(toy: HiSpecToy, requests: dict[str, list[int]]) -> None:
    """Prefill all but the newest token of each request."""
    toy.complete({name: own[:-1] for name, own in requests.items()}, dict.fromkeys(requests, 0))
    toy.attention.computed.clear()


@pytest.mark.slow
@given(st.data(), prompts, exits, verdicts, st.integers(1, MOST), st.sampled_from([0.0, 0.6, 1.0]))
@settings(max_examples=150, deadline=None)
def test_buffers_are_those_of_the_papers_loop(
    data: st.DataObject,
    prompts: list[list[int]],
    exits: tuple[int, int, int],
    verdict: str,
    per_round: int,
    threshold: float,
) -> None:
    toy = HiSpecToy(exits, width=MOST + 1)
    toy.verdict = VERDICTS[verdict]
    requests = {f"request {at}": prompt for at, prompt in enumerate(prompts)}
    wanted = {
        name: Settings(
            limit=data.draw(st.integers(1, MOST)),
            per_round=per_round,
            threshold=threshold,
            verdict=toy.verdict,
            stop_ids=data.draw(st.frozensets(tokens, max_size=4)),
        )
        for name in requests
    }
    primed(toy, requests)
    drafts = toy.draft(requests, wanted)
    expected = [toy.reference(name, requests[name], wanted[name]) for name in requests]

    assert drafts.token_ids == [buffer.token_ids for buffer in expected]
    for own, buffer in zip(drafts.confidences, expected, strict=True):
        assert own == pytest.approx(buffer.confidences)
    # Each request takes part in as many intermediate verifications as it has rounds, from the first on.
    took_part = Counter(name for members in toy.rounds for name in members)
    assert [took_part[name] for name in requests] == [buffer.rounds for buffer in expected]
    assert toy.rounds == [
        [name for name in requests if took_part[name] > number] for number in range(len(toy.rounds))
    ]
    # No layer ran over anything but the drafts' sources, once per draft, and the top tier not at all.
    assert sorted(toy.attention.computed) == sorted(
        piece for buffer in expected for piece in buffer.work
    )
    # Tiers 1 and 2 end where the buffer's last token stands, tier 3 where it was.
    ends = [len(own) - 1 + len(b.token_ids) for own, b in zip(prompts, expected, strict=True)]
    frontiers = toy.ladder.frontiers[toy.ladder.slots(list(requests))]
    assert frontiers.tolist() == [
        [end, end, len(own) - 1] for end, own in zip(ends, prompts, strict=True)
    ]
    counters = toy.ladder.counters
    drafted = sum(buffer.drafted for buffer in expected)
    prefilled = sum(len(own) - 1 for own in prompts)
    assert counters.drafted == drafted
    assert counters.rounds == len(prompts)
    assert counters.positions == [prefilled + drafted, prefilled + drafted, prefilled]
    kept = sum(len(buffer.token_ids) for buffer in expected)
    assert counters.dropped == [drafted - kept, drafted - kept, 0]
    assert counters.passes[1] == 1 + len(toy.rounds)


@pytest.mark.slow
@given(prompts, exits, verdicts, st.integers(1, 4), st.integers(1, MOST), st.integers(5, 20))
@settings(max_examples=60, deadline=None)
def test_output_is_the_full_models_whatever_the_intermediate_verifier_says(
    prompts: list[list[int]],
    exits: tuple[int, int, int],
    verdict: str,
    per_round: int,
    limit: int,
    count: int,
) -> None:
    toy = HiSpecToy(exits, width=MOST + 1)
    toy.verdict = VERDICTS[verdict]
    produced, _ = generate(toy, prompts, Settings(limit, per_round), count)
    assert produced == [toy.greedy(prompt, count) for prompt in prompts]
    counters = toy.ladder.counters
    assert counters.positions == [counters.verified + dropped for dropped in counters.dropped]
    # Nothing that was kept is computed again: a verification brings one new position to tiers 1 and 2.
    assert counters.dropped[2] == 0


@pytest.mark.parametrize("verdict", ["honest", "accepts all"])
def test_drafts_are_accepted(verdict: str) -> None:
    """The toy's exits agree often enough for the tests above to see acceptance."""
    toy = HiSpecToy((1, 3, 6), width=5)
    toy.verdict = VERDICTS[verdict]
    _, accepted = generate(toy, [[3, 1], [4, 2, 9], [7, 7]], Settings(4, 2), 24)
    assert 20 < accepted < 60
    assert toy.ladder.counters.reused[0] > 0 and toy.ladder.counters.reused[1] > 0


def test_an_intermediate_rejection_costs_no_pass_and_its_token_is_drafted_from() -> None:
    toy = HiSpecToy((1, 3, 6), width=5)
    toy.verdict = VERDICTS["accepts none"]
    primed(toy, {"a": [3, 1, 4]})
    drafts = toy.draft({"a": [3, 1, 4]}, {"a": Settings(limit=4, per_round=2)})
    # Two drafts a round of which the first is replaced: four rounds for four tokens, the last of one draft.
    assert len(toy.rounds) == 4
    assert toy.ladder.counters.draft_steps == 7
    assert toy.ladder.counters.passes == [1 + 7, 1 + 4, 1]
    assert toy.ladder.counters.dropped == [3, 3, 0]
    assert toy.ladder.counters.replaced == toy.ladder.counters.checks == 4
    assert drafts.confidences == [[1.0] * 4]
    context = [3, 1, 4]
    for token in drafts.token_ids[0]:
        assert token == (toy.next_token(1, context)[0] + 1) % VOCAB
        context.append(token)


def test_requests_that_are_done_leave_and_the_others_go_on() -> None:
    toy = HiSpecToy((1, 3, 6), width=5)
    none, every = VERDICTS["accepts none"], VERDICTS["accepts all"]
    toy.verdict = lambda name, *rest: (none if name == "slow" else every)(name, *rest)
    requests = {"quick": [3, 1], "slow": [4, 2, 9], "short": [7, 7]}
    wanted = {name: Settings(limit=4, per_round=2) for name in requests}
    wanted["short"].limit = 1
    primed(toy, requests)
    toy.draft(requests, wanted)
    assert toy.rounds == [["quick", "slow", "short"], ["quick", "slow"], ["slow"], ["slow"]]


@pytest.mark.parametrize("own_token", [False, True])
def test_a_stop_token_ends_the_buffer(own_token: bool) -> None:
    """Drafted and agreed on, or put there by the intermediate verifier."""
    toy = HiSpecToy((1, 3, 6), width=8)
    requests = {"a": [3, 1, 4]}
    primed(toy, requests)
    first, _ = toy.next_token(1, [3, 1, 4])
    stop = (first + 1) % VOCAB if own_token else first
    toy.verdict = VERDICTS["accepts none" if own_token else "accepts all"]
    drafts = toy.draft(requests, {"a": Settings(limit=7, per_round=3, stop_ids=(stop,))})
    assert drafts.token_ids == [[stop]]
    # A drafted stop token ends its chain at once; the verifier's own shows only after three drafts.
    assert toy.ladder.counters.drafted == (3 if own_token else 1)
    assert toy.ladder.frontiers[toy.ladder.slots(["a"])].tolist() == [[3, 3, 2]]


def generate(
    toy: HiSpecToy, prompts: list[list[int]], wanted: Settings, count: int
) -> tuple[list[list[int]], int]:
    """Rounds of drafting and verification to ``count`` tokens each; the tokens, and how many were drafts."""
    requests = {f"request {at}": list(prompt) for at, prompt in enumerate(prompts)}
    going = dict(requests)
    ends = {name: len(own) + count for name, own in requests.items()}
    starts = dict.fromkeys(requests, 0)
    buffers: dict[str, list[int]] = {name: [] for name in requests}
    accepted = 0
    while going:
        whole = {name: own + buffers[name] for name, own in going.items()}
        for (name, own), hidden in zip(going.items(), toy.complete(whole, starts), strict=True):
            drafts = buffers[name]
            verdicts = toy.head(hidden)[0].tolist()[-1 - len(drafts) :]
            agreed = next(
                (i for i, token in enumerate(drafts) if verdicts[i] != token), len(drafts)
            )
            accepted += agreed
            own += verdicts[: agreed + 1]
            starts[name] = len(own) - 1
        newest = np.array([starts[name] for name in going])
        slots = toy.ladder.slots(list(going))
        toy.ladder.rewind(slots, newest)
        toy.ladder.at_rest(slots, newest)
        for name in [name for name, own in going.items() if len(own) == ends[name]]:
            toy.ladder.close(name)
            del going[name]
        limits = {name: min(wanted.limit, ends[name] - len(own) - 1) for name, own in going.items()}
        drafting = {name: own for name, own in going.items() if limits[name] > 0}
        buffers = {name: [] for name in going}
        if drafting:
            each = {name: Settings(limits[name], wanted.per_round) for name in drafting}
            buffers |= zip(drafting, toy.draft(drafting, each).token_ids, strict=True)
    return [own[-count:] for own in requests.values()], accepted


class Coin:
    """A pace that ends rounds at will, and remembers what it was told."""

    checks = True

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.told: list[tuple[int, int, int]] = []

    def keep(self, places: Sequence[int], confidences: Sequence[float], may: Sequence[bool]) -> Any:
        return may

    def another(
        self,
        places: Sequence[int],
        drafted: Sequence[int],
        agreed: Sequence[int],
        gained: Sequence[int],
        may: Sequence[bool],
    ) -> list[bool]:
        self.told += zip(drafted, agreed, gained, strict=True)
        return [allowed and self.random.random() < 0.6 for allowed in may]


@given(prompts, exits, verdicts, st.integers(1, MOST), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_a_pace_ends_buffers_between_rounds(
    prompts: list[list[int]],
    exits: tuple[int, int, int],
    verdict: str,
    per_round: int,
    seed: int,
) -> None:
    """What is in a buffer is what it would hold without one, up to some round."""
    toy = HiSpecToy(exits, width=MOST + 1)
    toy.verdict = VERDICTS[verdict]
    requests = {f"request {at}": prompt for at, prompt in enumerate(prompts)}
    wanted = {name: Settings(MOST, per_round, verdict=toy.verdict) for name in requests}
    primed(toy, requests)
    toy.pace = pace = Coin(seed)
    drafts = toy.draft(requests, wanted)
    for name, own in zip(requests, drafts.token_ids, strict=True):
        whole = toy.reference(name, requests[name], wanted[name]).token_ids
        assert own == whole[: len(own)]
        assert own
    assert sum(gained for _, _, gained in pace.told) == sum(map(len, drafts.token_ids))
    for drafted, agreed, gained in pace.told:
        assert agreed <= drafted and gained == agreed + (agreed < drafted)


def test_a_pace_may_leave_the_verifier_out() -> None:
    """The drafts of the first exit then stand as they are, for the full model to verify."""
    toy = HiSpecToy((1, 2, 4), width=MOST + 1)
    requests = {"a": [1, 2, 3, 4]}
    primed(toy, requests)
    toy.pace = pace = Coin(0)
    pace.checks = False
    wanted = {"a": Settings(MOST, 1)}
    drafts = toy.propose(requests, wanted)
    assert len(drafts.token_ids[0]) == MOST
    assert not pace.told and not toy.rounds
    verified = toy.complete({"a": [*requests["a"], *drafts.token_ids[0]]}, {"a": 3})
    assert len(verified) == 1
