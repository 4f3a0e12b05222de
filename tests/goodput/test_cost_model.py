"""Least squares that follow, curves of timed passes, and the file they are kept in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from vllm_kangaroo.goodput.cost_model import CostModel, Load
from vllm_kangaroo.goodput.cost_profile import CostProfile, Curve, ProfileStore
from vllm_kangaroo.goodput.least_squares import LeastSquares
from vllm_kangaroo.goodput.step_costs import StepCosts

PROFILE = CostProfile(
    verify=Curve.timed({1: 0.01, 8: 0.01, 16: 0.02, 64: 0.08}),
    draft=Curve.timed({1: 0.002, 16: 0.003}),
    check=Curve.timed({1: 0.003, 16: 0.004}),
)


@settings(deadline=None, max_examples=40)
@given(
    truth=st.lists(st.floats(0.1, 10.0), min_size=3, max_size=3),
    factors=st.lists(st.floats(0.2, 5.0), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
)
def test_a_line_is_found_wherever_the_prior_is(
    truth: list[float], factors: list[float], seed: int
) -> None:
    random = np.random.default_rng(seed)
    prior = np.array(truth) * factors
    fit = LeastSquares(prior.tolist(), (10 * prior).tolist())
    for _ in range(400):
        features = np.array([1.0, *random.uniform(0.0, 10.0, 2)])
        fit.observe(features, float(features @ truth) * random.lognormal(0.0, 0.02))
    features = np.array([1.0, 5.0, 5.0])
    assert fit.predict(features) == pytest.approx(float(features @ truth), rel=0.05)
    assert fit.coefficients == fit.values.tolist()


@settings(deadline=None, max_examples=40)
@given(
    st.lists(
        st.tuples(st.floats(0.0, 100.0), st.floats(0.0, 1e6), st.floats(1e-6, 10.0)),
        min_size=1,
        max_size=60,
    )
)
def test_no_coefficient_is_below_zero_or_lost(rows: list[tuple[float, float, float]]) -> None:
    fit = LeastSquares((0.01, 0.001, 1e-6), (0.02, 0.01, 1e-5))
    for one, other, value in rows:
        fit.observe(np.array((1.0, one, other)), value)
    assert np.isfinite(fit.values).all()
    assert (fit.values >= 0.0).all()


def test_a_steady_load_leaves_what_it_does_not_show_where_it_was() -> None:
    """No wind-up: thousands of equal observations, and the slope is still the prior's."""
    fit = LeastSquares((0.01, 0.001), (0.01, 0.0001))
    for _ in range(3000):
        fit.observe(np.array((1.0, 4.0)), 0.020)
    assert fit.predict(np.array((1.0, 4.0))) == pytest.approx(0.020, rel=0.01)
    assert 0.0005 < fit.coefficients[1] < 0.0025


def test_an_outlier_is_left_out_and_a_slower_machine_is_not() -> None:
    fit = LeastSquares((0.01,), (0.01,))
    one = np.ones(1)
    for _ in range(40):
        fit.observe(one, 0.01)
    fit.observe(one, 1.0)
    assert fit.predict(one) == pytest.approx(0.01, rel=0.01)
    for _ in range(200):
        fit.observe(one, 0.05)
    assert fit.predict(one) == pytest.approx(0.05, rel=0.2)


def test_what_is_dear_in_turns_with_what_is_not_is_no_outlier() -> None:
    fit = LeastSquares((0.01, 0.01), (0.02, 0.2))
    for _ in range(100):
        fit.observe(np.array((1.0, 0.0)), 0.01)
        fit.observe(np.array((1.0, 1.0)), 0.2)
    assert fit.predict(np.array((1.0, 1.0))) == pytest.approx(0.2, rel=0.05)
    assert fit.predict(np.array((1.0, 0.0))) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("seconds", [0.001, 0.05])
