"""Which curves are central, as wholes: depth, central regions, curve boxes.

A band of pointwise quantiles follows no curve, and understates peaks whose times differ
(Juul, Graesboll, Christiansen and Lehmann, Nature Physics 17, 2021).  Here whole curves
are ranked, and what the central ones cover is shown.

What is counted of a slab of steps adds up (or, for ``contain``, holds together by
"and") over all slabs, in integers: it does not depend on how curves are cut.
``samples`` has shape (steps, replicates), the failed ones left out.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]
Flags = NDArray[np.bool_]

FACTOR = 1.5  # fences stand so many heights of the central region beyond it
GROUPS, SIZE = 100, 10  # drawn for a curve box, and curves in each; as published


def count_pairs(samples: Floats) -> Counts:
    """Return in how many (pair of curves, step) each curve lies within the pair's band.

    Over all pairs and steps that is the modified band depth of Lopez-Pintado and Romo
    (Journal of the American Statistical Association 104, 2009, with bands of two
    curves) but for a factor, found exactly by ranks (Sun, Genton and Nychka, Stat 1,
    2012).  Whoever is as high as a curve of the pair lies within.  Steps at which a
    curve has no number count for none.
    """
    known = ~np.isnan(samples).any(axis=1)
    samples = samples[known]
    steps, count = samples.shape
    order = np.argsort(samples, axis=1, kind="stable")
    ordered = np.take_along_axis(samples, order, axis=1)
    new = np.ones((steps, count + 1), dtype=bool)
    if count:
        new[:, 1:-1] = ordered[:, 1:] != ordered[:, :-1]
    places = np.arange(count)
    below = np.maximum.accumulate(np.where(new[:, :-1], places, 0), axis=1)
    last = np.where(new[:, 1:], places, count)[:, ::-1]
    above = count - 1 - np.minimum.accumulate(last, axis=1)[:, ::-1]
    pairs = _choose(count) - _choose(below) - _choose(above)
    result = np.zeros((steps, count), dtype=np.int64)
    np.put_along_axis(result, order, pairs, axis=1)
    return np.asarray(result.sum(axis=0))


def find_depth(pairs: Counts, steps: int) -> Floats:
    """Return the modified band depth, from 0 to 1, of curves by their counts."""
    whole = steps * _choose(len(pairs))
    return pairs / whole if whole else np.full(len(pairs), np.nan)


def find_central(scores: Counts, share: float = 0.5) -> Counts:
    """Return the most central curves, a share of all (rounded up), deepest first.

    Of curves that are as central the earlier replicate goes first.
    """
    wanted = math.ceil(share * len(scores) - 1e-9)
    return np.argsort(-scores, kind="stable")[:wanted]


def find_envelope(samples: Floats, central: Counts) -> Floats:
    """Return the least and the largest value of some curves: shape (2, steps)."""
    own = samples[:, central]
    return np.stack([own.min(axis=1), own.max(axis=1)])


def find_fences(envelope: Floats, factor: float = FACTOR) -> Floats:
    """Return how far a curve may leave the central region and not be outlying.

    The functional boxplot of Sun and Genton (Journal of Computational and Graphical
    Statistics 20, 2011): the region of the deeper half, and so many of its heights.
    """
    height = envelope[1] - envelope[0]
    return np.stack([envelope[0] - factor * height, envelope[1] + factor * height])


def find_outlying(samples: Floats, fences: Floats) -> Flags:
    """Return which curves are beyond the fences at some step of this slab."""
    outside = (samples < fences[0][:, None]) | (samples > fences[1][:, None])
    return np.asarray(outside.any(axis=0))


def draw_groups(
    count: int, seed: int, *, groups: int = GROUPS, size: int = SIZE
) -> Counts:
    """Return the groups of curves that a curve box is made with: (groups, size).

    Drawn by the ensemble's seed, so that they are the same at every run.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(count,)))
    size = min(size, count)
    drawn = [rng.choice(count, size, replace=False) for _ in range(groups)]
    return np.array(drawn, dtype=np.int64).reshape(groups, size)


def contain(samples: Floats, groups: Counts) -> Flags:
    """Return which groups contain which curves wholly, in a slab: (groups, replicates).

    A curve scores a point for every group whose envelope it never leaves: the curve box
    of Juul et al., ranked all or nothing.
    """
    inside = np.empty((len(groups), samples.shape[1]), dtype=bool)
    for index, group in enumerate(groups):
        low, high = find_envelope(samples, group)
        within = (samples >= low[:, None]) & (samples <= high[:, None])
        inside[index] = within.all(axis=0)
    return inside


def _choose(count: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many pairs so many things have."""
    number = np.asarray(count, dtype=np.int64)
    return np.asarray(number * (number - 1) // 2)
