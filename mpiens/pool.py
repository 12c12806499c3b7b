"""Numbers made of one output of all of a scenario's replicates: counts, means, pools.

A sample is either one array (replicates, ...), all rows being alike, or a list of one
array per replicate where their lengths differ; entries of such are pooled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens import bands
from mpiens.spec import Pool

Sample = NDArray[Any] | list[NDArray[Any]]


def make_pool(pool: Pool, sample: Sample, levels: Sequence[float]) -> NDArray[Any]:
    """Return what a pool makes of a sample; ``levels`` are for quantiles without any.

    ``count`` is that of replicates, or of pooled entries.  ``mean``, ``sum`` and
    ``quantiles`` (levels, ...) are over replicates, or over pooled entries.
    ``histogram`` counts the entries of all replicates by bin, the last of which is
    closed as numpy's is, and ``density`` is their share in each, by its width: its
    integral is the share of entries that lie within the edges.
    """
    return np.asarray(_MAKE[pool.kind](pool, sample, pool.levels or levels))


def find_edges(pool: Pool) -> NDArray[np.float64]:
    """Return the edges of a histogram's bins; ValueError where there are none."""
    if pool.edges is not None:
        edges = np.array(pool.edges, dtype=float)
        if len(edges) < 2 or not (np.diff(edges) > 0).all():
            text = f"edges {list(pool.edges)} should rise, and be two or more"
            raise ValueError(text)
        return edges
    if pool.bins is None or pool.low is None or pool.high is None:
        raise ValueError(f"a {pool.kind} needs edges, or bins with low and high")
    if not pool.low < pool.high:
        raise ValueError(f"low = {pool.low} is not below high = {pool.high}")
    if pool.scale == "linear":
        return np.linspace(pool.low, pool.high, pool.bins + 1)
    if pool.low <= 0:
        raise ValueError(f"low = {pool.low} has no logarithm; bins by log need low > 0")
    return np.geomspace(pool.low, pool.high, pool.bins + 1)


def find_coordinate(pool: Pool) -> NDArray[np.float64] | None:
    """Return what the first dimension of a pool's array is told in, if it has one.

    That is the middle of every bin (by ratio where bins are), or levels of its own.
    """
    if pool.kind in ("histogram", "density"):
        edges = find_edges(pool)
        if pool.edges is None and pool.scale == "log":
            return np.sqrt(edges[:-1] * edges[1:])
        return (edges[:-1] + edges[1:]) / 2
    return None if pool.levels is None else np.array(pool.levels, dtype=float)


def _stack(sample: Sample) -> NDArray[np.float64]:
    """Return the sample with what statistics run over as its first axis."""
    if isinstance(sample, list):
        return np.concatenate([np.asarray(r, float) for r in sample] or [np.zeros(0)])
    return np.asarray(sample, dtype=float)


def _last(sample: Sample) -> NDArray[np.float64]:
    return np.ascontiguousarray(np.moveaxis(_stack(sample), 0, -1))


def _sum(pool: Pool, sample: Sample, levels: Sequence[float]) -> NDArray[np.float64]:
    del pool, levels
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(_last(sample).sum(axis=-1))


def _histogram(
    pool: Pool, sample: Sample, levels: Sequence[float]
) -> NDArray[np.int64]:
    del levels
    entries = _stack(sample).reshape(-1)
    within = entries[np.isfinite(entries)]
    return np.histogram(within, find_edges(pool))[0].astype(np.int64)


def _density(
    pool: Pool, sample: Sample, levels: Sequence[float]
) -> NDArray[np.float64]:
    total = _stack(sample).size
    counts = _histogram(pool, sample, levels)
    if total == 0:
        return np.full(len(counts), np.nan)
    return counts / total / np.diff(find_edges(pool))


_MAKE: dict[str, Callable[[Pool, Sample, Sequence[float]], Any]] = {
    "count": lambda pool, sample, levels: np.int64(len(_stack(sample))),
    "mean": lambda pool, sample, levels: bands.mean(_last(sample)),
    "sum": _sum,
    "quantiles": lambda pool, sample, levels: bands.quantiles(_last(sample), levels),
    "histogram": _histogram,
    "density": _density,
}