def test_what_is_seldom_done_stays_known(seconds: float) -> None:
    """One step in 65 is without drafts, which take half as long again: far more than the prior thought likely."""
    fit = LeastSquares((seconds, 0.0), (seconds, 0.2 * seconds))
    random = np.random.default_rng(0)
    for at in range(2000):
        drafted = bool(at % 65)
        value = seconds * (1.0 + 0.5 * drafted) * random.lognormal(0.0, 0.1)
        fit.observe(np.array((1.0, float(drafted))), value, kind=int(drafted))
    assert fit.predict(np.array((1.0, 0.0))) == pytest.approx(seconds, rel=0.1)
    assert fit.predict(np.array((1.0, 1.0))) == pytest.approx(1.5 * seconds, rel=0.05)


def test_what_is_seldom_done_is_learnt_anew() -> None:
    """The same on a machine that is half as fast from then on."""
    fit = LeastSquares((0.01, 0.0), (0.01, 0.01))
    for at in range(4000):
        drafted, slower = bool(at % 65), 1.0 + (at > 1500)
        value = 0.01 * slower * (1.0 + 0.5 * drafted)
        fit.observe(np.array((1.0, float(drafted))), value, kind=int(drafted))
    assert fit.predict(np.array((1.0, 0.0))) == pytest.approx(0.02, rel=0.1)
    assert fit.predict(np.array((1.0, 1.0))) == pytest.approx(0.03, rel=0.02)


@pytest.mark.parametrize("every", [6, 10, 25])
def test_what_comes_now_and_then_is_left_out(every: int) -> None:
    fit = LeastSquares((0.01,), (0.01,))
    for at in range(600):
        fit.observe(np.ones(1), 0.5 if at % every == every - 1 and at > 20 else 0.01)
    assert fit.predict(np.ones(1)) == pytest.approx(0.01, rel=0.01)


@settings(deadline=None, max_examples=30)
@given(
    requests=st.integers(1, 100),
    context=st.integers(1, 2000),
    tokens=st.lists(st.integers(1, 1000), min_size=1, max_size=8),
    prompt=st.integers(0, 500),
)
def test_plain_numbers_and_arrays_agree(
    requests: int, context: int, tokens: list[int], prompt: int
) -> None:
    """Before and after something has been learnt."""
    costs = CostModel(PROFILE)
    load = Load(requests, requests * context, prompt)
    for _ in range(2):
        found = costs.verify_along(load, np.array(tokens, dtype=np.float64))
        single = [costs.verify(load, each, drafted=True) for each in tokens]
        assert found == pytest.approx(single)
        wide = np.array(tokens, dtype=np.float64)
        assert costs.draft_along(wide, 10.0 * wide) == pytest.approx(
            [costs.draft(each, 10.0 * each) for each in tokens]
        )
        costs.observe_verify(0.05, load, requests, drafted=True)
        costs.observe_draft(0.004, requests, 100.0)


def test_what_a_step_takes_beside_the_passes_is_learnt() -> None:
    costs = CostModel(PROFILE)
    load = Load(4, 1000)
    for _ in range(60):
        costs.observe_verify(0.015, load, 4, drafted=False)
        costs.observe_verify(0.017, load, 8, drafted=True)
        costs.observe_draft(0.0025, 4, 1000.0)
        costs.observe_check(0.004, 8, 1000.0)
        costs.observe_opening(0.0032, 4, 1000.0)
    assert costs.verify(load, 4, drafted=False) == pytest.approx(0.015, rel=0.03)
    assert costs.verify(load, 8, drafted=True) == pytest.approx(0.017, rel=0.03)
    assert costs.draft(4, 1000.0) == pytest.approx(0.0025, rel=0.03)
    assert costs.check(8, 1000.0) == pytest.approx(0.004, rel=0.03)
    assert costs.overhead(4) == pytest.approx(0.0007, rel=0.1)
    # Beyond what was seen, the profile says how it goes on.
    assert costs.verify(load, 64, drafted=True) > 0.07


