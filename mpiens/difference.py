"""Is one scenario better than another: by how much, how surely, and by what share.

Paired where replicates met the same streams: then each is compared with its own twin,
and what both have in common cancels.  Else two samples are compared as they are.
Samples have their replicates on the last axis; of pairs only those are given of which
both are done.  Intervals are two-sided.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mpiens import bands
from mpiens.intervals import CONFIDENCE, bound_share, enclose_quantiles

Floats = NDArray[np.float64]
Interval = tuple[float, float]

LOWER, HIGHER = "lower", "higher"


@dataclass(frozen=True)
class Difference:
    """What a number of a scenario is beside the baseline's; NaN where nothing is known.

    ``better`` is the probability that a replicate of the scenario is better than one of
    the baseline (its own twin, where they are paired), ties counting half.  ``averted``
    is (baseline - scenario) / baseline, of the means.  ``reduction`` is how many times
    the variance of the mean difference is larger without pairing.
    """

    count: int  # pairs, or the smaller number of replicates
    mean: float
    mean_interval: Interval
    median: float
    median_interval: Interval
    better: float
    better_interval: Interval
    averted: float
    averted_interval: Interval
    reduction: float


def compare_paired(
    own: Floats,
    base: Floats,
    *,
    better: str = LOWER,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Compare a scenario's replicates with their twins of the baseline.

    The mean difference has Student's interval, the median that of order statistics.
    """
    difference = own - base
    count = len(difference)
    low, high = bound_mean(difference, confidence)
    middle = enclose_quantiles(np.sort(difference), (0.5,), confidence)[0]
    gain = -difference if better == LOWER else difference
    wins, ties = int((gain > 0).sum()), int((gain == 0).sum())
    spread = _variance(difference)
    apart = _variance(own) + _variance(base)
    return Difference(
        count=count,
        mean=float(bands.mean(difference)),
        mean_interval=(float(low), float(high)),
        median=float(bands.quantiles(difference, (0.5,))[0]),
        median_interval=(float(middle[0]), float(middle[1])),
        better=(wins + ties / 2) / count if count else math.nan,
        better_interval=(
            bound_share(wins, count, confidence)[0],  # no tie is a win, or all are
            bound_share(wins + ties, count, confidence)[1],
        ),
        averted=_avert(own, base),
        averted_interval=_bound_averted(own, base, _covariance(own, base), confidence),
        reduction=apart / spread if spread > 0 else math.nan,
    )


def compare_unpaired(
    own: Floats,
    base: Floats,
    *,
    better: str = LOWER,
    confidence: float = CONFIDENCE,
) -> Difference:
    """Compare two samples that have nothing to do with each other.

    The mean difference has Welch's interval; the probability of being better is that
    of Mann and Whitney, with the interval of Brunner and Munzel.  For the median there
    is the difference of medians, without an interval.
    """
    low, high = bound_welch(own, base, confidence)
    count = min(len(own), len(base))
    share, share_interval = _superiority(own, base, better, confidence)
    medians = [float(bands.quantiles(one, (0.5,))[0]) for one in (own, base)]
    return Difference(
        count=count,
        mean=float(bands.mean(own) - bands.mean(base)),
        mean_interval=(float(low), float(high)),
        median=medians[0] - medians[1],
        median_interval=(math.nan, math.nan),
        better=share,
        better_interval=share_interval,
        averted=_avert(own, base),
        averted_interval=_bound_averted(own, base, 0.0, confidence),
        reduction=math.nan,
    )


def bound_mean(samples: Floats, confidence: float = CONFIDENCE) -> Floats:
    """Return Student's interval of the mean over the last axis: shape (2, ...).

    Biometrika 6, 1908.  NaN below two replicates.
    """
    count = samples.shape[-1]
    half = bands.deviation(samples) / math.sqrt(max(count, 1))
    half = half * _student(count - 1, confidence) if count > 1 else half
    mean = bands.mean(samples)
    return np.stack([mean - half, mean + half])


