"""How many replicates are enough: when an interval is tight, and how many it takes.

It is decided at fixed counts only, from all replicates up to there that are done, in
their order: so the number run is the same at any rank count and after any resume.
Deciding more than once makes an interval cover a little less than it says; with batches
of the size of the first decision, and a width that is not met by chance, the loss is
small (Chow and Robbins, Annals of Mathematical Statistics 36, 1965: none in the limit).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mpiens import bands
from mpiens.difference import bound_mean
from mpiens.intervals import CONFIDENCE, enclose_quantiles, find_ranks, least

Floats = NDArray[np.float64]

MOST = 10**9  # replicates; more are not told about


def list_counts(first: int, batch: int, most: int) -> Iterator[int]:
    """Yield the counts at which it is decided: the first, each batch, and the most."""
    yield from range(first, most, batch)
    yield most


def measure_width(
    samples: Floats,
    level: float | None = None,
    *,
    relative: bool = False,
    confidence: float = CONFIDENCE,
) -> float:
    """Return the width of the widest interval: infinite where there is none yet.

    ``samples`` has shape (..., replicates): of a whole band every step counts.  The
    interval is that of the mean, or of the quantile at a level.  ``relative`` widths
    are those beside the size of what they enclose: 0.1 for 95 to 105.
    """
    if level is None:
        low, high = bound_mean(samples, confidence)
        middle = bands.mean(samples)
    else:
        ordered = np.sort(samples, axis=-1)
        low, high = enclose_quantiles(ordered, (level,), confidence)[0]
        middle = bands.quantiles(samples, (level,))[0]
    width = np.asarray(high - low, dtype=float)
    if relative:
        with np.errstate(divide="ignore", invalid="ignore"):
            width = np.where(width == 0, 0.0, width / np.abs(middle))
    return float(np.where(np.isnan(width), np.inf, width).max(initial=0.0))


def predict_count(
    samples: Floats,
    share: float,
    level: float | None = None,
    *,
    confidence: float = CONFIDENCE,
) -> int | None:
    """Return how many replicates would make an interval so many times as wide.

    ``samples`` are the replicates of one number; a ``share`` of 0.5 is half the width.
    That of a mean shrinks with the root of the count; that of a quantile by the ranks
    that enclose it, read off these replicates.  None where nothing can be said yet.
    """
    count = len(samples)
    if level is None:
        return min(MOST, math.ceil(count / share**2)) if count > 1 else None
    ordered = np.sort(samples)
    if find_ranks(count, level, confidence) is None:
        return least(level, confidence) if share >= 1 else None
    wanted = share * measure_width(samples, level, confidence=confidence)
    fewer, more = count, count
    while _expect_width(ordered, more, level, confidence) > wanted:
        fewer, more = more, more * 2
        if more > MOST:
            return None
    while more - fewer > 1:
        middle = (more + fewer) // 2
        if _expect_width(ordered, middle, level, confidence) > wanted:
            fewer = middle
        else:
            more = middle
    return more


def _expect_width(
    ordered: Floats, count: int, level: float, confidence: float
) -> float:
    """Return how wide the interval of a quantile of so many replicates will be.

    Their ranks are looked up among those there are, between two of them by a line.
    """
    ranks = find_ranks(count, level, confidence)
    if ranks is None:
        return math.inf
    here = (np.array(ranks) + 1) / (count + 1) * (len(ordered) + 1) - 1
    low, high = np.interp(here, np.arange(len(ordered)), ordered)
    return float(high - low)
