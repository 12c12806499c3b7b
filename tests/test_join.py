"""Joining: what is known is found, errors cover, order is nothing, faults are told."""

from __future__ import annotations

import dataclasses
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Launcher
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import windows as scipy_windows

import mpiens
from mpiens.alignment import window
from mpiens.joining import Joined, join

hundredths = st.integers(0, 100).map(lambda n: n / 100)
quick = settings(max_examples=60, deadline=None, database=None)
TAPERS = ["hann", "boxcar", "tukey", "triang", "bartlett", "cosine", ("kaiser", 6.0)]
EXAMPLE = Path(__file__).parents[1] / "examples" / "pieces"

X = np.arange(40.0)
CUTS = [slice(0, 12), slice(8, 22), slice(18, 31), slice(25, 40)]
CURVE = 10 * np.sin(X / 5)
NEXT = [0, 9]  # of two pieces


def cut(y: np.ndarray, cuts: list[slice] = CUTS) -> list[np.ndarray]:
    """Pieces of a curve, each with a constant of its own; that of the first is 0."""
    return [y[..., part] + 7.0 * k for k, part in enumerate(cuts)]


XS = [X[part] for part in CUTS]
OFFSETS = -7.0 * np.arange(len(CUTS))


def noisy(rng: np.random.Generator, size: float, *shape: int) -> list[np.ndarray]:
    return [y + rng.normal(0, size, (*shape, y.size)) for y in cut(CURVE)]


def bits(joined: Joined, order: list[int]) -> list[Any]:
    """All that a join returns, with pieces in another order."""
    found: list[Any] = []
    for name, value in vars_of(joined).items():
        if name == "residuals":
            found.append(
                [dataclasses.replace(r, first=0, second=0) for r in value]
                + [(order[r.first], order[r.second]) for r in value]
            )
        elif name in ("offsets", "offset_errors"):
            found.append(value[np.argsort(order)].tobytes())
        else:
            found.append(None if value is None else value.tobytes())
    return found


def vars_of(joined: Joined) -> dict[str, Any]:
    return {f.name: getattr(joined, f.name) for f in dataclasses.fields(joined)}


# What is known is found


@st.composite
def cuts(draw: st.DrawFn) -> list[slice]:
    """Windows that each share points with one before; some lie within others."""
    found = [slice(0, draw(st.integers(2, 12)))]
    for _ in range(draw(st.integers(0, 6))):
        before = found[draw(st.integers(0, len(found) - 1))]
        start = draw(st.integers(before.start, before.stop - 1))
        found.append(slice(start, start + draw(st.integers(1, 12))))
    return draw(st.permutations(found))


@quick
@given(cuts(), st.sampled_from(TAPERS), st.data())
def test_pieces_without_noise_give_the_curve(
    cuts: list[slice], taper: Any, data: st.DataObject
) -> None:
    size = max(part.stop for part in cuts)
    numbers = st.floats(-100, 100)
    several = st.lists(numbers, min_size=size, max_size=size)
    x = np.cumsum(np.abs(data.draw(several)) + 0.1)
    y = np.array(data.draw(several))
    constants = data.draw(st.lists(numbers, min_size=len(cuts), max_size=len(cuts)))
    xs = [x[part] for part in cuts]
    ys = [y[part] + c for part, c in zip(cuts, constants, strict=True)]
    joined = join(xs, ys, taper=taper, anchor=(x[0], y[0]))
    np.testing.assert_allclose(joined.x, x, rtol=0, atol=0)
    np.testing.assert_allclose(joined.y, y, rtol=0, atol=1e-10)
    np.testing.assert_allclose(joined.offsets, np.negative(constants), 0, 1e-10)
    covering = np.zeros(size, dtype=int)
    for part in cuts:
        covering[part] += 1
    assert joined.count.tolist() == covering.tolist()
    assert all(residual.rms < 1e-10 for residual in joined.residuals)
    assert np.isnan(joined.error).all()
    assert joined.bootstrap_error is None


def test_the_first_piece_is_what_others_are_aligned_to() -> None:
    joined = join(XS, cut(CURVE))
    np.testing.assert_allclose(joined.y, CURVE, rtol=0, atol=1e-12)
    np.testing.assert_allclose(joined.offsets, OFFSETS, rtol=0, atol=1e-12)
    backwards = join(XS[::-1], cut(CURVE)[::-1])
    np.testing.assert_allclose(backwards.offsets, OFFSETS[::-1], rtol=0, atol=1e-12)
    known = join(XS, cut(CURVE), anchor=2.5)
    np.testing.assert_allclose(known.y, CURVE + 2.5, rtol=0, atol=1e-12)
    np.testing.assert_allclose(known.offsets, OFFSETS + 2.5, rtol=0, atol=1e-12)


