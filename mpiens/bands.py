"""Statistics over replicates: quantiles, mean, deviation, and scalar summaries.

Everything here takes numbers in task order, with the replicates innermost, and is
independent of how an ensemble is cut into slabs: the same numbers give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

METHOD = "linear (type 7 of Hyndman and Fan, 1996)"
"""How a quantile is interpolated: numpy's default. R. J. Hyndman and Y. Fan,
"Sample Quantiles in Statistical Packages", The American Statistician 50 (1996).
"""


def quantiles(samples: Floats, levels: Sequence[float]) -> Floats:
    """Return exact quantiles over the last axis; shape (levels, ...).

    ``samples`` has shape (..., replicates).  Equal to the last bit to
    ``numpy.quantile(samples, levels, axis=-1)``, but that zeros are positive: NaN
    where any replicate is NaN or where there is no replicate at all.
    """
    return interpolate(np.sort(samples, axis=-1), levels)


def interpolate(ordered: Floats, levels: Sequence[float]) -> Floats:
    """Return the quantiles of replicates in ascending order, NaNs at the end."""
    count = ordered.shape[-1]
    result = np.full((len(levels), *ordered.shape[:-1]), np.nan)
    if not count:
        return result
    with np.errstate(invalid="ignore", over="ignore"):  # infinities are the user's own
        for index, level in enumerate(levels):
            position = (count - 1) * np.float64(level)
            below = int(np.floor(position))
            above = min(below + 1, count - 1)
            low, high = ordered[..., below], ordered[..., above]
            result[index] = _interpolate(low, high, position - below)
    return define(result, ordered)


def define(result: Floats, ordered: Floats) -> Floats:
    """Return what was taken from ordered replicates, but NaN where one of them is.

    A sort may return either zero; let it be the positive one.
    """
    if not ordered.shape[-1]:
        return result
    undefined = np.isnan(ordered[..., -1])  # NaNs are sorted to the end
    return np.where(undefined, np.nan, result + 0.0)


def mean(samples: Floats) -> Floats:
    """Return the mean over the last axis; NaN where there is no replicate."""
    if samples.shape[-1] == 0:
        return np.full(samples.shape[:-1], np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(samples.mean(axis=-1))


def deviation(samples: Floats, room: Floats | None = None) -> Floats:
    """Return the sample standard deviation (n - 1); NaN below two replicates.

    Equal to the last bit to ``numpy.std(samples, axis=-1, ddof=1)``.  ``room`` is
    memory of the same shape that may be written over.
    """
    count = samples.shape[-1]
    if count < 2:
        return np.full(samples.shape[:-1], np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        away = np.subtract(samples, samples.mean(axis=-1, keepdims=True), out=room)
        np.multiply(away, away, out=away)
        return np.asarray(np.sqrt(away.sum(axis=-1) / (count - 1)))


def summarise(kind: str, rows: Floats, coordinate: Floats, *, padded: bool) -> Floats:
    """Return one scalar per row: ``final``, ``peak``, ``peak_time`` or ``total``.

    ``rows`` has shape (tasks, steps) and ``coordinate`` (steps,), the values along the
    dimension that ``peak_time`` is told in.  Where ``padded``, trailing NaNs are not
    part of a row.
    """
    lengths = _lengths(rows) if padded else np.full(len(rows), rows.shape[1])
    result = np.full(len(rows), np.nan)
    for length in sorted({*lengths.tolist()}):
        chosen = lengths == length
        own = rows[:, :length] if chosen.all() else rows[chosen, :length]
        if length > 0:
            with np.errstate(invalid="ignore", over="ignore"):
                result[chosen] = _SUMMARY[kind](own, coordinate)
    return result


def _interpolate(low: Floats, high: Floats, share: np.float64) -> Floats:
    """Interpolate as numpy does, from the nearer end, so that the bits agree."""
    step = high - low
    return low + step * share if share < 0.5 else high - step * (1 - share)


def _lengths(rows: Floats) -> NDArray[np.int64]:
    """Return the length of each row without its trailing NaNs."""
    present = ~np.isnan(rows)
    last = rows.shape[1] - np.argmax(present[:, ::-1], axis=1)
    return np.where(present.any(axis=1), last, 0)


def _peak_time(rows: Floats, coordinate: Floats) -> Floats:
    times = coordinate[np.argmax(rows, axis=1)]
    return np.where(np.isnan(rows).any(axis=1), np.nan, times)


_SUMMARY: dict[str, Callable[[Floats, Floats], Floats]] = {
    "final": lambda rows, _: rows[:, -1],
    "peak": lambda rows, _: rows.max(axis=1),
    "peak_time": _peak_time,
    "total": lambda rows, _: np.ascontiguousarray(rows).sum(axis=1),
}
