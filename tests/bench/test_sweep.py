"""The points of a sweep, and their picture."""

from pathlib import Path

import pytest

from vllm_kangaroo.bench.bench_results import RunSetup, Speed
from vllm_kangaroo.bench.heatmap import draw
from vllm_kangaroo.bench.ladder_cost import LadderCost
from vllm_kangaroo.bench.statistics import Acceptance
from vllm_kangaroo.bench.sweep import (
    SINGLE_LAYER,
    Lengths,
    Point,
    Sweep,
    config_of,
    exit_pairs,
    lengths_of,
)
from vllm_kangaroo.options import OptionError, parse_options
from vllm_kangaroo.provenance import of_measurement

COST = LadderCost(
    positions=(21, 20),
    dropped=(1, 0),
    verified=20,
    drafted=8,
    rounds=4,
    draft_steps=8,
    draft_seconds=1.0,
    draft_pass_seconds=0.5,
)


def point(exits: tuple[int, int], lengths: Lengths, seconds: float) -> Point:
    return Point(
        draft_exit=exits[0],
        verify_exit=exits[1],
        lengths=lengths,
        speeds=[Speed(tokens=60, seconds=seconds), Speed(tokens=60, seconds=2 * seconds)],
        plain=[Speed(tokens=60, seconds=2.0), Speed(tokens=60, seconds=3.0)],
        acceptance=Acceptance(steps=10, drafted=40, accepted=12),
        ladder=COST,
    )


def result() -> Sweep:
    setup = RunSetup(
        model="demo",
        architecture="LlamaForCausalLM",
        layers=12,
        hidden_size=192,
        dtype="bfloat16",
        mode="eager",
        batch_size=1,
        max_tokens=60,
        temperature=0.0,
        prompts=1,
        skipped_too_long=0,
    )
    points = [
        point(exits, lengths, 1.0 + 0.1 * at + 0.5 * (exits[1] == SINGLE_LAYER))
        for exits in exit_pairs([1, 3], [3, 6, SINGLE_LAYER])
        for at, lengths in enumerate(lengths_of(exits[1], [1, 2, 4], [2, 4]))
    ]
    return Sweep(
        setup=setup,
        confidence_threshold=0.0,
        points=points,
        provenance=of_measurement("CPU", ["x", "bench"]),
    )


def test_exits_are_in_order_and_single_layer_pairs_with_all():
    assert exit_pairs([3, 1], [3, 6, 0]) == [(1, 0), (1, 3), (1, 6), (3, 0), (3, 6)]
    with pytest.raises(OptionError, match="--verify-exits 2"):
        exit_pairs([2, 3], [2])


def test_no_round_is_larger_than_the_buffer():
    pairs = [(o.tokens_per_round, o.num_speculative_tokens) for o in lengths_of(3, [1, 4], [2, 4])]
    assert pairs == [(1, 2), (1, 4), (4, 4)]
    alone = [
        (o.tokens_per_round, o.num_speculative_tokens)
        for o in lengths_of(SINGLE_LAYER, [1, 4], [4, 2])
    ]
    assert alone == [(None, 2), (None, 4)]


@pytest.mark.parametrize("verify", [3, SINGLE_LAYER])
def test_configs_are_such_as_hispec_takes(verify: int):
    options = parse_options(config_of(1, verify, 6, 0.1))
    assert options.num_speculative_tokens == 6


@pytest.mark.parametrize("verify", [3, SINGLE_LAYER])
def test_an_adapter_goes_to_the_draft_exit(verify: int):
    config = config_of(1, verify, 6, 0.1, Path("adapter"))
    assert config["draft_adapter"] == "adapter"
    assert "verify_adapter" not in config


def test_best_point_and_its_speed_over_vllm_alone():
    ours = result()
    best = ours.best(single_layer=False)
    assert best is not None
    assert (best.draft_exit, best.verify_exit) == (1, 3)
    assert best.lengths == Lengths(tokens_per_round=1, num_speculative_tokens=2)
    # 60 and 30 tokens a second, beside 30 and 20 of vLLM alone.
    assert (best.speedup.median, best.speedup.low, best.speedup.high) == (1.75, 1.5, 2.0)
    single = ours.best(single_layer=True)
    assert single is not None and single.verify_exit == SINGLE_LAYER
    assert Sweep.model_validate_json(ours.model_dump_json()) == ours


def test_picture_is_drawn(tmp_path: Path):
    path = tmp_path / "sweep.png"
    draw(result(), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 20_000
