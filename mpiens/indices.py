"""What each parameter of a design does to a number: shares of variance, correlations.

Values are one number per point of the design, such as the mean over its replicates.
"""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from mpiens.design import describe_cube

Floats = NDArray[np.float64]

RESAMPLES = 100  # of blocks, by which an interval of an index is found


def find_indices(values: Floats, *, confidence: float, seed: int) -> dict[str, Floats]:
    """Return the first-order and total indices of every parameter, with intervals.

    ``values`` has a row for each block of a Saltelli design: its point of A, one for
    each parameter, which it has from B, and its point of B.  Blocks with something that
    is no number are left out.  Estimators by Saltelli et al., Computer Physics
    Communications 181 (2010), table 2 (b) and (f); intervals by a bootstrap over blocks
    that SALib takes to be normal.  NaN where nothing varies or a single block is left.
    """
    known = values[np.isfinite(values).all(axis=1)]
    count = values.shape[1] - 2
    if len(known) < 2 or not np.ptp(known[:, [0, -1]]) > 0:
        nothing = {"first": np.full(count, np.nan), "total": np.full(count, np.nan)}
        spans = {f"{name}_interval": np.full((count, 2), np.nan) for name in nothing}
        return nothing | spans
    from SALib.analyze import sobol  # noqa: PLC0415  (heavy, and wanted by few)

    found = sobol.analyze(
        describe_cube(count),
        known.reshape(-1),
        calc_second_order=False,
        num_resamples=RESAMPLES,
        conf_level=confidence,
        seed=seed + 1,  # none, to SALib, is 0
    )
    told = {}
    for name, own in (("first", "S1"), ("total", "ST")):
        half = found[f"{own}_conf"]
        told[name] = found[own]
        told[f"{name}_interval"] = np.stack([found[own] - half, found[own] + half], 1)
    return told


def correlate(
    points: Floats, values: Floats, *, confidence: float
) -> dict[str, Floats]:
    """Return Spearman's rank correlation of values with each column of points.

    Points whose value is no number are left out.  Intervals by Bonett and Wright,
    Psychometrika 65 (2000); without bounds, hence NaN, below 4 points.  NaN too where
    all values, or all entries of a column, are the same or no numbers.
    """
    from scipy.stats import spearmanr  # noqa: PLC0415  (the root's alone)

    known = np.isfinite(values)
    points, values = points[known], values[known]
    count = len(values)
    found = np.full(points.shape[1], np.nan)
    for index, column in enumerate(points.T):
        if count > 1 and np.ptp(column) > 0 and np.ptp(values) > 0:
            found[index] = np.clip(spearmanr(column, values).statistic, -1, 1)
    interval = np.full((len(found), 2), np.nan)
    if count > 3:
        with np.errstate(divide="ignore"):  # of what is perfectly correlated
            middle = np.arctanh(found)
        width = np.sqrt((1 + found**2 / 2) / (count - 3))
        width *= NormalDist().inv_cdf((1 + confidence) / 2)
        interval = np.tanh(np.stack([middle - width, middle + width], axis=1))
    return {"correlation": found, "correlation_interval": interval}


def find_noise(values: Floats, errors: Floats) -> float:
    """Return which share of the values' variance is due to their own errors.

    ``errors`` are standard errors, of independent replicates; points of which either is
    no number are left out.  NaN where nothing varies.
    """
    known = np.isfinite(values) & np.isfinite(errors)
    variance = np.var(values[known]) if known.any() else 0.0
    return float(np.mean(errors[known] ** 2) / variance) if variance > 0 else np.nan
