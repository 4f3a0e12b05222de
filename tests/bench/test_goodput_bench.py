"""Loads of a goodput benchmark: what is compared, and its picture."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from vllm_kangaroo.bench.bench_options import GoodputBenchOptions
from vllm_kangaroo.bench.bench_results import RunSetup, Speed
from vllm_kangaroo.bench.goodput_bench import (
    CONTROLLED,
    PLAIN,
    FixedLength,
    GoodputBench,
    LoadResult,
    Way,
    _per_round,
    goodput_table,
)
from vllm_kangaroo.bench.goodput_plot import draw
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
            ways={PLAIN: way(2.0), CONTROLLED: way(1.0), "1": way(1.1 * batch), "4": way(batch)},
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
        provenance=of_measurement("CPU"),
    )


def test_ratios_and_the_best_fixed_length() -> None:
    few, many = result().loads
    assert few.over(CONTROLLED, PLAIN).median == 2.0
    assert few.best_fixed == "4"
    assert many.best_fixed == PLAIN, "control is no fixed length"
    assert many.over("4", PLAIN).median == 0.25


def test_the_table_says_all_of_it() -> None:
    table = goodput_table(result())
    cells = {str(column.header): list(column.cells) for column in table.columns}
    assert cells["batch"] == ["1", "8"]
    assert cells[CONTROLLED] == ["2.00x", "2.00x"]
    assert cells["over best"] == ["1.000x", "2.000x"]
    assert cells["step error"] == ["4.2%", "4.2%"]


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

    fixed = FixedLength(Engine(), 4, 2)
    fixed.reset_prefix_cache()
    lengths = {"num_speculative_tokens": 4, "tokens_per_round": 2}
    assert fixed.said == [("set_draft_lengths", lengths), "reset"]


def test_rounds_of_hispec_fit_every_length() -> None:
    assert _per_round({"method": "kangaroo"}, 4) is None
    assert _per_round({"method": "hispec", "intermediate_verification": False}, 4) is None
    assert _per_round({"method": "hispec"}, 1) == 1
    assert _per_round({"method": "hispec", "draft_tokens_per_round": 3}, 6) == 3


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"batch_size": (4, 0)}, "--batch-size 0 is below 1"),
        ({"lengths": (0,)}, "--lengths 0 is below 1"),
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
