"""Loads of a goodput benchmark: what is compared, and its picture."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vllm_kangaroo.bench.bench_options import GoodputBenchOptions
from vllm_kangaroo.bench.bench_results import RunSetup, Speed
from vllm_kangaroo.bench.draft_arms import DraftArms
from vllm_kangaroo.bench.goodput_plot import draw
from vllm_kangaroo.bench.goodput_results import (
    BANDIT,
    CONTROLLED,
    PLAIN,
    TABLE,
    GoodputBench,
    LoadResult,
    RateResult,
    Way,
    goodput_table,
    rate_table,
    take_in,
    tuned_table,
)
from vllm_kangaroo.options import OptionError
from vllm_kangaroo.provenance import of_measurement


def way(seconds: float) -> Way:
    return Way(
        speeds=[Speed(tokens=60, seconds=seconds), Speed(tokens=60, seconds=2 * seconds)],
        latencies=[seconds, 2 * seconds],
    )


def result() -> GoodputBench:
    loads = [
        LoadResult(
            batch_size=batch,
            ways={
                PLAIN: way(2.0),
                CONTROLLED: way(1.0),
                "0": way(2.1),
                "1": way(1.1 * batch),
                "4": way(batch),
                BANDIT: way(0.5),
            },
            steps=6,
            step_seconds=0.01,
            step_error=0.042,
            lengths=[3, 2, 1],
            off={"load": 3},
        )
        for batch in (1, 8)
    ]
    setup = RunSetup(
        model="demo",
        architecture="LlamaForCausalLM",
        layers=12,
        hidden_size=192,
        dtype="bfloat16",
        mode="eager",
        batch_size=0,
        max_tokens=60,
        temperature=0.0,
        prompts=1,
        skipped_too_long=0,
    )
    return GoodputBench(
        setup=setup,
        speculative_config={"method": "kangaroo"},
        loads=loads,
        table=tuned_table(loads).entries,
        capacity=3.0,
        rates=[RateResult(rate=0.5, ways={PLAIN: way(2.0), CONTROLLED: way(1.0), TABLE: way(1.6)})],
        provenance=of_measurement("CPU"),
    )


def test_ratios_and_the_best_fixed_length() -> None:
    few, many = result().loads
    assert few.over(CONTROLLED, PLAIN).median == 2.0
    assert few.best_fixed == "4"
    assert many.best_fixed == "0", "control, bandit and the other engine are no fixed lengths"
    assert many.over("4", PLAIN).median == 0.25


def test_the_table_says_all_of_it() -> None:
    table = goodput_table(result())
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["batch"] == ["1", "8"]
    assert cells[CONTROLLED] == ["2.00x", "2.00x"]
    assert cells["over best"] == ["1.000x", "2.100x"]
    assert cells["step error"] == ["4.2%", "4.2%"]


def test_vllms_table_is_tuned_on_the_loads() -> None:
    assert result().table == [(1, 7, 4), (8, 8, 0)]


def test_rates_are_told_by_latency() -> None:
    table = rate_table(result())
    assert table is not None
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert (cells["rate"], cells[TABLE], cells[CONTROLLED]) == (["50%"], ["0.80x"], ["0.50x"])
    assert cells["its tokens/s"] == ["2.00x"]
    assert rate_table(result().model_copy(update={"rates": []})) is None


def test_the_picture_and_the_file(tmp_path: Path) -> None:
    draw(result(), tmp_path / "goodput.png")
    assert (tmp_path / "goodput.png").stat().st_size > 10_000
    text = result().model_dump_json()
    assert GoodputBench.model_validate_json(text).loads[0].lengths == [3, 2, 1]


def test_a_length_is_set_before_each_run() -> None:
    class Engine:
        said: list[Any] = []  # noqa: RUF012

        def collective_rpc(self, name: str, kwargs: dict[str, Any]) -> None:
            self.said.append((name, kwargs))

        def reset_prefix_cache(self) -> None:
            self.said.append("reset")

    config = {"method": "hispec", "num_speculative_tokens": 4, "draft_tokens_per_round": 2}
    arms = DraftArms(Engine(), config, 6)

    def lengths(count: int, per_round: int, threshold: float = 0.0) -> tuple[str, dict[str, Any]]:
        arguments = {"num_speculative_tokens": count, "tokens_per_round": per_round}
        return "set_draft_lengths", {**arguments, "confidence_threshold": threshold}

    told, weighed = ("weigh_drafts", {"on": False}), ("weigh_drafts", {"on": True})
    for way, calls in (
        (arms.fixed(1), [lengths(1, 1), told]),
        (arms.fixed(5), [lengths(5, 2), told]),
        (arms.fixed(0), [lengths(6, 2), ("set_draft_table", {"entries": [[1, 1, 0]]}), told]),
        (
            arms.by_table([(1, 3, 4), (4, 4, 0)]),
            [lengths(6, 2), ("set_draft_table", {"entries": [[1, 3, 4], [4, 4, 0]]}), told],
        ),
        (
            arms.by_bandit([0, 2, 4]),
            [lengths(6, 2), ("set_draft_bandit", {"lengths": [0, 2, 4]}), told],
        ),
        (arms.controlled(), [lengths(4, 2), weighed]),
    ):
        Engine.said.clear()
        way.reset_prefix_cache()
        assert Engine.said == [*calls, "reset"]
    floored = DraftArms(Engine(), {"method": "kangaroo", "confidence_threshold": 0.3}, 1)
    Engine.said.clear()
    floored.controlled().reset_prefix_cache()
    assert Engine.said[0][1]["confidence_threshold"] == 0.3
    assert DraftArms.started_with(config, 6)["num_speculative_tokens"] == 6
    assert DraftArms.started_with(config, 3)["num_speculative_tokens"] == 4


def test_rounds_of_several_starts_are_one_result() -> None:
    loads: list[LoadResult] = []
    for _ in range(2):
        for load in result().loads:
            take_in(loads, load)
    few, many = loads
    assert (few.batch_size, many.batch_size) == (1, 8)
    assert len(few.ways[PLAIN].speeds) == len(few.ways["4"].latencies) == 4
    assert (few.steps, few.lengths, few.off) == (12, [6, 4, 2], {"load": 6})
    assert few.step_seconds == pytest.approx(0.01)
    other = result().loads[0].model_copy(update={"steps": 36, "step_error": 0.002})
    few.add(other)
    assert few.step_error == pytest.approx(0.012)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": (4, 0)}, "--batch-size 0 is below 1"),
        ({"lengths": (0,)}, "--lengths 0 is below 1"),
        ({"rate": (0.5, -0.5)}, "--rate -0.5 is no share of the capacity: give 0 to 10"),
    ],
)
def test_loads_and_lengths_that_cannot_be(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        GoodputBenchOptions(**wrong).settings()


def test_a_config_of_vllms_own_or_with_goodput() -> None:
    with pytest.raises(OptionError, match="sets goodput"):
        GoodputBenchOptions(speculative_config='{"method": "kangaroo", "goodput": true}').drafting()
    with pytest.raises(OptionError, match="ngram"):
        GoodputBenchOptions(speculative_config='{"method": "ngram"}').drafting()
    with pytest.raises(ValidationError):
        GoodputBenchOptions(batch_size=("many",))  # type: ignore[arg-type]
