"""From outputs to figures."""

import io

from rich.console import Console

from vllm_kangaroo.bench import summary
from vllm_kangaroo.bench.bench_results import BenchResult, Divergence, Setup, Speed
from vllm_kangaroo.bench.generation import Generation
from vllm_kangaroo.bench.ladder_cost import LadderCost
from vllm_kangaroo.bench.prompts import Prompt
from vllm_kangaroo.bench.report import print_result
from vllm_kangaroo.bench.rounds import Pass, RoundOutputs
from vllm_kangaroo.bench.statistics import Acceptance, Spread
from vllm_kangaroo.provenance import of_measurement

PROMPTS = [
    Prompt.of_text("a", "text", "qa"),
    Prompt.of_text("b", "text", "math"),
    Prompt.of_text("c", "text", "qa"),
]


def one_pass(outputs: list[list[int]], seconds: list[float] | None, accepted: int = 0) -> Pass:
    generations = [
        Generation(tokens, [], Acceptance(steps=2, drafted=4, accepted=accepted))
        for tokens in outputs
    ]
    if seconds is None:
        return Pass(generations, None, Speed(tokens=12, seconds=1.0))
    speeds = [Speed(tokens=4, seconds=each) for each in seconds]
    return Pass(generations, speeds, sum(speeds, Speed()))


def two_rounds(*, apart: bool = True) -> list[RoundOutputs]:
    same = [[1, 2, 3, 4]] * 3
    other = [[1, 2, 3, 4], [1, 2, 9, 4], [1, 2, 3, 4]]
    slow, quick = ([4.0, 2.0, 4.0], [2.0, 2.0, 2.0]) if apart else (None, None)
    return [
        RoundOutputs(one_pass(same, slow), one_pass(same, quick, 2), drafting_first=False),
        RoundOutputs(one_pass(same, slow), one_pass(other, quick, 2), drafting_first=True),
    ]


def test_one_difference_in_any_round_counts():
    found = summary.equality(PROMPTS, two_rounds())
    assert (found.prompts, found.identical, found.plain_repeats) == (3, 2, 3)
    assert found.divergences == [Divergence(prompt="b", index=1, round=1, token=2, of=4)]


def test_plain_engine_that_does_not_repeat_itself_is_told():
    rounds = two_rounds()
    rounds[1].plain.outputs[0].token_ids = [7]
    assert summary.equality(PROMPTS, rounds).plain_repeats == 2


def test_categories_have_their_own_time_and_acceptance():
    rounds = two_rounds()
    found = {
        one.name: one
        for one in summary.categories(PROMPTS, rounds, summary.equality(PROMPTS, rounds))
    }
    assert list(found) == ["qa", "math"]
    assert found["qa"].speedup == Spread(median=2.0, low=2.0, high=2.0)
    assert found["math"].speedup == Spread(median=1.0, low=1.0, high=1.0)
    assert (found["qa"].prompts, found["qa"].identical) == (2, 2)
    assert (found["math"].prompts, found["math"].identical) == (1, 0)
    assert found["qa"].acceptance == Acceptance(steps=8, drafted=16, accepted=8)


def test_shared_batch_gives_no_category_a_time():
    [first, _] = summary.categories(PROMPTS, two_rounds(apart=False), None)
    assert first.speedup is None and first.plain is None and first.identical is None
    assert first.acceptance.steps == 8


def result(*, sampled: bool = False) -> BenchResult:
    rounds = two_rounds()
    equal = None if sampled else summary.equality(PROMPTS, rounds)
    return BenchResult(
        setup=Setup(
            model="tiny",
            architecture="LlamaForCausalLM",
            layers=2,
            hidden_size=8,
            dtype="float32",
            mode="eager",
            speculative_config={"method": "kangaroo"},
            batch_size=1,
            max_tokens=4,
            temperature=0.7 if sampled else 0.0,
            prompts=3,
            skipped_too_long=1,
        ),
        rounds=[one.figures() for one in rounds],
        speedup=Spread.of([one.figures().speedup for one in rounds]),
        acceptance=summary.acceptance(rounds),
        ladder=LadderCost(
            positions=(21, 20),
            dropped=(1, 0),
            drafted=0,
            rounds=0,
            verified=20,
            draft_steps=0,
            draft_seconds=0.0,
            draft_pass_seconds=0.0,
        ),
        equality=equal,
        categories=summary.categories(PROMPTS, rounds, equal),
        provenance=of_measurement("CPU", ["vllm-kangaroo", "bench"]),
    )


def printed(what: BenchResult) -> str:
    console = Console(file=io.StringIO(), width=110)
    print_result(what, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_everything_is_printed():
    text = printed(result())
    for part in ("1 too long", "1.67x", "2.00", "Identical outputs: 2 of 3", "b: differs", "qa"):
        assert part in text


def test_sampled_outputs_are_not_compared():
    assert "not compared" in printed(result(sampled=True))


def test_written_figures_can_be_read_back():
    ours = result()
    assert BenchResult.model_validate_json(ours.model_dump_json()) == ours
