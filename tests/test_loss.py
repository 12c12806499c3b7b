"""Losses: against scipy's laws, closed forms, and what holds for any numbers."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from scipy.special import logsumexp

from mpiens.loss import LOSSES, check_observed, check_options, score

quick = settings(max_examples=60, deadline=None, database=None)
nan = math.nan


def pairs(elements: st.SearchStrategy[float]) -> st.SearchStrategy[Any]:
    """Replicates (replicates, points) and counts (points,) that go together."""
    counts = st.integers(0, 60).map(float)

    def make(shape: tuple[int, int]) -> st.SearchStrategy[Any]:
        rows = arrays(float, shape, elements=elements)
        return st.tuples(rows, arrays(float, shape[1], elements=counts))

    return st.tuples(st.integers(1, 5), st.integers(1, 6)).flatmap(make)


def marginalised(points: np.ndarray) -> float:
    """Minus the log of the mean likelihood, by scipy; points (replicates, points)."""
    each = points.sum(axis=1)
    return float(np.log(len(each)) - logsumexp(each))


def by_scipy(loss: str, rows: np.ndarray, counts: np.ndarray, **own: Any) -> float:
    """The same losses as scipy has their laws."""
    if loss == "poisson":
        return marginalised(stats.poisson.logpmf(counts, rows))
    if loss == "negative_binomial":
        k = own["dispersion"]
        return marginalised(stats.nbinom.logpmf(counts, k, k / (k + rows)))
    if loss == "gaussian":
        return marginalised(stats.norm.logpdf(counts, rows, own["sigma"]))
    total = own.get("concentration") or 1 / own["rho"] - 1
    a, b = rows * total, (1 - rows) * total
    return marginalised(stats.betabinom.logpmf(counts, own["n"], a, b))


RATES = [
    ("poisson", {}),
    ("negative_binomial", {"dispersion": 0.3}),
    ("negative_binomial", {"dispersion": 10}),
    ("gaussian", {"sigma": 2.5}),
]
SHARES = [
    ("beta_binomial", {"n": 60, "concentration": 12.5}),
    ("beta_binomial", {"n": 60, "rho": 0.02}),
]


@pytest.mark.parametrize(("loss", "own"), RATES)
@quick
@given(pairs(st.floats(1e-3, 1e3)))
def test_a_likelihood_is_scipys(loss: str, own: dict[str, Any], pair: Any) -> None:
    rows, counts = pair
    expected = by_scipy(loss, rows, counts, **own)
    assert score(loss, rows, counts, own) == pytest.approx(expected, 1e-9, 1e-9)


@pytest.mark.parametrize(("loss", "own"), SHARES)
@quick
@given(pairs(st.floats(0.01, 0.99)))
def test_shares_are_scipys(loss: str, own: dict[str, Any], pair: Any) -> None:
    rows, counts = pair
    expected = by_scipy(loss, rows, counts, **own)
    assert score(loss, rows, counts, own) == pytest.approx(expected, 1e-8, 1e-8)


@quick
@given(pairs(st.floats(0, 1e3)))
def test_many_trials_of_large_dispersion_are_poissons(pair: Any) -> None:
    rows, counts = pair
    floored = {"floor": 0.1}
    poisson = score("poisson", rows, counts, floored)
    binomial = score("negative_binomial", rows, counts, {"dispersion": 1e10} | floored)
    assert binomial == pytest.approx(poisson, 1e-4, 1e-3)


def test_squares_are_of_the_mean_or_of_each() -> None:
    rows, counts = np.array([[1.0, 5.0], [3.0, 9.0]]), np.array([2.0, 4.0])
    assert score("mse", rows, counts, {}) == (0 + 9) / 2
    assert score("annealed_mse", rows, counts, {}) == ((1 + 1) / 2 + (1 + 25) / 2) / 2


@quick
@given(pairs(st.floats(-1e6, 1e6)))
def test_squares_of_each_are_those_of_the_mean_and_the_variance(pair: Any) -> None:
    rows, counts = pair
    mean, each = (score(loss, rows, counts, {}) for loss in ("mse", "annealed_mse"))
    assert each >= mean * (1 - 1e-12)
    assert each == pytest.approx(mean + rows.var(axis=0).mean(), 1e-9, 1e-6)


@pytest.mark.parametrize(("loss", "own"), [("mse", {}), ("annealed_mse", {}), *RATES])
@quick
@given(pairs(st.floats(0.5, 1e3)), st.randoms(use_true_random=False))
def test_the_order_of_replicates_and_points_is_no_matter(
    loss: str, own: dict[str, Any], pair: Any, random: Any
) -> None:
    rows, counts = pair
    found = score(loss, rows, counts, own)
    replicates, points = ([*range(size)] for size in rows.shape)
    random.shuffle(replicates)
    random.shuffle(points)
    shuffled = score(loss, rows[replicates][:, points], counts[points], own)
    assert shuffled == pytest.approx(found, 1e-12, 1e-12)


@pytest.mark.parametrize(("loss", "own"), RATES)
@quick
@given(pairs(st.floats(0.5, 1e3)))
def test_a_mean_likelihood_lies_between_those_of_the_replicates(
    loss: str, own: dict[str, Any], pair: Any
) -> None:
    rows, counts = pair
    each = [score(loss, row[None], counts, own) for row in rows]
    found = score(loss, rows, counts, own)
    assert min(each) - 1e-9 <= found <= max(each) + 1e-9
    # the best replicate alone makes up its part of the mean
    assert found <= min(each) + math.log(len(rows)) + 1e-9
    twice = score(loss, np.concatenate([rows, rows]), counts, own)
    assert twice == pytest.approx(found, 1e-12, 1e-9)


@pytest.mark.parametrize(("loss", "own"), [("mse", {}), ("annealed_mse", {}), *RATES])
def test_missing_values_are_left_out(loss: str, own: dict[str, Any]) -> None:
    rows = np.array([[1.0, nan, 3.0], [2.0, math.inf, 5.0]])
    found = score(loss, rows, np.array([1.0, nan, 4.0]), own)
    assert found == score(loss, rows[:, [0, 2]], np.array([1.0, 4.0]), own)


def test_options_for_every_point_are_taken_where_it_is_observed() -> None:
    rows, counts = np.array([[0.2, 0.5, 0.4]]), np.array([1.0, nan, 4.0])
    own = {"n": [5, 7, 10], "rho": 0.1}
    ends = {"n": [5, 10], "rho": 0.1}
    expected = score("beta_binomial", rows[:, [0, 2]], counts[[0, 2]], ends)
    assert score("beta_binomial", rows, counts, own) == expected
    expected = stats.betabinom.logpmf([1, 4], [5, 10], [1.8, 3.6], [7.2, 5.4]).sum()
    assert score("beta_binomial", rows, counts, own) == pytest.approx(-expected)
    with pytest.raises(ValueError, match="sigma has 2 entries, and there are 3 points"):
        score("gaussian", rows, counts, {"sigma": [1.0, 2.0]})


def test_the_spread_of_replicates_is_a_sigma() -> None:
    rows, counts = np.array([[1.0, 5.0], [3.0, 9.0]]), np.array([2.0, 4.0])
    sigma = rows.std(axis=0, ddof=1)
    expected = marginalised(stats.norm.logpdf(counts, rows, sigma))
    own = {"sigma": "replicates"}
    assert score("gaussian", rows, counts, own) == pytest.approx(expected)
    with pytest.raises(ValueError, match="give floor"):
        score("gaussian", rows[[0, 0]], counts, own)
    with pytest.raises(ValueError, match="one replicate has no spread"):
        score("gaussian", rows[:1], counts, own)
    floored = score("gaussian", rows[[0, 0]], counts, own | {"floor": 2.0})
    assert floored == score("gaussian", rows[:1], counts, {"sigma": 2.0})


# What is not possible is infinitely far


@pytest.mark.parametrize(
    ("loss", "own"), [("poisson", {}), ("negative_binomial", {"dispersion": 2.0})]
)
def test_a_rate_of_zero_makes_nothing_but_zero(loss: str, own: dict[str, Any]) -> None:
    none, some = np.array([[0.0]]), np.array([[0.0], [3.0]])
    assert score(loss, none, np.array([0.0]), own) == 0
    assert score(loss, none, np.array([1.0]), own) == math.inf
    # one replicate of two makes it possible
    half = score(loss, some[1:], np.array([1.0]), own) + math.log(2)
    assert score(loss, some, np.array([1.0]), own) == pytest.approx(half)
    floored = score(loss, none, np.array([1.0]), own | {"floor": 0.5})
    assert floored == score(loss, np.array([[0.5]]), np.array([1.0]), own)


def test_a_share_of_zero_or_one_is_certain() -> None:
    own = {"n": 4, "rho": 0.2}

    def found(share: float, count: float, **more: float) -> float:
        return score(
            "beta_binomial", np.array([[share]]), np.array([count]), own | more
        )

    assert found(0.0, 0.0) == found(1.0, 4.0) == 0
    assert found(0.0, 1.0) == found(1.0, 3.0) == math.inf
    assert found(0.0, 1.0, floor=0.1) == found(0.1, 1.0)
    assert found(1.0, 1.0, floor=0.1) == found(0.9, 1.0)


def test_far_replicates_neither_overflow_nor_vanish() -> None:
    rows, counts = np.array([[1e200], [0.0], [1e5]]), np.array([0.0])
    found = score("gaussian", rows, counts, {"sigma": 1.0})
    near = -stats.norm.logpdf(0) + math.log(3)
    assert found == pytest.approx(near)
    assert score("gaussian", rows[:1], counts, {"sigma": 1.0}) == math.inf
    far = score("gaussian", rows[2:], counts, {"sigma": 1.0})
    assert far == pytest.approx(0.5e10)  # whose likelihood no number can hold
    assert score("mse", rows[:1], counts, {}) == math.inf


# What is wrong


@pytest.mark.parametrize(
    ("loss", "rows", "counts", "own", "told"),
    [
        ("mse", [[1.0, nan]], [1, 2], {}, "replicate 0 is nan at point 1"),
        ("poisson", [[1.0], [math.inf]], [1], {}, "replicate 1 is inf at point 0"),
        ("poisson", [[1.0, -2.0]], [1, 2], {}, "the model gave -2"),
        ("poisson", [[1.0]], [1.5], {}, "1.5 was observed, which is no count"),
        ("poisson", [[1.0]], [-1], {}, "-1 was observed, which is no count"),
        ("mse", [[1.0]], [nan], {}, "every value is missing"),
        ("mse", np.zeros((0, 1)), [1], {}, "there is no replicate"),
        ("mse", [[1.0, 2.0]], [1], {}, r"not \(1, 2\) with \(1,\)"),
        ("beta_binomial", [[1.5]], [1], {"n": 3, "rho": 0.5}, "1.5, which is no share"),
        ("beta_binomial", [[0.5]], [4], {"n": 3, "rho": 0.5}, "4 was observed, and n"),
    ],
)
def test_what_cannot_be_compared_is_told(
    loss: str, rows: Any, counts: Any, own: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        score(loss, np.array(rows), np.array(counts, dtype=float), own)


@pytest.mark.parametrize(
    ("loss", "own", "told"),
    [
        ("mse", {}, []),
        ("calibrate.py:distance", {"anything": 1}, []),
        (max, {"anything": 1}, []),
        ("gaussian", {"sigma": [1, 2.5]}, []),
        ("beta_binomial", {"n": [3, 4], "rho": 0.5, "floor": 0}, []),
        ("poison", {}, ["'poison' is no loss; did you mean poisson?"]),
        ("rmsd_of_all", {}, [f"there are {', '.join(LOSSES)}, and file.py:function"]),
        ("mse", {"sigma": 1}, ["sigma is no option of mse; it takes none"]),
        (
            "negative_binomial",
            {"dispersn": 2.0, "floor": -1},
            [
                "dispersn is no option of negative_binomial; did you mean dispersion?",
                "floor = -1 should be a number, 0 or above",
                "dispersion is missing; negative_binomial needs it",
            ],
        ),
        ("gaussian", {"sigma": 0}, ["sigma = 0 should be a number above 0, one for"]),
        ("gaussian", {"sigma": "replicate"}, ["or 'replicates'"]),
        ("gaussian", {"sigma": True}, ["sigma = True should be a number above 0"]),
        (
            "beta_binomial",
            {"n": 2.5, "rho": 1, "concentration": 3},
            [
                "n = 2.5 should be a count",
                "rho = 1 should be a number between 0 and 1",
                "rho and concentration say the same of beta_binomial; give one",
            ],
        ),
        ("beta_binomial", {"n": 2}, ["rho or concentration is missing"]),
        ("beta_binomial", {"n": 2, "rho": 0.1, "floor": 0.5}, ["less than 0.5"]),
    ],
)
def test_what_is_wrong_with_options_is_told(
    loss: Any, own: dict[str, Any], told: list[str]
) -> None:
    faults = check_options(loss, own)
    assert len(faults) == len(told)
    for fault, part in zip(faults, told, strict=True):
        assert part in fault


@pytest.mark.parametrize(
    ("loss", "counts", "own", "told"),
    [
        ("mse", [0.5, -1], {}, []),
        ("calibrate.py:distance", [0.5, -1], {}, []),
        (max, [0.5, -1], {}, []),
        ("poisson", [0, nan, 7], {}, []),
        ("poisson", [0.5, nan], {}, ["0.5 was observed, which is no count"]),
        (
            "beta_binomial",
            [3, nan, 9],
            {"n": [3, 1, 8]},
            ["9 was observed, and n is 8"],
        ),
        ("beta_binomial", [3, -1], {"n": 2}, ["-1 was", "3 was observed, and n is 2"]),
    ],
)
def test_what_a_loss_is_not_made_for_is_told(
    loss: Any, counts: list[float], own: dict[str, Any], told: list[str]
) -> None:
    faults = check_observed(loss, np.array(counts, dtype=float), own)
    assert len(faults) == len(told)
    for fault, part in zip(faults, told, strict=True):
        assert part in fault


# Functions of the user's


def test_a_function_gets_all_points_and_its_options() -> None:
    rows, counts = np.array([[1, 2]]), np.array([1.0, nan])

    def distance(simulated: np.ndarray, observed: np.ndarray, power: int) -> Any:
        assert simulated.shape == (1, 2)
        return np.nansum(abs(simulated - observed) ** power) + 3

    assert score(distance, rows, counts, {"power": 2}) == 3
    assert type(score(distance, rows, counts, {"power": 2})) is float


@pytest.mark.parametrize("value", [1, -2.5, math.inf, np.float32(2), np.array(3.0)])
def test_a_function_may_return_any_number(value: Any) -> None:
    assert score(lambda simulated, observed: value, [[1]], [1], {}) == value


@pytest.mark.parametrize("value", [nan, None, "2", True, [1.0], np.zeros(2), 1j])
def test_a_function_that_returns_no_number_is_named(value: Any) -> None:
    def distance(simulated: np.ndarray, observed: np.ndarray) -> Any:
        return value

    with pytest.raises(ValueError, match=r"distance\(\) returned .* should be a num"):
        score(distance, np.array([[1.0]]), np.array([1.0]), {})


# Everywhere the same


def test_every_process_finds_the_same_bits() -> None:
    code = """
