"""Losses: how far replicates of an output lie from what was observed, as one number.

A loss is to be minimised.  Likelihoods are those of the observed values around what a
replicate gave, and the loss is minus the logarithm of their mean over the replicates.
That mean is an unbiased estimate of the likelihood with the simulator's own randomness
integrated out (C. Andrieu and G. O. Roberts, "The pseudo-marginal approach for
efficient Monte Carlo computations", Annals of Statistics 37, 2009); its logarithm is
too low by about half its relative variance, which more replicates make small.

Numbers are taken in the order of replicates and of points, so the same rows give the
same bits on any rank.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens.fault import nearest

Floats = NDArray[np.float64]
Options = Mapping[str, Any]
REPLICATES = "replicates"  # sigma = "replicates": what replicates themselves spread

_log_gamma = np.frompyfunc(math.lgamma, 1, 1)


@dataclass(frozen=True)
class Loss:
    """One loss: its formula, its options, and whether it is for counts only.

    ``formula(simulated, observed, options)`` takes what ``score`` has checked: finite
    arrays (replicates, points) and (points,).  ``options`` has, for each, a function
    that returns what a wrong value should be.  Of each group in ``needed`` one has to
    be given.
    """

    formula: Callable[[Floats, Floats, Options], float]
    options: Mapping[str, Callable[[Any], str | None]]
    needed: tuple[tuple[str, ...], ...] = ()
    counts: bool = False


def score(
    loss: str | Callable[..., Any],
    simulated: NDArray[Any],
    observed: NDArray[Any],
    options: Options,
) -> float:
    """Return the loss of simulated (replicates, points) against observed (points,).

    A loss by its name leaves out the points whose observed value is NaN.  A function
    is called as ``loss(simulated, observed, **options)`` with all points as they are.
    The result is a number or an infinity.  Raises ValueError where it would not be:
    a simulated value is not finite or not possible, or the function returned no number.
    """
    rows = np.ascontiguousarray(simulated, dtype=float)
    values = np.ascontiguousarray(observed, dtype=float)
    if callable(loss):
        return _check_returned(loss, loss(rows, values, **options))
    there = np.flatnonzero(~np.isnan(values))
    _check_rows(loss, rows, values, there)
    own = {
        name: _choose(name, value, there, values.size) if _is_list(value) else value
        for name, value in options.items()
    }
    rows, values = np.ascontiguousarray(rows[:, there]), values[there]
    if faults := check_observed(loss, values, own):
        raise ValueError(faults[0])
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return LOSSES[loss].formula(rows, values, own)


def check_options(loss: str | Callable[..., Any], options: Options) -> list[str]:
    """Return what is wrong with a loss's name and options, a sentence for each fault.

    A function, or what is written as ``file.py:function``, takes any options.
    """
    if callable(loss) or ":" in loss:
        return []
    if loss not in LOSSES:
        known = ", ".join(LOSSES)
        hint = nearest(loss, LOSSES) or f"; there are {known}, and file.py:function"
        return [f"{loss!r} is no loss{hint}"]
    own = LOSSES[loss]
    faults = []
    for name, value in options.items():
        if name not in own.options:
            hint = nearest(name, own.options)
            takes = ", ".join(own.options) or "none"
            faults.append(
                f"{name} is no option of {loss}{hint or f'; it takes {takes}'}"
            )
        elif (wanted := own.options[name](value)) is not None:
            faults.append(f"{name} = {value!r} should be {wanted}")
    for group in own.needed:
        given = [name for name in group if name in options]
        if not given:
            faults.append(f"{' or '.join(group)} is missing; {loss} needs it")
        elif len(given) > 1:
            faults.append(f"{' and '.join(given)} say the same of {loss}; give one")
    return faults


def check_observed(
    loss: str | Callable[..., Any], observed: NDArray[Any], options: Options
) -> list[str]:
    """Return what observed values (points,) a loss is not made for, as sentences."""
    if callable(loss) or loss not in LOSSES or not LOSSES[loss].counts:
        return []
    values = np.asarray(observed, dtype=float)
    faults = []
    strange = values[(values < 0) | (values != np.floor(values)) & ~np.isnan(values)]
    if len(strange):
        text = f"{strange[0]:g} was observed, which is no count"
        faults.append(f"{text}; {loss} is for counts, gaussian or mse for others")
    if _trials(options.get("n")) is None:
        most = np.broadcast_to(np.asarray(options["n"], dtype=float), values.shape)
        if (more := values > most).any():
            text = f"{values[more][0]:g} was observed, and n is {most[more][0]:g} there"
            faults.append(f"{text}; n is how many could have been counted")
    return faults


# Squares


def _mse(simulated: Floats, observed: Floats, options: Options) -> float:
    """Return the mean square between observed values and the mean of replicates."""
    del options
    return float(np.mean((simulated.mean(axis=0) - observed) ** 2))


def _annealed_mse(simulated: Floats, observed: Floats, options: Options) -> float:
    """Return the mean over replicates of each one's mean square from the observed.

    It is ``mse`` and beside it the variance between replicates (divided by their
    number), so that it also prefers replicates that agree with each other.
    """
    del options
    return float(np.mean(((simulated - observed) ** 2).mean(axis=1)))


# Likelihoods


def _poisson(simulated: Floats, observed: Floats, options: Options) -> float:
    """Counts around a rate, which is the replicate's value.

    S. D. Poisson's law; N. L. Johnson, A. W. Kemp and S. Kotz, "Univariate Discrete
    Distributions", 3rd edition, 2005, chapter 4.
    """
    rate = _floor_rates(simulated, options)
    points = _x_log_y(observed, rate) - rate - _ln_gamma(observed + 1)
    return _marginalise(points)


def _negative_binomial(simulated: Floats, observed: Floats, options: Options) -> float:
    """Counts around a mean m, with the variance m + m**2 / dispersion.

    A gamma mixture of Poisson laws: J. O. Lloyd-Smith, "Maximum likelihood estimation
    of the negative binomial dispersion parameter for highly overdispersed data", PLoS
    ONE 2, 2007, where the dispersion is called k.
    """
    mean = _floor_rates(simulated, options)
    k = options["dispersion"]
    points = (
        _ln_gamma(observed + k)
        - _ln_gamma(np.full_like(observed, k))
        - _ln_gamma(observed + 1)
        - k * np.log1p(mean / k)
        + _x_log_y(observed, mean / (k + mean))
    )
    return _marginalise(points)


def _gaussian(simulated: Floats, observed: Floats, options: Options) -> float:
    """Values around a replicate's with the deviation sigma, no less than ``floor``.

    With ``sigma = "replicates"`` it is the sample deviation of the replicates at each
    point: the mean over replicates is then a kernel estimate of the distribution that
    they come from, with a broad kernel (B. W. Silverman, "Density Estimation for
    Statistics and Data Analysis", 1986, section 2.4).
    """
    sigma = options["sigma"]
    if isinstance(sigma, str):
        if len(simulated) < 2:
            text = "one replicate has no spread; give sigma as a number"
            raise ValueError(f"gaussian: {text}")
        sigma = simulated.std(axis=0, ddof=1)
    sigma = np.maximum(sigma, options.get("floor", 0.0))
    if not np.all(sigma > 0):
        text = "replicates are all the same at a point, and their spread is no sigma"
        raise ValueError(f"gaussian: {text}; give floor, the least sigma there is")
    distance = (simulated - observed) / sigma
    points = -0.5 * distance**2 - np.log(sigma) - 0.5 * math.log(2 * math.pi)
    return _marginalise(points)


def _beta_binomial(simulated: Floats, observed: Floats, options: Options) -> float:
    """Counts out of n, each with a probability around the replicate's value, a share.

    That probability is beta distributed with a mean p, the share, and ``concentration``
    a + b, or as well the correlation rho = 1 / (a + b + 1) between any two of the n:
    J. G. Skellam, "A probability distribution derived from the binomial distribution by
    regarding the probability of success as variable between the sets of trials",
    Journal of the Royal Statistical Society B 10, 1948.
    """
    low, high = simulated.min(), simulated.max()
    if low < 0 or high > 1:
        text = f"the model gave {low if low < 0 else high:g}, which is no share"
        raise ValueError(f"beta_binomial: {text}; a share lies between 0 and 1")
    n = np.broadcast_to(np.asarray(options["n"], dtype=float), observed.shape)
    if "rho" in options:
        total = (1 - options["rho"]) / options["rho"]
    else:
        total = options["concentration"]
    floor = options.get("floor", 0.0)
    share = simulated.clip(floor, 1 - floor)
    inner = (share > 0) & (share < 1)
    safe = np.where(inner, share, 0.5)
    points = _ln_beta(observed + safe * total, n - observed + (1 - safe) * total)
    points -= _ln_beta(safe * total, (1 - safe) * total)
    points += _ln_gamma(n + 1) - _ln_gamma(observed + 1) - _ln_gamma(n - observed + 1)
    # none can be counted where the share is 0, and only all where it is 1
    certain = np.where(observed == n * share, 0.0, -np.inf)
    return _marginalise(np.where(inner, points, certain))


def _check_rows(
    loss: str, rows: Floats, values: Floats, there: NDArray[np.intp]
) -> None:
    """Raise ValueError where rows cannot be compared with values at some points."""
    if rows.ndim != 2 or values.shape != rows.shape[1:]:
        shapes = f"not {rows.shape} with {values.shape}"
        text = f"{loss} compares (replicates, points) with (points,), {shapes}"
        raise ValueError(text)
    if not len(rows):
        raise ValueError(f"{loss} has nothing to compare: there is no replicate")
    if not len(there):
        raise ValueError(f"{loss} has nothing to compare: every value is missing")
    for replicate, point in np.argwhere(~np.isfinite(rows[:, there]))[:1]:
        at = there[point]
        text = f"replicate {replicate} is {rows[replicate, at]} at point {at}"
        raise ValueError(f"{loss} needs finite values, and {text}")


def _choose(name: str, value: Any, there: NDArray[np.intp], count: int) -> Floats:
    """Return an option's entries at some points; ValueError if it is not one each."""
    entries = np.asarray(value, dtype=float)
    if entries.shape != (count,):
        text = f"{name} has {entries.size} entries, and there are {count} points"
        raise ValueError(f"{text}; give one number, or one for every point")
    return entries[there]


def _floor_rates(simulated: Floats, options: Options) -> Floats:
    """Return the replicates' values as rates, none below ``floor``; ValueError if < 0.

    Without a floor a rate of zero makes any count but zero impossible.
    """
    if (simulated < 0).any():
        text = f"a rate is not negative, and the model gave {simulated.min():g}"
        raise ValueError(text)
    return np.maximum(simulated, options.get("floor", 0.0))


def _marginalise(points: Floats) -> float:
    """Return minus the log of the mean likelihood of replicates (replicates, points).

    The largest is taken out before exponentials are summed, so that none overflows and
    not all vanish: P. Blanchard, D. J. Higham and N. J. Higham, "Accurately computing
    the log-sum-exp and softmax functions", IMA Journal of Numerical Analysis 41, 2021.
    What no replicate makes possible is infinitely far.
    """
    each: list[float] = points.sum(axis=1).tolist()
    largest = max(each)
    if largest == -math.inf:
        return math.inf
    total = math.fsum(math.exp(one - largest) for one in each)
    return 0.0 - largest - math.log(total / len(each))


def _ln_gamma(x: Floats) -> Floats:
    return np.asarray(_log_gamma(x), dtype=float)


def _ln_beta(a: Floats, b: Floats) -> Floats:
    return _ln_gamma(a) + _ln_gamma(b) - _ln_gamma(a + b)


def _x_log_y(x: Floats, y: Floats) -> Floats:
    """Return x log y, which is 0 where x is, whatever y."""
    return np.where(x == 0, 0.0, x * np.log(y))


# What options must be, or else what is wanted


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple | np.ndarray)


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _positive(value: Any) -> str | None:
    good = _is_number(value) and 0 < value < math.inf
    return None if good else "a number above 0"