def test_the_curve_goes_through_a_reference_without_error() -> None:
    for errors, replicates in ((0.1, ()), (None, (5,))):
        ys = noisy(np.random.default_rng(1), 0.1, *replicates)
        joined = join(XS, ys, errors=errors, anchor=(20.0, 3.0), bootstrap=50)
        assert joined.y[20] == pytest.approx(3.0, abs=1e-12)
        assert joined.error[20] == pytest.approx(0.0, abs=1e-7)
        assert joined.error.min() == joined.error[20]
        assert joined.draws is None or np.abs(joined.draws[:, 20] - 3).max() < 1e-12
    half = join(XS, cut(CURVE), anchor=(20.25, 3.0), interpolate=True)
    between = half.y[20] * 0.75 + half.y[21] * 0.25
    assert between == pytest.approx(3.0, abs=1e-12)


# By other ways


def stacked(
    ws: list[np.ndarray], *, fitted: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """The map from data to (curve, offsets) by a dense design matrix, and weights."""
    weight = np.concatenate(ws)
    design = np.zeros((len(weight), len(X) + len(CUTS) - 1))
    row = 0
    for number, part in enumerate(CUTS):
        for point in range(part.start, part.stop):
            design[row, point] = 1
            if number and fitted:
                design[row, len(X) + number - 1] = -1
            row += 1
    root = np.sqrt(weight)
    return np.linalg.pinv(root[:, None] * design) * root, design


def hanns() -> list[np.ndarray]:
    return [scipy_windows.hann(len(x) + 2)[1:-1] for x in XS]


def given_weights() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.uniform(0.01, 5, len(x)) for x in XS]


@pytest.mark.parametrize("way", ["hann", "weights", "variance", "both"])
def test_offsets_and_errors_are_those_of_the_stacked_design(way: str) -> None:
    rng = np.random.default_rng(5)
    ys = noisy(rng, 0.3)
    errors = [rng.uniform(0.1, 0.6, len(x)) for x in XS]
    ws, keys = {
        "hann": (hanns(), {}),
        "weights": (given_weights(), {"weights": given_weights()}),
        "variance": ([e**-2 for e in errors], {"weights": "variance"}),
        "both": (
            [h / e**2 for h, e in zip(hanns(), errors, strict=True)],
            {"weights": "variance", "taper": "hann"},
        ),
    }[way]
    joined = join(XS, ys, errors=errors, **keys)  # type: ignore[arg-type]
    by_matrix, design = stacked(ws)
    root = np.sqrt(np.concatenate(ws))
    d = np.concatenate(ys)
    by_lstsq = np.linalg.lstsq(root[:, None] * design, root * d, rcond=None)[0]
    np.testing.assert_allclose(joined.y, by_lstsq[:40], rtol=0, atol=1e-11)
    np.testing.assert_allclose(joined.offsets[1:], by_lstsq[40:], rtol=0, atol=1e-11)
    assert joined.offsets[0] == 0
    covariance = (by_matrix * np.concatenate(errors) ** 2) @ by_matrix.T
    expected = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(joined.error, expected[:40], rtol=1e-9)
    np.testing.assert_allclose(joined.offset_errors[1:], expected[40:], rtol=1e-9)
    reference = join(XS, ys, errors=errors, anchor=(17.0, 0.0), **keys)  # type: ignore[arg-type]
    differences = by_matrix[:40] - by_matrix[17]
    covariance = (differences * np.concatenate(errors) ** 2) @ differences.T
    expected = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(reference.error, expected, rtol=1e-7, atol=1e-7)


def test_inverse_variances_give_the_smallest_errors() -> None:
    rng = np.random.default_rng(6)
    errors = [rng.uniform(0.1, 0.9, len(x)) for x in XS]
    ys = noisy(rng, 0.3)
    best = join(XS, ys, errors=errors, weights="variance")
    for taper in TAPERS:
        other = join(XS, ys, errors=errors, taper=taper)
        assert (best.error <= other.error + 1e-12).all()
    assert best.error[-1] < 0.95 * join(XS, ys, errors=errors).error[-1]


