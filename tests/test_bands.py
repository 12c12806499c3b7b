"""Statistics: numpy's own numbers, the same bits in any slab, summaries by loops."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from mpiens import bands

quick = settings(max_examples=50, deadline=None, database=None)
finite = st.one_of(st.sampled_from([0.0, -0.0, 1.0]), st.floats(-1e6, 1e6))
wild = st.one_of(finite, st.floats(), st.sampled_from([math.nan, math.inf, -math.inf]))
levels = st.lists(st.floats(0, 1), min_size=1, max_size=4)
shapes = array_shapes(min_dims=1, max_dims=3, max_side=7)


def samples(elements: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    return arrays(np.float64, shapes, elements=elements)


def bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


@quick
@given(st.one_of(samples(finite), samples(wild)), levels)
@example(np.array([-0.0, -0.0]), [0.0, 0.3, 0.7, 1.0])
@example(np.array([-0.1, 0.3]), [0.5])  # its two ways to the middle differ
def test_quantiles_are_numpys(samples: Any, levels: list[float]) -> None:
    found = bands.quantiles(samples, levels)
    with np.errstate(all="ignore"):  # numpy warns of infinities, mpiens does not
        expected = np.quantile(samples, levels, axis=-1)
    assert found.shape == (len(levels), *samples.shape[:-1])
    assert found.dtype == np.float64
    assert np.array_equal(found, expected, equal_nan=True)
    assert not np.signbit(found[found == 0]).any()


@pytest.mark.parametrize("count", [997, 998])  # an even count has its median between
def test_quantiles_of_a_large_sample_are_numpys_to_the_last_bit(count: int) -> None:
    rng = np.random.default_rng(3)
    samples = rng.lognormal(size=(200, count))
    levels = [0.05, 0.25, 1 / 3, 0.5, 0.75, 0.95, 0.999]
    found = bands.quantiles(samples, levels)
    assert bits(found) == bits(np.quantile(samples, levels, axis=-1))


def test_quantiles_have_their_closed_form() -> None:
    samples = np.random.default_rng(3).permutation(np.arange(101.0))
    found = bands.quantiles(samples, [0, 0.05, 0.5, 0.95, 1])
    assert np.allclose(found, [0, 5, 50, 95, 100], rtol=1e-14, atol=0)


def test_quantiles_leave_their_samples_as_they_are() -> None:
    samples = np.array([3.0, 1.0, 2.0])
    bands.quantiles(samples, [0.5])
    assert samples.tolist() == [3.0, 1.0, 2.0]


@quick
@given(samples(finite))
def test_mean_and_deviation_are_numpys(samples: Any) -> None:
    assert bits(bands.mean(samples)) == bits(samples.mean(axis=-1))
    if samples.shape[-1] > 1:
        expected = samples.std(axis=-1, ddof=1)
        assert bits(bands.deviation(samples)) == bits(expected)


@quick
@given(samples(wild))
@example(np.array([math.inf, -math.inf]))
@example(np.array([-1.7e308, 1.7e308]))
@example(np.array([1.7e308, 1.7e308]))
def test_infinite_numbers_give_no_warning(samples: Any) -> None:
    # warnings are errors here
    assert bands.mean(samples).shape == samples.shape[:-1]
    assert bands.deviation(samples).shape == samples.shape[:-1]
    assert bands.quantiles(samples, [0.0, 0.3, 1.0]).shape[1:] == samples.shape[:-1]
    rows = samples.reshape(-1, samples.shape[-1])
    for kind in ("final", "peak", "peak_time", "total"):
        found = bands.summarise(kind, rows, np.arange(rows.shape[1]), padded=False)
        assert found.shape == (len(rows),)


def test_what_has_too_few_replicates_is_nan() -> None:
    none, one = np.empty((4, 0)), np.full((4, 1), 2.5)
    assert np.isnan(bands.quantiles(none, [0.1, 0.9])).all()
    assert bands.quantiles(none, [0.1, 0.9]).shape == (2, 4)
    assert np.isnan(bands.mean(none)).all()
    assert np.isnan(bands.deviation(none)).all()
    assert np.isnan(bands.deviation(one)).all()
    assert bands.deviation(one).shape == (4,)
    assert (bands.quantiles(one, [0.0, 0.3, 1.0]) == 2.5).all()
    assert (bands.mean(one) == 2.5).all()


@quick
@given(
    arrays(np.float64, st.tuples(st.just(3), st.integers(1, 9), st.integers(1, 40))),
    st.data(),
)
def test_cutting_into_slabs_changes_no_bit(samples: Any, data: st.DataObject) -> None:
    steps = samples.shape[1]
    edges = sorted({0, steps, *data.draw(st.lists(st.integers(0, steps), max_size=4))})
    slabs = [samples[:, a:b] for a, b in itertools.pairwise(edges)]
    chosen = [0.05, 0.5, 0.95]
    for whole, parts in (
        (bands.mean(samples), [bands.mean(slab) for slab in slabs]),
        (bands.deviation(samples), [bands.deviation(slab) for slab in slabs]),
        (
            bands.quantiles(samples, chosen),
            [bands.quantiles(slab, chosen) for slab in slabs],
        ),
    ):
        assert bits(whole) == bits(np.concatenate(parts, axis=-1))


def summarise_row(kind: str, row: list[float], times: list[float]) -> float:
    """A plain loop, as a user would write it."""
    if any(math.isnan(value) for value in row) and kind != "final":
        return math.nan
    final, peak, peak_time, total = math.nan, -math.inf, times[0], 0.0
    for value, time in zip(row, times, strict=False):
        final = value
        total += value
        if value > peak:
            peak, peak_time = value, time
    summaries = {"final": final, "peak": peak, "peak_time": peak_time, "total": total}
    return summaries[kind]


whole = st.integers(-1000, 1000).map(float)  # sums of these are exact in any order


@pytest.mark.parametrize("kind", ["final", "peak", "peak_time", "total"])
@quick
@given(rows=arrays(np.float64, array_shapes(min_dims=2, max_dims=2), elements=whole))
def test_a_summary_is_what_a_loop_finds(kind: str, rows: Any) -> None:
    times = np.arange(rows.shape[1]) * 0.5 + 3
    found = bands.summarise(kind, rows, times, padded=False)
    expected = [summarise_row(kind, row, times.tolist()) for row in rows.tolist()]
    assert found.tolist() == expected


@pytest.mark.parametrize("kind", ["final", "peak", "peak_time", "total"])
@quick
@given(
    rows=st.lists(st.lists(whole | st.just(-math.inf), max_size=6), max_size=6),
    spare=st.integers(1, 3),
)
def test_a_padded_row_has_the_summary_of_its_own_length(
    kind: str, rows: list[list[float]], spare: int
) -> None:
    steps = max(map(len, rows), default=0) + spare
    padded = np.full((len(rows), steps), np.nan)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = row
    times = np.arange(steps, dtype=float)
    found = bands.summarise(kind, padded, times, padded=True)
    expected = [
        summarise_row(kind, row, times.tolist()) if row else math.nan for row in rows
    ]
    assert np.array_equal(found, expected, equal_nan=True)


@pytest.mark.parametrize("kind", ["final", "peak", "peak_time", "total"])
def test_a_nan_within_a_row_is_not_passed_over(kind: str) -> None:
    rows = np.array([[1.0, np.nan, 3.0], [1.0, 2.0, np.nan]])
    times = np.arange(3.0)
    plain = bands.summarise(kind, rows, times, padded=False)
    padded = bands.summarise(kind, rows, times, padded=True)
    last = {"final": 2.0, "peak": 2.0, "peak_time": 1.0, "total": 3.0}
    within = 3.0 if kind == "final" else np.nan
    assert np.array_equal(plain, [within, np.nan], equal_nan=True)
    assert np.array_equal(padded, [within, last[kind]], equal_nan=True)


@quick
@given(arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 40))), st.data())
def test_a_summary_depends_on_its_own_row_only(rows: Any, data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(rows) - 1))
    with np.errstate(all="ignore"):
        for kind in ("final", "peak", "peak_time", "total"):
            for padded in (False, True):
                times = np.arange(rows.shape[1], dtype=float)
                all_rows = bands.summarise(kind, rows, times, padded=padded)
                alone = bands.summarise(
                    kind, rows[index : index + 1], times, padded=padded
                )
                assert bits(all_rows[index : index + 1]) == bits(alone)


def test_rows_without_steps_have_no_summary() -> None:
    found = bands.summarise("final", np.empty((2, 0)), np.empty(0), padded=False)
    assert np.isnan(found).all()