def _not_negative(value: Any) -> str | None:
    good = _is_number(value) and 0 <= value < math.inf
    return None if good else "a number, 0 or above"


def _sigma(value: Any) -> str | None:
    if isinstance(value, str):
        good = value == REPLICATES
    else:
        entries = value if _is_list(value) else [value]
        good = all(_positive(sigma) is None for sigma in entries)
    wanted = f"a number above 0, one for every point, or {REPLICATES!r}"
    return None if good else wanted


def _between(value: Any) -> str | None:
    good = _is_number(value) and 0 < value < 1
    return None if good else "a number between 0 and 1"


def _small(value: Any) -> str | None:
    good = _is_number(value) and 0 <= value < 0.5
    return None if good else "a number from 0 to less than 0.5"


def _trials(value: Any) -> str | None:
    entries = value if _is_list(value) else [value]
    good = all(_is_number(n) and n >= 1 and n == math.floor(n) for n in entries)
    return None if good else "a count, 1 or above, or one for every point"


def _check_returned(loss: Callable[..., Any], value: Any) -> float:
    """Return what a function of the user's returned; ValueError if it is no number."""
    value = value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
    real = _is_number(value)
    if not real or math.isnan(value):
        name = getattr(loss, "__name__", repr(loss))
        shown = "nan" if real else f"{type(value).__name__} {value!r}"
        raise ValueError(f"the loss {name}() returned {shown}; it should be a number")
    return float(value)


LOSSES: Mapping[str, Loss] = {
    "mse": Loss(_mse, {}),
    "annealed_mse": Loss(_annealed_mse, {}),
    "poisson": Loss(_poisson, {"floor": _not_negative}, counts=True),
    "negative_binomial": Loss(
        _negative_binomial,
        {"dispersion": _positive, "floor": _not_negative},
        needed=(("dispersion",),),
        counts=True,
    ),
    "gaussian": Loss(
        _gaussian,
        {"sigma": _sigma, "floor": _not_negative},
        needed=(("sigma",),),
    ),
    "beta_binomial": Loss(
        _beta_binomial,
        {
            "n": _trials,
            "rho": _between,
            "concentration": _positive,
            "floor": _small,
        },
        needed=(("n",), ("rho", "concentration")),
        counts=True,
    ),
}
