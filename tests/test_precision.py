"""When there are enough replicates, and how many that would take."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from mpiens.precision import list_counts, measure_width, predict_count


def test_it_is_decided_at_fixed_counts() -> None:
    assert [*list_counts(20, 20, 70)] == [20, 40, 60, 70]
    assert [*list_counts(20, 20, 60)] == [20, 40, 60]
    assert [*list_counts(50, 50, 30)] == [30]
    assert [*list_counts(10, 25, 70)] == [10, 35, 60, 70]


def test_the_width_of_a_mean_is_students() -> None:
    samples = np.random.default_rng(1).normal(50, 3, 30)
    found = stats.ttest_1samp(samples, 0).confidence_interval(0.9)
    width = found.high - found.low
    assert measure_width(samples, confidence=0.9) == pytest.approx(width)
    relative = measure_width(samples, relative=True, confidence=0.9)
    assert relative == pytest.approx(width / samples.mean())


def test_the_width_of_a_quantile_is_that_of_its_order_statistics() -> None:
    samples = np.random.default_rng(2).permutation(100).astype(float)
    assert measure_width(samples, 0.5) == pytest.approx(20, abs=1)
    assert measure_width(samples[:5], 0.5) == math.inf


def test_a_band_is_as_wide_as_its_widest_step() -> None:
    samples = np.random.default_rng(3).normal(size=(7, 40)) * np.arange(1, 8)[:, None]
    widths = [measure_width(step) for step in samples]
    assert measure_width(samples) == max(widths)


def test_what_never_differs_is_tight_at_once() -> None:
    assert measure_width(np.zeros(5), relative=True) == 0.0
    assert measure_width(np.zeros((3, 8)), 0.5, relative=True) == 0.0
    assert measure_width(np.ones(1)) == math.inf


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_half_the_width_of_a_mean_takes_four_times_as_many(share: float) -> None:
    samples = np.random.default_rng(4).normal(size=40)
    assert predict_count(samples, share) == 40 / share**2


@pytest.mark.parametrize("level", [0.5, 0.1])
def test_so_many_more_make_a_quantile_as_tight_as_foretold(level: float) -> None:
    rng = np.random.default_rng(5)
    ratios = []
    for _ in range(60):
        samples = rng.normal(size=200)
        count = predict_count(samples, 0.5, level)
        assert count is not None
        more = rng.normal(size=count)
        ratios.append(measure_width(more, level) / measure_width(samples, level))
    assert np.median(ratios) == pytest.approx(0.5, abs=0.1)


def test_too_few_are_told_how_many_there_have_to_be() -> None:
    assert predict_count(np.arange(10.0), 1.0, 0.1) == 29
    assert predict_count(np.arange(10.0), 0.5, 0.1) is None
    assert predict_count(np.ones(1), 0.5) is None
