from __future__ import annotations

import pytest

from vllm_kangaroo.bench.bench_results import Round, Speed
from vllm_kangaroo.bench.generation import Generation


@pytest.mark.parametrize(
    ("steps", "times", "expected"),
    [
        ([1, 3, 2], [1.0, 1.5, 2.5], (5, 1.5)),
        ([1], [1.0], (0, 0.0)),
        ([], [], (0, 0.0)),
    ],
)
def test_decoding_begins_after_the_first_token(
    steps: list[int], times: list[float], expected: tuple[int, float]
) -> None:
    assert Generation(steps=steps, times=times).decoding() == expected


def test_speedup_after_the_first_token_leaves_the_prompt_out() -> None:
    # Four seconds of prompt on both sides; then eight tokens in four seconds, and in two.
    plain = Speed(tokens=9, seconds=8.0, decode_tokens=8, decode_seconds=4.0)
    drafting = Speed(tokens=9, seconds=6.0, decode_tokens=8, decode_seconds=2.0)
    one = Round(drafting_first=False, plain=plain + plain, drafting=drafting + drafting)
    assert one.speedup == pytest.approx(8 / 6)
    assert one.decode_speedup == pytest.approx(2.0)


def test_a_single_token_has_no_speedup_after_the_first() -> None:
    single = Speed(tokens=1, seconds=1.0)
    assert Round(drafting_first=False, plain=single, drafting=single).decode_speedup is None
