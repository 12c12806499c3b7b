"""Comparisons, paired and not: against scipy, closed forms, and by what they cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mpiens.difference import (
    HIGHER,
    bound_mean,
    bound_welch,
    compare_paired,
    compare_unpaired,
)

RNG = np.random.default_rng


def draw_pairs(
    count: int, correlation: float, *, draws: int = 1, seed: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return (draw, replicate) of a scenario, mean 9, and its baseline, mean 10."""
    rng = RNG(seed)
    common, own, base = rng.normal(size=(3, draws, count))
    share = math.sqrt(1 - correlation**2)
    return 9 + correlation * common + share * own, 10 + common + 0 * base


def test_paired_means_have_students_interval() -> None:
    own, base = (side[0] for side in draw_pairs(25, 0.9))
    found = compare_paired(own, base)
    expected = stats.ttest_rel(own, base).confidence_interval(0.95)
    assert found.mean_interval == pytest.approx((expected.low, expected.high))
    assert found.mean == pytest.approx((own - base).mean())
    assert found.count == 25


def test_unpaired_means_have_welchs_interval() -> None:
    own, base = RNG(2).normal(size=20), RNG(3).normal(2, 3, size=33)
    found = compare_unpaired(own, base)
    test = stats.ttest_ind(own, base, equal_var=False)
    expected = test.confidence_interval(0.95)
    assert found.mean_interval == pytest.approx((expected.low, expected.high))


def test_pairing_wins_what_the_correlation_says() -> None:
    own, base = (side[0] for side in draw_pairs(200_000, 0.9, seed=4))
    found = compare_paired(own, base)
    assert found.reduction == pytest.approx(2 / (2 - 2 * 0.9), rel=0.02)


def test_the_probability_of_being_better_is_the_share_of_twins() -> None:
    own, base = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 2, 4, 5, 1])
    found = compare_paired(own, base)
    assert found.better == (3 + 0.5) / 5
    assert compare_paired(own, base, better=HIGHER).better == (1 + 0.5) / 5
    low = stats.binomtest(3, 5).proportion_ci(method="exact").low
    high = stats.binomtest(4, 5).proportion_ci(method="exact").high
    assert found.better_interval == pytest.approx((low, high))


def test_unpaired_superiority_is_that_of_mann_and_whitney() -> None:
    own, base = RNG(5).poisson(4, 40).astype(float), RNG(6).poisson(5, 30).astype(float)
    found = compare_unpaired(own, base)
    statistic = stats.mannwhitneyu(base, own).statistic
    assert found.better == pytest.approx(statistic / (40 * 30))
    value = stats.brunnermunzel(own, base).pvalue  # the interval's edge is its level
    edge = compare_unpaired(own, base, confidence=1 - value).better_interval
    assert min(abs(edge[0] - 0.5), abs(edge[1] - 0.5)) < 1e-9


def test_one_beyond_the_other_is_no_certainty() -> None:
    found = compare_unpaired(np.arange(5.0), np.arange(10.0, 18.0))
    assert found.better == 1.0
    assert found.better_interval == pytest.approx((0.4782, 1.0), abs=1e-4)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
@pytest.mark.parametrize("count", [8, 40])
def test_intervals_cover_what_they_claim(correlation: float, count: int) -> None:
    draws = 1500
    own, base = draw_pairs(count, correlation, draws=draws, seed=7)
    both = [compare_paired(a, b) for a, b in zip(own, base, strict=True)]
    better = stats.norm.cdf(1 / math.sqrt(2 - 2 * correlation))
    true = {"mean": -1.0, "median": -1.0, "better": better, "averted": 0.1}
    error = 4 * math.sqrt(0.05 * 0.95 / draws)
    for name, value in true.items():
        intervals = np.array([getattr(one, f"{name}_interval") for one in both])
        covered = ((intervals[:, 0] <= value) & (value <= intervals[:, 1])).mean()
        assert covered >= 0.95 - error, name
        if name in ("mean", "averted"):
            assert covered <= 0.95 + error, name


def test_unpaired_intervals_cover_what_they_claim() -> None:
    draws = 1500
    rng = RNG(8)
    own, base = rng.normal(9, 1, (draws, 25)), rng.normal(10, 2, (draws, 40))
    both = [compare_unpaired(a, b) for a, b in zip(own, base, strict=True)]
    true = {"mean": -1.0, "better": stats.norm.cdf(1 / math.sqrt(5)), "averted": 0.1}
    error = 4 * math.sqrt(0.05 * 0.95 / draws)
    for name, value in true.items():
        intervals = np.array([getattr(one, f"{name}_interval") for one in both])
        covered = ((intervals[:, 0] <= value) & (value <= intervals[:, 1])).mean()
        slack = 0.01 if name == "better" else 0.0  # it is an approximation
        assert 0.95 - error - slack <= covered <= 0.95 + error + slack, name


def test_a_baseline_that_may_be_nothing_bounds_no_share() -> None:
    base = np.array([-1.0, 1.0, 0.5, -0.4])
    found = compare_paired(base + 1, base)
    assert found.averted_interval == (-math.inf, math.inf)
    assert math.isnan(compare_paired(np.ones(3), np.zeros(3)).averted)


def test_curves_are_compared_point_by_point() -> None:
    samples = RNG(9).normal(size=(3, 4, 12))
    other = RNG(10).normal(size=(3, 4, 15))
    means, apart = bound_mean(samples), bound_welch(samples, other)
    assert means.shape == apart.shape == (2, 3, 4)
    for index in np.ndindex(3, 4):
        one = stats.ttest_1samp(samples[index], 0).confidence_interval(0.95)
        assert means[(slice(None), *index)] == pytest.approx((one.low, one.high))
        two = stats.ttest_ind(samples[index], other[index], equal_var=False)
        own = two.confidence_interval(0.95)
        assert apart[(slice(None), *index)] == pytest.approx((own.low, own.high))


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_replicates_tell_nothing(count: int) -> None:
    found = compare_paired(np.ones(count), np.ones(count) * 2)
    assert np.isnan(found.mean_interval).all()
    assert np.isnan(found.averted_interval).all()
    assert math.isnan(found.reduction)
    assert np.isnan(bound_welch(np.ones(count), np.ones(5))).all()
