"""When is an acceptance rate known well enough?"""

from __future__ import annotations

from math import inf

import numpy as np

from vllm_kangaroo.laps_sd.acceptance import AcceptanceEstimate, AcceptancePrior

WINDOW, SIGMAS = 8, 4.0


def filled(rates: list[float]) -> AcceptanceEstimate:
    found = AcceptanceEstimate()
    for rate in rates:
        found.add(rate, WINDOW, SIGMAS)
    return found


def test_nothing_is_stable_before_a_window_of_rounds():
    prior = AcceptancePrior()
    for count in range(WINDOW):
        assert filled([0.5] * count).half_width(prior, WINDOW) == inf
    assert filled([0.5] * WINDOW).half_width(prior, WINDOW) < 0.1


def test_interval_narrows_with_rounds_and_covers_the_true_rate():
    rng = np.random.default_rng(0)
    prior = AcceptancePrior()
    covered, widths = 0, []
    for _ in range(200):
        found = filled(rng.binomial(6, 0.6, 64).astype(float).__truediv__(6).tolist())
        width = found.half_width(prior, WINDOW)
        widths.append(width)
        covered += abs(found.mean - 0.6) <= width
    assert covered > 180
    noisy = filled(rng.binomial(6, 0.6, 8).astype(float).__truediv__(6).tolist())
    assert noisy.half_width(prior, WINDOW) > max(widths)


def test_mean_and_variance_are_those_of_the_rounds():
    rates = [0.0, 0.5, 1.0, 0.5, 0.25, 0.75, 1.0, 0.0, 0.5, 0.5, 1.0]
    found = filled(rates)
    assert found.seen == len(rates)
    assert np.isclose(found.mean, np.mean(rates))
    assert np.isclose(found.variance, np.var(rates, ddof=1))


def test_rounds_told_together_have_the_same_mean_and_on_average_the_same_variance():
    rng = np.random.default_rng(2)
    variances = []
    for _ in range(400):
        together = AcceptanceEstimate()
        rounds: list[float] = []
        for size in (4, 1, 7, 3, 9):
            piece = rng.binomial(3, 0.6, size).astype(float)
            together.add(float(piece.sum()), WINDOW, SIGMAS, size, least=1.0)
            rounds += piece.tolist()
        assert together.seen == len(rounds)
        assert np.isclose(together.mean, np.mean(rounds))
        variances.append(together.variance)
    assert np.isclose(np.mean(variances), 3 * 0.6 * 0.4, rtol=0.1)


def test_one_piece_says_nothing_of_how_sure_it_is():
    found = AcceptanceEstimate()
    found.add(20.0, WINDOW, SIGMAS, 2 * WINDOW)
    assert found.half_width(AcceptancePrior(), WINDOW) == inf


def test_a_jump_starts_anew_and_a_steady_rate_does_not():
    steady = [0.5, 0.75, 0.25, 0.5, 0.5, 0.75, 0.25, 0.5] * 8
    assert filled(steady).seen == len(steady)
    found = filled([*steady, *[1.0] * 8])
    assert found.seen == 8
    assert found.mean == 1.0


def test_alike_requests_need_little_watching_and_unlike_ones_more():
    rng = np.random.default_rng(1)
    alike, unlike = AcceptancePrior(), AcceptancePrior()
    for _ in range(200):
        for prior, spread in ((alike, 0.01), (unlike, 0.25)):
            rates = np.clip(rng.normal(0.5, spread) + rng.normal(0, 0.2, 30), 0, 1)
            prior.learn(30, float(rates.mean()), float(rates.var(ddof=1)))
    assert AcceptanceEstimate().half_width(alike, WINDOW) < 0.1
    assert AcceptanceEstimate().half_width(unlike, WINDOW) > 0.3
    assert alike.worth_rounds > 20 * unlike.worth_rounds
    assert filled([0.5, 0.6] * 20).half_width(unlike, WINDOW) < 0.1
