"""Depth of curves: by brute force, as statsmodels has it, and however they are cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from statsmodels.graphics.functional import banddepth

from mpiens.depth import (
    contain,
    count_pairs,
    draw_groups,
    find_central,
    find_depth,
    find_envelope,
    find_fences,
    find_outlying,
)

few_values = st.integers(0, 4).map(float)  # so that there are ties
shapes = st.tuples(st.integers(1, 6), st.integers(2, 8))
curves = arrays.arrays(float, shapes, elements=few_values)


def count_by_hand(samples: np.ndarray) -> list[int]:
    steps, count = samples.shape
    found = [0] * count
    for step, (one, other) in itertools.product(
        range(steps), itertools.combinations(range(count), 2)
    ):
        low, high = sorted([samples[step, one], samples[step, other]])
        for curve in range(count):
            found[curve] += int(low <= samples[step, curve] <= high)
    return found


@settings(deadline=None)
@given(curves)
def test_pairs_are_counted_exactly_with_ties(samples: np.ndarray) -> None:
    assert count_pairs(samples).tolist() == count_by_hand(samples)


@settings(deadline=None)
@given(curves, st.data())
def test_counts_add_up_however_curves_are_cut(
    samples: np.ndarray, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(samples)))
    parts = count_pairs(samples[:cut]) + count_pairs(samples[cut:])
    assert parts.tolist() == count_pairs(samples).tolist()


def test_depth_is_statsmodels() -> None:
    samples = np.random.default_rng(1).normal(size=(40, 25)).cumsum(axis=0)
    ours = find_depth(count_pairs(samples), 40)
    theirs = banddepth(samples.T, method="MBD")
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert np.argsort(ours).tolist() == np.argsort(theirs).tolist()


def test_steps_without_a_number_count_for_none() -> None:
    samples = np.random.default_rng(2).normal(size=(6, 5))
    padded = np.vstack([samples, np.full((2, 5), np.nan)])
    padded[-2, :3] = 1.0
    assert count_pairs(padded).tolist() == count_pairs(samples).tolist()


def test_the_deepest_come_first_and_earlier_replicates_before_later_ones() -> None:
    assert find_central(np.array([3, 9, 3, 5, 1])).tolist() == [1, 3, 0]
    assert find_central(np.array([1, 1, 1, 1]), 0.5).tolist() == [0, 1]


def test_a_curve_that_leaves_the_fences_is_outlying() -> None:
    samples = np.tile(np.linspace(0, 1, 11), (5, 1))
    samples[3, 10] = 9.0
    envelope = find_envelope(samples, find_central(count_pairs(samples)))
    assert envelope[:, 0].tolist() == pytest.approx([0.2, 0.8], abs=0.11)
    found = find_outlying(samples, find_fences(envelope))
    assert np.flatnonzero(found).tolist() == [10]


def test_a_curve_box_counts_groups_that_contain_a_curve_wholly() -> None:
    samples = np.random.default_rng(3).normal(size=(9, 12)).cumsum(axis=0)
    groups = draw_groups(12, 7, groups=50, size=4)
    assert groups.shape == (50, 4)
    assert all(len({*group}) == 4 for group in groups.tolist())
    found = contain(samples, groups)
    for index, curve in itertools.product(range(50), range(12)):
        own = samples[:, groups[index]]
        within = [
            min(own[step]) <= samples[step, curve] <= max(own[step])
            for step in range(9)
        ]
        assert found[index, curve] == all(within)
    parts = contain(samples[:4], groups) & contain(samples[4:], groups)
    assert (parts == found).all()


def test_groups_are_the_same_at_every_run() -> None:
    assert (draw_groups(30, 5) == draw_groups(30, 5)).all()
    assert not (draw_groups(30, 5) == draw_groups(30, 6)).all()
    assert draw_groups(3, 1).shape == (100, 3)


def test_the_middle_of_parallel_curves_is_deepest() -> None:
    samples = np.arange(9.0)[None, :] + np.arange(4.0)[:, None]
    depth = find_depth(count_pairs(samples), 4)
    assert depth.argmax() == 4
    assert depth[0] == depth[8] == depth.min()
    assert depth[4] == (8 + 4 * 4) / 36