import sys
import numpy as np
from mpiens.loss import score
rng = np.random.default_rng(1)
rows, counts = rng.gamma(2.0, 20.0, (7, 41)), rng.poisson(30, 41).astype(float)
found = [score(loss, rows, counts, own) for loss, own in [
    ("mse", {}), ("annealed_mse", {}), ("poisson", {}),
    ("negative_binomial", {"dispersion": 5}), ("gaussian", {"sigma": "replicates"}),
]]
found.append(score("beta_binomial", rows / 500, counts, {"n": 500, "rho": 0.1}))
print([one.hex() for one in found])
assert "scipy" not in sys.modules
"""
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    ]
    assert runs[0] == runs[1] != ""


def test_how_rows_lie_in_memory_is_no_matter() -> None:
    rng = np.random.default_rng(2)
    rows, counts = rng.gamma(2.0, 20.0, (9, 33)), rng.poisson(30, 33).astype(float)
    wide = np.zeros((33, 18))[:, ::2].T
    wide[:] = rows
    for loss, own in [("mse", {}), ("annealed_mse", {}), *RATES]:
        found = score(loss, rows, counts, own)
        assert found.hex() == score(loss, wide, counts, own).hex()
        assert found.hex() == score(loss, np.asfortranarray(rows), counts, own).hex()
