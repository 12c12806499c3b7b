"""Numbers made of all replicates: equal to numpy's, ragged or not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mpiens.pool import find_coordinate, find_edges, make_pool
from mpiens.spec import Pool

quick = settings(max_examples=60, deadline=None, database=None)
numbers = st.floats(-1e6, 1e6)
stacked = arrays(float, array_shapes(max_dims=3, max_side=6), elements=numbers)
row = arrays(float, st.integers(0, 6), elements=numbers)
LEVELS = (0.1, 0.5)


@quick
@given(stacked)
def test_stacked_rows_are_summarised_over_replicates(sample: np.ndarray) -> None:
    def make(kind: str, **keys: object) -> np.ndarray:
        return make_pool(Pool(kind, "x", **keys), sample, LEVELS)  # type: ignore[arg-type]

    assert make("count") == len(sample)
    np.testing.assert_allclose(make("mean"), sample.mean(axis=0), 1e-12, 1e-6)
    np.testing.assert_allclose(make("sum"), sample.sum(axis=0), 1e-12, 1e-6)
    expected = np.quantile(sample, LEVELS, axis=0)
    np.testing.assert_array_equal(make("quantiles"), expected)
    own = np.quantile(sample, [0.3], axis=0)
    np.testing.assert_array_equal(make("quantiles", levels=(0.3,)), own)


@quick
@given(st.lists(row, max_size=6))
def test_ragged_rows_are_pooled(sample: list[np.ndarray]) -> None:
    pooled = np.concatenate([*sample, np.zeros(0)])
    edges = (-1e6, -10.0, 0.0, 1.0, 500.0)

    def make(kind: str, **keys: object) -> np.ndarray:
        return make_pool(Pool(kind, "x", **keys), sample, LEVELS)  # type: ignore[arg-type]

    assert make("count") == len(pooled)
    assert make("sum") == pytest.approx(pooled.sum())
    counts = np.histogram(pooled, edges)[0]
    np.testing.assert_array_equal(make("histogram", edges=edges), counts)
    density = make("density", edges=edges)
    if len(pooled):
        assert make("mean") == pytest.approx(pooled.mean())
        np.testing.assert_array_equal(
            make("quantiles"), np.quantile(pooled, LEVELS) + 0.0
        )
        share = (density * np.diff(edges)).sum()
        assert share == pytest.approx(counts.sum() / len(pooled))
    else:
        assert np.isnan(make("mean"))
        assert np.isnan(make("quantiles")).all()
        assert np.isnan(density).all()


def test_what_is_not_finite_is_in_no_bin() -> None:
    pool = Pool("histogram", "x", edges=(0.0, 1.0, 2.0))
    sample = [np.array([0.5, np.nan]), np.array([np.inf, 2.0, 3.0])]
    assert make_pool(pool, sample, LEVELS).tolist() == [1, 1]


def test_bins_are_of_equal_width_or_of_equal_ratio() -> None:
    even = Pool("histogram", "x", bins=4, low=0.0, high=2.0)
    assert find_edges(even).tolist() == [0, 0.5, 1, 1.5, 2]
    middles = find_coordinate(even)
    assert middles is not None
    assert middles.tolist() == [0.25, 0.75, 1.25, 1.75]
    ratio = Pool("density", "x", bins=2, low=1.0, high=100.0, scale="log")
    assert find_edges(ratio).tolist() == pytest.approx([1, 10, 100])
    middles = find_coordinate(ratio)
    assert middles is not None
    assert middles.tolist() == pytest.approx([10**0.5, 10**1.5])
    assert find_coordinate(Pool("mean", "x")) is None


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"edges": (1.0,)}, "edges [1.0] should rise, and be two or more"),
        ({"edges": (1.0, 1.0)}, "should rise"),
        ({"bins": 3, "low": 1.0}, "needs edges, or bins with low and high"),
        ({"bins": 3, "low": 2.0, "high": 1.0}, "low = 2.0 is not below high = 1.0"),
        ({"bins": 3, "low": 0.0, "high": 1.0, "scale": "log"}, "has no logarithm"),
    ],
)
def test_bins_that_are_none_are_told(keys: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told.replace("[", r"\[")):
        find_edges(Pool("histogram", "x", **keys))  # type: ignore[arg-type]
