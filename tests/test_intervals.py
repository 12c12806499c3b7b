"""Intervals of quantiles and shares: exact ranks, and what they cover."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mpiens.intervals import (
    bound_share,
    enclose_quantiles,
    expect_share,
    find_ranks,
    least,
    predict_ranks,
    predict_share,
)


@pytest.mark.parametrize(
    ("level", "fewest"),
    [(0.5, 6), (0.1, 29), (0.9, 29), (0.05, 59), (0.95, 59), (0.025, 119)],
)
def test_so_many_replicates_are_enough_and_one_less_is_not(
    level: float, fewest: int
) -> None:
    assert least(level) == fewest
    found = find_ranks(fewest, level)
    assert found is not None
    assert found[0] == 0 or found[1] == fewest - 1  # not all are needed on both sides
    assert find_ranks(fewest - 1, level) is None


def cover(count: int, level: float, low: int, high: int) -> float:
    """The chance that two order statistics, from 0, enclose the quantile."""
    chances = stats.binom(count, level)
    return float(chances.cdf(high) - chances.cdf(low))


@settings(deadline=None)
@given(
    st.integers(2, 60),
    st.floats(0.01, 0.99),
    st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.99]),
)
def test_ranks_cover_and_no_closer_pair_does(
    count: int, level: float, confidence: float
) -> None:
    below = stats.binom(count, level).cdf(np.arange(count))
    pairs = itertools.combinations(range(count), 2)
    good = [p for p in pairs if below[p[1]] - below[p[0]] >= confidence + 1e-9]
    found = find_ranks(count, level, confidence)
    if found is None:
        assert not good
        return
    assert cover(count, level, *found) >= confidence - 1e-9
    if good:
        assert found[1] - found[0] <= min(high - low for low, high in good)


def test_ranks_of_many_are_those_of_the_normal_approximation() -> None:
    low, high = find_ranks(100_000, 0.1) or (0, 0)
    spread = 1.96 * np.sqrt(100_000 * 0.1 * 0.9)
    assert low == pytest.approx(10_000 - spread, abs=3)
    assert high == pytest.approx(10_000 + spread, abs=3)


@pytest.mark.parametrize("kind", ["normal", "cauchy", "poisson"])
@pytest.mark.parametrize("count", [30, 77, 200])
def test_intervals_cover_quantiles_of_any_distribution(kind: str, count: int) -> None:
    draws, levels = 4000, (0.1, 0.5, 0.9)
    rng = np.random.default_rng(20260529)
    make = {
        "normal": lambda: rng.normal(size=(draws, count)),
        "cauchy": lambda: rng.standard_cauchy((draws, count)),
        "poisson": lambda: rng.poisson(3.0, (draws, count)).astype(float),  # has ties
    }
    law = {
        "normal": stats.norm(),
        "cauchy": stats.cauchy(),
        "poisson": stats.poisson(3),
    }
    found = enclose_quantiles(np.sort(make[kind](), axis=-1), levels)
    assert found.shape == (3, 2, draws)
    for index, level in enumerate(levels):
        true = law[kind].ppf(level)
        low, high = found[index]
        covered = float(((low <= true) & (true <= high)).mean())
        chance = cover(count, level, *(find_ranks(count, level) or (0, 0)))
        error = 4 * np.sqrt(chance * (1 - chance) / draws)
        assert covered >= 0.95 - error
        if kind != "poisson":  # with ties they cover more
            assert covered == pytest.approx(chance, abs=error)


def test_too_few_replicates_have_no_interval() -> None:
    found = enclose_quantiles(np.arange(10.0), (0.1, 0.5))
    assert np.isnan(found[0]).all()
    assert found[1].tolist() == [1.0, 8.0]


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
@pytest.mark.parametrize("count", [19, 40, 199])
def test_prediction_bands_hold_that_share_of_future_replicates(
    share: float, count: int
) -> None:
    ranks = predict_ranks(count, share)
    assert ranks is not None
    told = predict_share(count, *ranks)
    assert share <= told + 1e-12
    assert told - share < 2 / (count + 1) + 1e-12
    rng = np.random.default_rng(1)
    draws = 20_000
    ordered = np.sort(rng.exponential(size=(draws, count)), axis=-1)
    new = rng.exponential(size=draws)
    held = (ordered[:, ranks[0]] < new) & (new < ordered[:, ranks[1]])
    error = 4 * np.sqrt(told * (1 - told) / draws)
    assert held.mean() == pytest.approx(told, abs=error)


def test_few_replicates_cannot_hold_a_large_share() -> None:
    assert predict_ranks(8, 0.8) is None
    assert predict_ranks(9, 0.8) == (0, 8)


@pytest.mark.parametrize(("count", "told"), [(3, 0.40), (4, 0.48), (200, 0.792)])
def test_a_band_of_few_replicates_holds_less_than_it_seems(
    count: int, told: float
) -> None:
    assert expect_share(count, 0.1, 0.9) == pytest.approx(told, abs=0.001)
    rng = np.random.default_rng(2)
    draws = 20_000
    low, high = np.quantile(rng.random((draws, count)), (0.1, 0.9), axis=-1)
    new = rng.random(draws)
    held = ((low < new) & (new < high)).mean()
    assert held == pytest.approx(told, abs=4 * np.sqrt(0.25 / draws))


@given(st.integers(0, 50), st.integers(0, 50), st.sampled_from([0.8, 0.95]))
def test_shares_are_bounded_as_scipy_does(
    successes: int, others: int, confidence: float
) -> None:
    count = successes + others
    low, high = bound_share(successes, count, confidence)
    if count == 0:
        assert np.isnan([low, high]).all()
        return
    test = stats.binomtest(successes, count)
    expected = test.proportion_ci(confidence, method="exact")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