def test_a_curve_goes_on_along_its_last_slope() -> None:
    costs = CostModel(CostProfile(verify=Curve.timed({1: 0.01, 10: 0.01, 20: 0.02})))
    wide = costs.verify(Load(1), 120, drafted=False) - costs.verify(Load(1), 20, drafted=False)
    assert wide == pytest.approx(0.1, rel=0.01)


def test_a_smaller_pass_takes_longer_only_where_it_does_so_by_much() -> None:
    timed = {1: 0.0102, 2: 0.0118, 4: 0.01, 6: 0.0101, 8: 0.02, 12: 0.0199}
    assert Curve.doubtful(timed) == [2]
    assert Curve.timed(timed).seconds == (0.01, 0.0118, 0.01, 0.0101, 0.0199, 0.0199)
    costs = CostModel(CostProfile(verify=Curve.timed(timed)))
    seconds = costs.verify_along(Load(1), np.arange(1.0, 7.0)).tolist()
    assert seconds == pytest.approx([costs.verify(Load(1), at, drafted=True) for at in range(1, 7)])
    assert seconds == pytest.approx(costs.verify_after(Load(1), 0, 6))
    assert seconds[1] > max(seconds[0], *seconds[2:])


@pytest.mark.parametrize(
    "values",
    [
        {"tokens": (1,), "seconds": (1.0,)},
        {"tokens": (1, 1), "seconds": (1.0, 2.0)},
        {"tokens": (0, 1), "seconds": (1.0, 2.0)},
        {"tokens": (1, 2), "seconds": (0.0, 2.0)},
        {"tokens": (1, 2), "seconds": (1.0, float("nan"))},
        {"tokens": (1, 2), "seconds": (1.0, 2.0, 3.0)},
    ],
)
def test_a_curve_that_cannot_be(values: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ValidationError):
        Curve(**values)


def test_a_profile_is_kept_by_what_it_is_of(tmp_path: Path) -> None:
    key = {"model": "a", "device": "cpu", "dtype": "float32"}
    store = ProfileStore(tmp_path / "new", key)
    assert store.load() is None
    store.save(PROFILE)
    assert ProfileStore(tmp_path / "new", dict(reversed(key.items()))).load() == PROFILE
    assert ProfileStore(tmp_path / "new", key | {"dtype": "bfloat16"}).load() is None
    store.file.write_text("{torn", encoding="utf-8")
    assert store.load() is None
    store.save(PROFILE)
    assert store.load() == PROFILE
    assert list(store.file.parent.glob("*")) == [store.file]


def test_a_place_that_cannot_be_written_is_left(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    store = ProfileStore(file, {})
    store.save(PROFILE)
    assert store.load() is None


def test_steps_of_one_request_as_plain_figures() -> None:
    costs = CostModel(PROFILE)
    for tokens in (1, 2, 3, 4, 6) * 40:
        costs.observe_verify(0.012 + 0.0005 * tokens, Load(1, 50), tokens, drafted=tokens > 1)
        costs.observe_draft(0.003, 1, 50)
        costs.observe_check(0.004, 2, 50)
        costs.observe_opening(0.004, 1, 50)
    found = StepCosts.of(costs, 50, 6, checks=True)
    assert found.verify == pytest.approx([0.012 + 0.0005 * at for at in range(1, 7)], rel=0.03)
    assert found.draft == pytest.approx(0.003, rel=0.03)
    assert found.around == pytest.approx(0.001, rel=0.1)
    assert found.check[1] == pytest.approx(0.004, rel=0.03)
    assert StepCosts.of(costs, 50, 6, checks=False).check == ()
    assert StepCosts.model_validate(found.model_dump()) == found
    slower, busy = found.scaled(2.0), found.scaled(50.0)
    assert slower.verify[3] == 2 * found.verify[3] and slower.check[3] == 2 * found.check[3]
    assert StepCosts.middle([found, busy, slower]) == slower