MODES: dict[str, dict[str, Any]] = {
    "offsets": {},
    "reference": {"anchor": (20.0, 0.0)},
    "aligned": {"aligned": True},
    "credences": {"credences": [1, 0.5, 0.7, 0.2]},
    "interpolate": {"interpolate": True, "anchor": (3.3, 0.0)},
    "slopes": {"derivative": True},
    "integral": {"derivative": True, "integrate": True},
    "both": {"derivative": True, "integrate": True, "anchor": (9.0, 0.0)},
    "fine slopes": {"derivative": True, "interpolate": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_errors_are_what_a_change_of_each_point_does(mode: str) -> None:
    xs = [x[::2] if k % 2 and "fine" in mode else x for k, x in enumerate(XS)]
    if mode == "interpolate":
        xs = [x + 0.25 * k for k, x in enumerate(XS)]
    sizes = [len(x) for x in xs]
    errors = np.random.default_rng(8).uniform(0.1, 0.5, sum(sizes))
    parts = np.split(errors, np.cumsum(sizes)[:-1])
    keys = MODES[mode]
    changes = [
        join(xs, np.split(row, np.cumsum(sizes)[:-1]), **keys).y
        for row in np.diag(errors)
    ]
    joined = join(xs, [0 * x for x in xs], errors=parts, **keys)
    expected = np.sqrt(np.square(changes).sum(axis=0))
    np.testing.assert_allclose(joined.error, expected, rtol=1e-9, atol=1e-7)
    assert np.abs(joined.y).max() < 1e-12


def test_replicates_tell_their_covariance() -> None:
    """By the map of the stacked design and the sample covariance of replicates."""
    rng = np.random.default_rng(9)
    ys = [np.cumsum(y, axis=1) for y in noisy(rng, 0.3, 6)]
    joined = join(XS, ys, bootstrap=4000)
    by_matrix, _ = stacked(hanns())
    covariance, start = np.zeros((len(by_matrix),) * 2), 0
    for y in ys:
        part = by_matrix[:, start : start + y.shape[1]]
        covariance += part @ np.cov(y.T) @ part.T / len(y)
        start += y.shape[1]
    expected = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(joined.error, expected[:40], rtol=1e-9)
    np.testing.assert_allclose(joined.offset_errors[1:], expected[40:], rtol=1e-9)
    means = by_matrix @ np.concatenate([y.mean(axis=0) for y in ys])
    np.testing.assert_allclose(joined.y, means[:40], rtol=0, atol=1e-10)
    # the bootstrap has this as its limit; 4,000 draws tell a deviation to 1.1 %
    assert joined.bootstrap_error is not None
    assert joined.draws is not None
    np.testing.assert_allclose(joined.bootstrap_error, joined.error, rtol=0.06)
    assert joined.draws.shape == (4000, 40)
    away = (joined.draws.mean(axis=0) - joined.y) / joined.error
    assert np.abs(away).max() < 5 / np.sqrt(4000)


def test_levels_of_replicates_do_not_matter_to_a_reference() -> None:
    rng = np.random.default_rng(10)
    ys = noisy(rng, 0.2, 8)
    moved = [y + rng.normal(0, 50, (8, 1)) for y in ys]
    for weights in (None, "variance"):
        keys = {"weights": weights, "anchor": (5.0, 0.0)}
        plain, wild = (join(XS, some, **keys) for some in (ys, moved))  # type: ignore[arg-type]
        np.testing.assert_allclose(plain.y, wild.y, rtol=0, atol=1e-9)
        np.testing.assert_allclose(plain.error, wild.error, rtol=0, atol=1e-9)
        scaled = [[r.scaled for r in each.residuals] for each in (plain, wild)]
        np.testing.assert_allclose(*scaled, rtol=1e-9)


@pytest.mark.parametrize("replicates", [2, 5])
def test_variances_to_weigh_by_are_those_of_replicates(replicates: int) -> None:
    """About the level of each replicate, by a plain loop."""
    ys = noisy(np.random.default_rng(23), 0.3, replicates)
    weights = []
    for y in ys:
        count = y.shape[1]
        apart = np.array([row - sum(row) / count for row in y])
        squares = sum((row - sum(apart) / replicates) ** 2 for row in apart)
        variance = squares / (replicates - 1) / replicates * count / (count - 1)
        weights.append(1 / variance)
    expected = join(XS, ys, weights=weights, bootstrap=20)
    found = join(XS, ys, weights="variance", bootstrap=20)
    np.testing.assert_allclose(found.y, expected.y, rtol=0, atol=1e-11)
    np.testing.assert_allclose(found.error, expected.error, rtol=1e-9)


# Errors cover


def shares_within(joins: list[Joined], name: str = "error") -> tuple[float, float]:
    """How often the curve is within 1.96 standard errors, and how sure that is."""
    shares = [
        np.mean(np.abs(j.y - CURVE) <= 1.96 * getattr(j, name) + 1e-12) for j in joins
    ]
    return float(np.mean(shares)), float(np.std(shares) / np.sqrt(len(shares)))


@pytest.mark.parametrize("weights", [None, "variance"])
def test_propagated_errors_cover(weights: Any) -> None:
    rng = np.random.default_rng(11)
    errors = [rng.uniform(0.05, 0.5, len(x)) for x in XS]
    joins = []
    for _ in range(400):
        ys = [y + rng.normal(0, e) for y, e in zip(cut(CURVE), errors, strict=True)]
        joins.append(join(XS, ys, errors=errors, weights=weights))
    share, sure = shares_within(joins)
    assert abs(share - 0.95) < 4 * sure
    assert sure < 0.008
    # what the offsets bring is most of it at the far end
    assert joins[0].error[-5:].min() > 0.2
    scaled = np.array([[r.scaled**2 for r in j.residuals] for j in joins])
    sure = scaled.std(axis=0) / np.sqrt(len(joins))
    assert (np.abs(scaled.mean(axis=0) - 1) < 4 * sure).all()


def test_errors_of_correlated_replicates_cover() -> None:
    """Noise of a long wavelength, as that of a sampled entropy: each piece tilts."""
    rng = np.random.default_rng(12)
    joins, naive = [], []
    for _ in range(150):
        ys = [
            y + rng.normal(0, 0.1, (40, 1)) * (x - x.mean())
            for x, y in zip(XS, noisy(rng, 0.2, 40), strict=True)
        ]
        joins.append(join(XS, ys, bootstrap=200))
        means = [y.mean(axis=0) for y in ys]
        alone = [y.std(axis=0, ddof=1) / np.sqrt(40) for y in ys]
        naive.append(join(XS, means, errors=alone))
    for name in ("error", "bootstrap_error"):
        share, sure = shares_within(joins, name)
        # 40 replicates: Student's t of 39 degrees has 94.3 % within 1.96
        assert 0.943 - 4 * sure < share < 0.95 + 4 * sure
        assert sure < 0.015
    assert shares_within(naive)[0] < 0.85  # as if points were independent
    scaled = np.array([[r.scaled**2 for r in j.residuals] for j in joins])
    assert ((scaled.mean(axis=0) > 0.8) & (scaled.mean(axis=0) < 1.25)).all()


def test_a_piece_that_does_not_agree_is_told_by_its_residuals() -> None:
    ys = noisy(np.random.default_rng(13), 0.1)
    ys[2] = ys[2] + 0.4 * np.arange(len(ys[2]))
    joined = join(XS, ys, errors=0.1)
    scaled = {(r.first, r.second): r.scaled for r in joined.residuals}
    assert set(scaled) == {(0, 1), (1, 2), (2, 3)}
    assert scaled[0, 1] < 2
    assert min(scaled[1, 2], scaled[2, 3]) > 3
    assert [r.points for r in joined.residuals] == [4, 4, 6]
    first, second = ys[0][8:] + joined.offsets[0], ys[1][:4] + joined.offsets[1]
    apart = np.sqrt(np.mean((first - second) ** 2))
    assert joined.residuals[0].rms == pytest.approx(apart)

    # at the one point that two pieces share, their offset makes them agree, always
    x, one = np.arange(3.0), [np.arange(3.0), np.arange(2.0, 5.0)]
    for errors, y in ((0.1, x), (None, [x, x**2, 2 * x])):
        joined = join(one, [y, y], errors=errors)
        assert joined.residuals[0].rms == pytest.approx(0, abs=1e-12)
        assert np.isnan(joined.residuals[0].scaled)


def test_residuals_are_scaled_by_what_the_stacked_design_expects() -> None:
    errors = np.random.default_rng(21).uniform(0.1, 0.5, sum(map(len, XS)))
    parts = np.split(errors, np.cumsum([len(x) for x in XS])[:-1])
    ys = noisy(np.random.default_rng(22), 0.3)
    joined = join(XS, ys, errors=parts, anchor=(30.0, 0.0))
    by_matrix, _ = stacked(hanns())
    lift = np.vstack([np.zeros(len(errors)), by_matrix[40:]])
    first, second = np.arange(8, 12), np.arange(12, 16)  # data of pieces 0 and 1
    both = np.eye(len(errors))[first] - np.eye(len(errors))[second] + lift[0] - lift[1]
    expected = both**2 @ errors**2
    scaled = np.sqrt(np.mean((both @ np.concatenate(ys)) ** 2 / expected))
    assert joined.residuals[0].scaled == pytest.approx(scaled, rel=1e-9)


# Order is nothing


@quick
@given(
    st.permutations(range(4)),
    st.sampled_from([*MODES.values(), {"weights": "variance", "taper": "tukey"}]),
    st.booleans(),
)
def test_the_order_of_pieces_changes_no_bit(
    order: list[int], keys: dict[str, Any], replicated: bool
) -> None:
    rng = np.random.default_rng(14)
    ys = noisy(rng, 0.1, *([5] if replicated else []))
    errors = None if replicated else [rng.uniform(0.1, 0.2, len(x)) for x in XS]
    whole = join(XS, ys, errors=errors, bootstrap=10, **keys)
    mixed = dict(keys)
    if "credences" in keys:
        mixed["credences"] = [keys["credences"][k] for k in order]
    turned = join(
        [XS[k][::-1] for k in order],  # nor does that of points
        [ys[k][..., ::-1] for k in order],
        errors=None if errors is None else [errors[k][::-1] for k in order],
        bootstrap=10,
        **mixed,
    )
    assert bits(whole, [0, 1, 2, 3]) == bits(turned, order)


def test_the_same_seed_gives_the_same_bits() -> None:
    ys = noisy(np.random.default_rng(15), 0.1, 6)
    first, again, other = (join(XS, ys, bootstrap=50, seed=s) for s in (1, 1, 2))
    assert bits(first, [0, 1, 2, 3]) == bits(again, [0, 1, 2, 3])
    assert first.draws is not None
    assert other.draws is not None
    assert not np.array_equal(first.draws, other.draws)
    assert first.y.tobytes() == other.y.tobytes()
    assert join(XS, ys, bootstrap=0).draws is None


# Repeated experiments


@quick
@given(st.lists(hundredths, min_size=1, max_size=5), st.integers(1, 9))
def test_repeated_experiments_are_averaged_by_credence(
    credences: list[float], size: int
) -> None:
    rng = np.random.default_rng(16)
    xs = [np.arange(size) for _ in credences]
    ys = rng.normal(size=(len(credences), size))
    c = np.array(credences)
    if not c.any():
        with pytest.raises(ValueError, match="no piece with a credence above 0"):
            join(xs, ys, credences=credences, aligned=True)  # type: ignore[arg-type]
        return
    joined = join(xs, ys, credences=credences, aligned=True, errors=0.5)  # type: ignore[arg-type]
    expected = (c[:, None] * ys).sum(axis=0) / c.sum()
    np.testing.assert_allclose(joined.y, expected, rtol=0, atol=1e-12)
    error = 0.5 * np.sqrt((c**2).sum()) / c.sum()
    np.testing.assert_allclose(joined.error, error, rtol=1e-9)
    assert (joined.count == np.count_nonzero(c)).all()
    assert np.isnan(joined.offsets).tolist() == (c == 0).tolist()
    assert not joined.offsets[c > 0].any()


def test_a_credence_of_zero_leaves_a_piece_out() -> None:
    ys = noisy(np.random.default_rng(17), 0.1)
    wrong = [*ys[:1], np.full(len(XS[1]), np.inf), *ys[1:]]
    xs = [XS[0], XS[1], *XS[1:]]
    joined = join(xs, wrong, credences=[1, 0, 1, 1, 1], errors=0.1)
    plain = join(XS, ys, errors=0.1)
    assert joined.y.tobytes() == plain.y.tobytes()
    assert np.isnan(joined.offsets[1])
    numbers = [(r.first, r.second) for r in joined.residuals]
    assert numbers == [(0, 2), (2, 3), (3, 4)]


# Grids


def test_points_within_the_tolerance_are_one() -> None:
    rng = np.random.default_rng(18)
    moved = [x + rng.uniform(-1e-8, 1e-8, x.size) for x in XS]
    joined = join(moved, cut(CURVE))
    assert len(joined.x) == 40
    np.testing.assert_allclose(joined.y, CURVE, rtol=0, atol=1e-12)
    coarse = [x + rng.uniform(-0.1, 0.1, x.size) for x in XS]
    assert len(join(coarse, cut(CURVE), tolerance=0.25).x) == 40
    with pytest.raises(ValueError, match="share no point"):
        join(coarse, cut(CURVE))


def test_grids_that_differ_are_interpolated_on_request() -> None:
    line = [3 * x - 5 + 7 * k for k, x in enumerate(XS)]
    xs = [x + shift for x, shift in zip(XS, (0, 0.3, 0.25, 0), strict=True)]
    line = [3 * x - 5 + 7 * k for k, x in enumerate(xs)]
    joined = join(xs, line, interpolate=True)
    np.testing.assert_allclose(joined.y, 3 * joined.x - 5, rtol=0, atol=1e-11)
    np.testing.assert_allclose(joined.offsets, OFFSETS, rtol=0, atol=1e-11)
    assert set(joined.x) == set(np.concatenate(xs))
    exact = join(XS, cut(CURVE), interpolate=True)  # where grids are one, no change
    assert exact.y.tobytes() == join(XS, cut(CURVE)).y.tobytes()


def test_no_hole_is_bridged() -> None:
    y = np.array([0.0, 1.0, np.nan, 3.0, 4.0])
    x, fine = np.arange(5.0), np.arange(0, 4.5, 0.5)
    joined = join([x, fine], [y, fine**2], interpolate=True)
    assert joined.count.tolist() == [2, 2, 2, 1, 1, 1, 2, 2, 2]
    assert join([x, x], [y, x]).count.tolist() == [2, 2, 1, 2, 2]


def test_replicates_that_are_missing_are_left_out() -> None:
    ys = noisy(np.random.default_rng(19), 0.1, 5)
    failed = [np.vstack([y, np.full((2, y.shape[1]), np.nan)]) for y in ys]
    assert join(XS, failed).y.tobytes() == join(XS, ys).y.tobytes()
    ys[0][3, 2] = np.nan  # one replicate lacks a point that no other piece has
    joined = join(XS, ys)
    assert 2.0 not in joined.x
    assert len(joined.x) == 39
    ys[1] = ys[1][:1]
    assert np.isnan(join(XS, ys).error).all()  # one replicate tells no error
    assert join(XS, ys).bootstrap_error is None


# Tapers


@pytest.mark.parametrize("taper", TAPERS)
def test_tapers_are_scipys_without_the_ends(taper: Any) -> None:
    from mpiens.alignment import Points, match

    size = 9
    index, rise = np.zeros(size, dtype=int), np.arange(size) * 0.25
    points = Points(index, rise, np.ones(size, dtype=bool), (0,))
    found = window(taper, match(points, 0.0, interpolate=False))
    name, *rest = (taper,) if isinstance(taper, str) else taper
    expected = getattr(scipy_windows, name)(size + 2, *rest)[1:-1]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)
    assert (found > 0).all()


def test_a_taper_is_never_zero_on_the_only_piece_at_a_point() -> None:
    # flattop is below zero towards its ends
    joined = join(XS, cut(CURVE), taper="flattop")
    np.testing.assert_allclose(joined.y, CURVE, rtol=0, atol=1e-9)
    assert joined.count.min() == 1
    alone = join([X], [CURVE], taper="flattop", errors=0.1)
    assert alone.y.tobytes() == CURVE.tobytes()
    np.testing.assert_allclose(alone.error, 0.1, rtol=1e-12)


# Slopes


def test_slopes_are_those_of_the_curve() -> None:
    x = np.linspace(0, 3, 61)
    windows = [slice(0, 25), slice(20, 45), slice(40, 61)]
    ys = [100.0 * k + np.exp(x[part]) for k, part in enumerate(windows)]
    xs = [x[part] for part in windows]
    joined = join(xs, ys, derivative=True)
    np.testing.assert_allclose(joined.x, (x[1:] + x[:-1]) / 2, rtol=0, atol=1e-14)
    # a central difference of step h is out by h^2 f''' / 24
    np.testing.assert_allclose(joined.y, np.exp(joined.x), rtol=0.05**2 / 23)
    assert np.isnan(joined.offsets).all()
    curve = join(xs, ys, derivative=True, integrate=True)
    np.testing.assert_allclose(curve.x, x, rtol=0, atol=0)
    np.testing.assert_allclose(curve.y, np.exp(x), rtol=0, atol=1e-10)
    through = join(xs, ys, derivative=True, integrate=True, anchor=(x[30], 5.0))
    expected = np.exp(x) - np.exp(x[30]) + 5
    np.testing.assert_allclose(through.y, expected, rtol=0, atol=1e-10)
    moved = join(xs, ys, derivative=True, integrate=True, anchor=2.0)
    np.testing.assert_allclose(moved.y, np.exp(x) + 2, rtol=0, atol=1e-10)


def test_errors_of_slopes_and_their_integral_cover() -> None:
    rng = np.random.default_rng(20)
    slopes, curves = [], []
    for _ in range(150):
        ys = noisy(rng, 0.2)
        steep = join(XS, ys, errors=0.2, derivative=True)
        within = np.abs(steep.y - np.diff(CURVE)) <= 1.96 * steep.error
        slopes.append(within.mean())
        curves.append(join(XS, ys, errors=0.2, derivative=True, integrate=True))
    assert abs(np.mean(slopes) - 0.95) < 4 * np.std(slopes) / np.sqrt(150)
    share, sure = shares_within(curves)
    assert abs(share - 0.95) < 4 * sure


# What cannot be joined is told

UP, DOWN = np.arange(5.0), np.arange(5.0)[::-1]
TWO = [np.arange(5.0), np.arange(4.0, 9.0)]


@pytest.mark.parametrize(
    ("xs", "keys", "told"),
    [
        (
            [UP, UP + 7],
            {},
            "piece 0 (x from 0 to 4) and piece 1 (x from 7 to 11) share no point, so "
            "that nothing tells the offset between them: let them overlap, or leave",
        ),
        (  # the pair is of neighbours, whatever the order
            [UP + 14, UP + 4, UP + 18, UP],
            {},
            "piece 1 (x from 4 to 8) and piece 0 (x from 14 to 18) share no point",
        ),
        (
            [UP, UP + 2.5],
            {},
            "piece 0 (x from 0 to 4) and piece 1 (x from 2.5 to 6.5) share no point, "
            "so that nothing tells the offset between them: their grids differ: give "
            "interpolate=True, or a wider tolerance",
        ),
        (
            TWO,
            {"weights": [[1, 1, 1, 1, 0], [1] * 5]},
            "piece 0 (x from 0 to 3) and piece 1 (x from 4 to 8) share points (1), but "
            "none at which both have weight, so that nothing tells the offset between",
        ),
        ([UP], {"weights": [np.zeros(5)]}, "piece 0 has no weight: leave it out"),
        ([UP], {"weights": [-UP]}, "weights of piece 0 should be finite, and not"),
        ([UP], {"weights": [[1.0]]}, "weights of piece 0 are of shape (1,) where x"),
        ([UP], {"weights": "even"}, "weights = 'even' should be 'variance', or"),
        (TWO, {"weights": [UP]}, "there are 1 weights for 2 pieces"),
        (TWO, {"weights": "variance"}, "piece 0 (x from 0 to 4) has neither errors"),
        (TWO, {"errors": [1.0, 0.0]}, "errors of piece 1 should be finite, and above"),
        (TWO, {"credences": [1, 1.5]}, "credence 1.5 of piece 1 is not in [0, 1]"),
        (TWO, {"credences": [1]}, "there are 1 credences for 2 pieces"),
        ([UP, [[1.0]]], {}, "x of piece 1 should be one row of finite numbers"),
        ([[0, 1, np.nan, 2, 3]], {}, "x of piece 0 should be one row of finite"),
        ([[0, 1, 2]], {}, "y of piece 0 is of shape (5,) where x has 3 points"),
        ([[0, 1, 2, 2, 3]], {}, "(x from 0 to 3) has two points at x = 2, or nearer"),
        ([UP], {"tolerance": 1.0}, "has two points at x = 0, or nearer to each other"),
        ([UP], {"tolerance": -1.0}, "tolerance = -1.0 should not be below 0"),
        ([], {}, "there is no piece with a credence above 0"),
        ([UP], {"anchor": (2.5, 0.0)}, "anchor x = 2.5 is no point of the joined"),
        ([UP], {"anchor": (1, 2, 3)}, "should be an offset, or (x, value)"),
        ([UP], {"anchor": np.nan}, "anchor = nan should be an offset, or"),
        ([UP], {"anchor": 1.0, "aligned": True}, "anchor = 1.0 has no use"),
        ([UP], {"anchor": (0, 0), "derivative": True}, "anchor = (0, 0) has no use"),
        ([UP], {"aligned": True, "derivative": True}, "slopes have no offsets"),
        ([UP], {"integrate": True}, "integrate=True is for derivative=True"),
        ([UP], {"bootstrap": 1}, "bootstrap = 1 should be 0, or 2 or more"),
        ([UP], {"taper": "hamn"}, "no taper is 'hamn': see scipy.signal.windows"),
        ([UP], {"taper": "kaiser"}, "no taper is 'kaiser'"),
        (
            [UP, UP + 5],
            {"derivative": True, "integrate": True},
            "no piece has both x = 4 and 5, so no slope leads from piece 0 (x from 0 "
            "to 4) to piece 1 (x from 5 to 9): let pieces share two points, or give",
        ),
        (
            [2 * UP, 2 * UP + 1],
            {"derivative": True},
            "piece 0 (x from 0 to 8) has no two points that are neighbours on the "
            "common grid, so no slope: give interpolate=True where grids differ",
        ),
    ],
)
def test_what_cannot_be_joined_is_told(
    xs: list[Any], keys: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        join(xs, [UP for _ in xs], **keys)


@pytest.mark.parametrize(
    ("ys", "keys", "told"),
    [
        ([UP, UP * np.nan], {}, "piece 1 has no number: leave it out by credence 0"),
        ([UP, UP - np.inf], {}, "piece 1 is infinite at x = 4: NaN is for a point"),
        ([UP], {}, "there are 2 xs and 1 ys"),
        ([UP, np.zeros((2, 2, 5))], {}, "y of piece 1 is of shape (2, 2, 5) where x"),
        ([UP, [UP, UP]], {"errors": 1.0}, "piece 1: replicates have errors of their"),
        (
            [UP, [[1, 2, 3, 4, np.nan], [np.nan] * 4 + [1]]],
            {},
            "piece 1 has no point in all its replicates: give its replicates as",
        ),
        (
            [[UP, UP], [UP, DOWN]],
            {"weights": "variance"},
            "the replicates of piece 0 (x from 0 to 4) are all alike at x = 0, which",
        ),
        ([[UP], [UP]], {"weights": "variance"}, "nor two or more replicates"),
    ],
)
def test_numbers_that_cannot_be_joined_are_told(
    ys: list[Any], keys: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        join(TWO, ys, **keys)


def test_pieces_that_need_no_offset_need_no_overlap() -> None:
    joined = join([UP, UP + 7], [UP, DOWN], aligned=True)
    assert joined.y.tolist() == [*UP, *DOWN]
    assert joined.residuals == ()
    slopes = join([UP, UP + 5], [UP, DOWN], derivative=True)
    assert slopes.y.tolist() == [1] * 4 + [-1] * 4


# As users meet it


def test_join_is_a_function_of_the_package(launcher: Launcher) -> None:
    assert mpiens.join is join
    assert mpiens.Joined is Joined
    with pytest.raises(AttributeError, match="no attribute 'jion'"):
        _ = mpiens.jion
    code = """
import sys, mpiens
assert not {"numpy", "mpiens.joining"} & set(sys.modules)
joined = mpiens.join([[0, 1], [1, 2]], [[0, 1], [5, 6]])
assert joined.y.tolist() == [0, 1, 2], joined
assert not {"scipy", "h5py", "mpi4py"} & set(sys.modules)
sys.modules["scipy.signal"] = None
try:
    mpiens.join([[0, 1], [1, 2]], [[0, 1], [5, 6]], taper="tukey")
except ImportError as error:
    print(error)
"""
    launch = launcher.run([sys.executable, "-c", code], limit=30)
    assert launch.code == 0, launch.errors
    assert "the taper 'tukey' needs scipy: pip install scipy" in launch.output


def test_the_example_prints_what_its_readme_shows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    runpy.run_path(str(EXAMPLE / "pieces.py"))
    shown = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    assert shown == [capsys.readouterr().out]