def bound_welch(own: Floats, base: Floats, confidence: float = CONFIDENCE) -> Floats:
    """Return Welch's interval of the difference of means: shape (2, ...).

    Biometrika 34, 1947.  NaN where one sample has fewer than two replicates.
    """
    counts = own.shape[-1], base.shape[-1]
    mean = bands.mean(own) - bands.mean(base)
    if min(counts) < 2:
        return np.full((2, *mean.shape), np.nan)
    parts = [
        bands.deviation(s) ** 2 / n for s, n in zip((own, base), counts, strict=True)
    ]
    total = parts[0] + parts[1]
    with np.errstate(invalid="ignore", divide="ignore"):
        rest = sum(part**2 / (n - 1) for part, n in zip(parts, counts, strict=True))
        freedom = np.where(total > 0, total**2 / rest, 1.0)
    half = np.sqrt(total) * _student(freedom, confidence)
    return np.stack([mean - half, mean + half])


def _superiority(
    own: Floats, base: Floats, better: str, confidence: float
) -> tuple[float, Interval]:
    """Return the probability that a replicate of one is better than one of the other.

    With the interval of Brunner and Munzel (Biometrical Journal 42, 2000), by
    placements and with Satterthwaite's degrees of freedom, cut off at 0 and 1.  Where
    one sample lies wholly beyond the other that has no width: then Clopper and
    Pearson's stands in, for as many replicates as the smaller one has.
    """
    counts = len(own), len(base)
    if min(counts) < 1 or np.isnan(own).any() or np.isnan(base).any():
        return math.nan, (math.nan, math.nan)
    sign = -1.0 if better == LOWER else 1.0
    wins = _place_among(sign * own, sign * base)
    placements = wins, 1 - _place_among(sign * base, sign * own)
    share = float(wins.mean())
    if min(counts) < 2:
        return share, (0.0, 1.0)
    parts = [_variance(p) / n for p, n in zip(placements, counts, strict=True)]
    total = sum(parts)
    if total == 0:
        fewest = min(counts)
        return share, bound_share(round(share * fewest), fewest, confidence)
    rest = sum(part**2 / (n - 1) for part, n in zip(parts, counts, strict=True))
    half = math.sqrt(total) * float(_student(total**2 / rest, confidence))
    return share, (max(0.0, share - half), min(1.0, share + half))


def _place_among(values: Floats, others: Floats) -> Floats:
    """Return the share of the others that each value exceeds, ties counting half."""
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values, "left")
    upto = np.searchsorted(ordered, values, "right")
    return (below + upto) / (2 * len(others))


def _avert(own: Floats, base: Floats) -> float:
    whole = float(bands.mean(base))
    return 1 - float(bands.mean(own)) / whole if whole else math.nan


def _bound_averted(
    own: Floats, base: Floats, shared: float, confidence: float
) -> Interval:
    """Return the interval of the averted share by Fieller's theorem.

    Fieller, Journal of the Royal Statistical Society B 16, 1954: the ratios that the
    data do not contradict.  Without bounds where the baseline might be nothing at all.
    """
    counts = len(own), len(base)
    if min(counts) < 2:
        return math.nan, math.nan
    quantile = float(_student(min(counts) - 1, confidence)) ** 2
    above, below = float(bands.mean(own)), float(bands.mean(base))
    own_part, base_part = _variance(own) / counts[0], _variance(base) / counts[1]
    square = below**2 - quantile * base_part
    if square <= 0:
        return -math.inf, math.inf
    linear = above * below - quantile * shared / counts[0]
    constant = above**2 - quantile * own_part
    root = math.sqrt(max(0.0, linear**2 - square * constant))
    low, high = (linear - root) / square, (linear + root) / square
    return 1 - high, 1 - low


def _variance(samples: Floats) -> float:
    return float(bands.deviation(samples)) ** 2


def _covariance(own: Floats, base: Floats) -> float:
    if len(own) < 2:
        return math.nan
    return float(((own - own.mean()) * (base - base.mean())).sum() / (len(own) - 1))


def _student(freedom: float | Floats, confidence: float) -> Floats:
    """Return the quantile of Student's distribution that leaves out both tails."""
    from scipy.special import stdtrit  # noqa: PLC0415  (it takes 0.1 s)

    found: Floats = stdtrit(freedom, (1 + confidence) / 2)
    return found
