"""What parameters do: against closed forms, scipy, and by what intervals cover."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from scipy.stats import qmc

from mpiens.indices import correlate, find_indices, find_noise

Floats = NDArray[np.float64]


def ishigami(x: Floats) -> Floats:
    """Ishigami and Homma's function of three angles, a = 7 and b = 0.1."""
    one, two, three = np.moveaxis(x, -1, 0)
    return np.sin(one) + 7 * np.sin(two) ** 2 + 0.1 * three**4 * np.sin(one)


def ishigami_indices() -> tuple[Floats, Floats]:
    """First-order and total ones, from its variances in closed form."""
    one = 0.5 * (1 + 0.1 * math.pi**4 / 5) ** 2
    two, both = 7**2 / 8, 0.1**2 * math.pi**8 * (1 / 18 - 1 / 50)
    parts = np.array([one, two, 0.0]), np.array([one + both, two, both])
    return parts[0] / (one + two + both), parts[1] / (one + two + both)


def cross(a: Floats, b: Floats) -> Floats:
    """Blocks of points: A, A with each column of B in turn, and B."""
    blocks = [a]
    for column in range(a.shape[1]):
        blocks.append(a.copy())
        blocks[-1][:, column] = b[:, column]
    return np.stack([*blocks, b], axis=1)


def find(values: Floats, confidence: float = 0.95) -> dict[str, Floats]:
    return find_indices(values, confidence=confidence, seed=1)


@pytest.fixture(scope="module")
def blocks() -> Floats:
    units = qmc.Sobol(6, rng=np.random.default_rng(3)).random(1024)
    points = math.pi * (2 * units - 1)
    return ishigami(cross(points[:, :3], points[:, 3:]))


def test_indices_are_those_of_the_closed_form(blocks: Floats) -> None:
    found = find(blocks)
    for name, exact in zip(("first", "total"), ishigami_indices(), strict=True):
        np.testing.assert_allclose(found[name], exact, atol=0.02)
        low, high = found[f"{name}_interval"].T
        assert (low < exact).all()
        assert (exact < high).all()
        np.testing.assert_allclose((low + high) / 2, found[name])


def test_indices_are_those_of_scipy(blocks: Floats) -> None:
    found = find(blocks)
    values = {"f_A": blocks[None, :, 0], "f_B": blocks[None, :, -1]}
    values["f_AB"] = np.moveaxis(blocks[:, 1:-1], 1, 0)[:, None]
    theirs = stats.sobol_indices(func=values, n=len(blocks))
    np.testing.assert_allclose(found["total"], np.ravel(theirs.total_order))
    # the mean that is taken off first is of all points here, and of both ends there
    first = np.ravel(theirs.first_order)
    np.testing.assert_allclose(found["first"], first, atol=0.005)


def test_blocks_that_are_no_numbers_are_left_out(blocks: Floats) -> None:
    some = blocks.copy()
    some[5, 2], some[17, 0], some[40, 4] = np.nan, np.inf, np.nan
    kept = np.delete(blocks, [5, 17, 40], axis=0)
    for name, values in find(some).items():
        np.testing.assert_array_equal(values, find(kept)[name])


def test_what_does_not_vary_has_no_indices(blocks: Floats) -> None:
    for values in (np.full((8, 5), 3.0), blocks[:1], np.full((8, 5), np.nan)):
        for found in find(values).values():
            assert np.isnan(found).all()


def test_intervals_of_indices_cover_what_they_say() -> None:
    rng = np.random.default_rng(11)
    weights = np.array([1.0, 2.0, 3.0])
    exact = weights**2 / (weights**2).sum()
    draws, inside = 400, {"first": 0, "total": 0}
    for _ in range(draws):
        a, b = rng.random((2, 256, 3))
        found = find(cross(a, b) @ weights)
        for name in inside:
            low, high = found[f"{name}_interval"].T
            inside[name] += int(((low < exact) & (exact < high)).sum())
    for count in inside.values():  # of 100 resamples the widths are a little uncertain
        assert 0.93 < count / (3 * draws) < 0.97


def test_correlations_are_those_of_scipy_and_leave_out_what_is_no_number() -> None:
    rng = np.random.default_rng(7)
    points = rng.normal(size=(50, 3))
    points[:, 2] = np.round(points[:, 2])
    values = points @ [1.0, -0.5, 0.0] + rng.standard_cauchy(50)
    values[[3, 30]] = np.nan
    found = correlate(points, values, confidence=0.95)
    for index, column in enumerate(points.T):
        theirs = stats.spearmanr(column, values, nan_policy="omit").statistic
        assert found["correlation"][index] == pytest.approx(theirs)
        low, high = found["correlation_interval"][index]
        assert -1 < low < theirs < high < 1


@pytest.mark.parametrize("digits", [15, 0], ids=["smooth", "ties"])
def test_intervals_of_correlations_cover_what_they_say(digits: int) -> None:
    rng = np.random.default_rng(digits)
    slope, draws, inside = 0.6, 3000, 0

    def draw(count: int) -> tuple[Floats, Floats]:
        x = rng.normal(size=(count, 1))
        y = slope * x[:, 0] + math.sqrt(1 - slope**2) * rng.normal(size=count)
        return x, np.round(y, digits) if digits == 0 else y

    exact = 6 / math.pi * math.asin(slope / 2)
    if digits == 0:
        x, y = draw(400_000)
        exact = float(stats.spearmanr(x[:, 0], y).statistic)
    for _ in range(draws):
        told = correlate(*draw(40), confidence=0.9)
        low, high = told["correlation_interval"][0]
        inside += low < exact < high
    assert abs(inside / draws - 0.9) < 0.02


def test_correlations_without_an_answer() -> None:
    points = np.array([[1.0, 5.0, np.nan], [2.0, 5.0, np.nan], [3.0, 5.0, np.nan]])
    found = correlate(points, np.array([2.0, 4.0, 8.0]), confidence=0.95)
    np.testing.assert_array_equal(found["correlation"], [1.0, np.nan, np.nan])
    assert np.isnan(found["correlation_interval"]).all(), "three points bound nothing"
    more = np.arange(8.0)
    found = correlate(more[:, None], -more, confidence=0.95)
    assert found["correlation"].tolist() == [-1.0]
    assert found["correlation_interval"].tolist() == [[-1.0, -1.0]]
    found = correlate(more[:, None], np.ones(8), confidence=0.95)
    assert np.isnan(found["correlation"]).all()


def test_noise_is_the_share_of_variance_that_is_of_the_errors() -> None:
    rng = np.random.default_rng(5)
    signal = rng.normal(scale=2, size=20_000)
    replicates = signal[:, None] + rng.normal(scale=3, size=(20_000, 9))
    errors = replicates.std(axis=1, ddof=1) / 3
    found = find_noise(replicates.mean(axis=1), errors)
    assert found == pytest.approx(1 / (4 + 1), abs=0.005)  # 9 / 9 beside 4
    assert math.isnan(find_noise(np.ones(5), np.ones(5)))
    assert math.isnan(find_noise(np.arange(5.0), np.full(5, np.nan)))
