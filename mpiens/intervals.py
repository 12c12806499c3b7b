"""How far a number from some replicates may be off, and what future ones will do.

Nothing here supposes any distribution: quantiles are bounded by the order statistics
around them, shares by the binomial distribution itself.  Samples have their replicates
on the last axis, in ascending order; failed ones have been left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95


@lru_cache(maxsize=256)
def least(level: float, confidence: float = CONFIDENCE) -> int:
    """Return the fewest replicates of which two enclose a quantile as surely as asked.

    The least and the largest of n do with probability 1 - level^n - (1 - level)^n
    (David and Nagaraja, Order Statistics, 3rd edition, 2003, section 7.1).  6 for the
    median at 95%, 29 for 10% and 90%, 59 for 5% and 95%, 119 for 2.5% and 97.5%.
    """
    if not 0 < level < 1:
        raise ValueError(f"a level of {level} has no interval: give one within 0 and 1")
    few, many = 1, 2
    while not _encloses(many, level, confidence):
        few, many = many, 2 * many
    while many - few > 1:
        middle = (few + many) // 2
        if _encloses(middle, level, confidence):
            many = middle
        else:
            few = middle
    return many


def find_least(level: float, confidence: float = CONFIDENCE) -> int:
    """Return the fewest replicates as ``least`` does; 0 where no number is enough."""
    return least(level, confidence) if 0 < level < 1 else 0


@lru_cache(maxsize=1024)
def find_ranks(
    count: int, level: float, confidence: float = CONFIDENCE
) -> tuple[int, int] | None:
    """Return which two of the ordered replicates enclose a quantile, from 0.

    Of all pairs that do with at least that probability, the closest; of those the one
    whose tails are most alike.  Exact for continuous distributions and never less for
    others (David and Nagaraja, section 7.1).  None where there are too few.
    """
    if count < 2 or not 0 < level < 1:
        return None
    if not _encloses(count, level, confidence):
        return None
    first, chances = _binomial(count, level)
    sums = np.concatenate([[0.0], np.cumsum(chances)])
    best: tuple[int, float] | None = None
    found = (0, count - 1)
    for low in range(max(1, first), first + len(chances)):
        # the quantile is above so many replicates: low, ..., high - 1
        wanted = sums[low - first] + confidence
        high = first + int(np.searchsorted(sums, wanted - 1e-12))
        if high > count or high - first >= len(sums):
            break
        below, above = sums[low - first], 1 - sums[high - first]
        quality = (high - low, abs(float(below - above)))
        if best is None or quality < best:
            best, found = quality, (low - 1, high - 1)
    return found


def enclose_quantiles(
    ordered: Floats, levels: Sequence[float], confidence: float = CONFIDENCE
) -> Floats:
    """Return the interval of each quantile: shape (levels, 2, ...).

    ``ordered`` has shape (..., replicates).  NaN where there are too few replicates.
    """
    count = ordered.shape[-1]
    result = np.full((len(levels), 2, *ordered.shape[:-1]), np.nan)
    for index, level in enumerate(levels):
        if (ranks := find_ranks(count, float(level), confidence)) is not None:
            for side, rank in enumerate(ranks):
                result[index, side] = ordered[..., rank]
    return result


def predict_ranks(count: int, share: float) -> tuple[int, int] | None:
    """Return between which two ordered replicates a share of future ones will fall.

    Of n replicates the r-th and the s-th hold a future one with probability
    (s - r) / (n + 1), whatever the distribution (Wilks, Annals of Mathematical
    Statistics 12, 1941); the band is symmetric, and holds at least that share.  None
    where even all replicates together hold less.
    """
    cut = math.floor((count + 1) * (1 - share) / 2 + 1e-9)
    return (cut - 1, count - cut) if cut >= 1 and count - cut > cut - 1 else None


def enclose_future(ordered: Floats, shares: Sequence[float]) -> Floats:
    """Return between what a share of future replicates will fall: (shares, 2, ...).

    ``ordered`` has shape (..., replicates).  NaN where there are too few replicates.
    """
    count = ordered.shape[-1]
    result = np.full((len(shares), 2, *ordered.shape[:-1]), np.nan)
    for index, share in enumerate(shares):
        if (ranks := predict_ranks(count, float(share))) is not None:
            for side, rank in enumerate(ranks):
                result[index, side] = ordered[..., rank]
    return result


def predict_share(count: int, low: int, high: int) -> float:
    """Return the share of future replicates between two ordered ones, from 0."""
    return (high - low) / (count + 1)


def expect_share(count: int, low: float, high: float) -> float:
    """Return the share of future replicates that a band between two levels will hold.

    For quantiles interpolated by numpy's default.  Exact where values are uniform, and
    close for others: 48% of a 10-90% band of 4 replicates, 79% of one of 200.
    """
    return (count - 1) * (high - low) / (count + 1) if count else math.nan


def bound_share(
    successes: int, count: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Return the interval of a share of which some were seen (Clopper and Pearson).

    Biometrika 26, 1934: it covers with at least that probability, whatever the share.
    """
    from scipy.special import betaincinv  # noqa: PLC0415  (it takes 0.1 s)

    if count == 0:
        return math.nan, math.nan
    tail = (1 - confidence) / 2
    low, high = 0.0, 1.0
    if successes > 0:
        low = float(betaincinv(successes, count - successes + 1, tail))
    if successes < count:
        high = float(betaincinv(successes + 1, count - successes, 1 - tail))
    return low, high


def _encloses(count: int, level: float, confidence: float) -> bool:
    """Whether all replicates together enclose a quantile as surely as asked."""
    return 1 - level**count - (1 - level) ** count >= confidence


def _binomial(count: int, level: float) -> tuple[int, Floats]:
    """Return the binomial chances that matter, and the number that they begin with."""
    spread = 12 * math.sqrt(count * level * (1 - level)) + 12
    first = max(0, math.floor(count * level - spread))
    last = min(count, math.ceil(count * level + spread))
    logs = (math.log(level), math.log1p(-level), math.lgamma(count + 1))
    chances = [
        math.exp(
            logs[2]
            - math.lgamma(k + 1)
            - math.lgamma(count - k + 1)
            + k * logs[0]
            + (count - k) * logs[1]
        )
        for k in range(first, last + 1)
    ]
    return first, np.array(chances)
