"""How pieces of one curve lie on each other: a common grid, tapers, least squares.

Everything here is linear in the data, and is asked for many rows of data at once, so
that an estimate, its propagated error and its bootstrap go the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """All points that the pieces have, piece after piece, x rising within each.

    ``piece``, ``x`` and ``bridge`` have shape (points,).  ``bridge`` says whether the
    piece goes on from a point to its next one; it does not at its end or at a hole.
    ``numbers`` are the names under which pieces are told.
    """

    piece: Ints
    x: Floats
    bridge: Bools
    numbers: tuple[int, ...]

    def range(self, piece: int) -> tuple[float, float]:
        """Return the lowest and the highest x of a piece."""
        own = self.x[self.piece == piece]
        return float(own[0]), float(own[-1])

    def tell(self, piece: int) -> str:
        """Name a piece as the user counts it, with its range."""
        low, high = self.range(piece)
        return f"piece {self.numbers[piece]} (x from {low:.6g} to {high:.6g})"


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """What every piece says at every point of a common grid.

    ``grid`` has shape (grid,); all else has shape (entries,), by piece, then by point.
    An entry is ``low * data[left] + high * data[right]``, of two points of its piece.
    """

    grid: Floats
    piece: Ints
    point: Ints
    left: Ints
    right: Ints
    low: Floats
    high: Floats

    def of(self, data: Floats) -> Floats:
        """Return the entries (..., entries) of data (..., points)."""
        low = np.take(data, self.left, axis=-1) * self.low
        return low + np.take(data, self.right, axis=-1) * self.high

    def back(self, rows: Floats, count: int) -> Floats:
        """Return what of data (count,) goes into what takes ``rows`` of entries."""
        found = np.empty((len(rows), count))
        for index, row in enumerate(rows):
            low = np.bincount(self.left, row * self.low, count)
            found[index] = low + np.bincount(self.right, row * self.high, count)
        return found

    def variance(self, variance: Floats) -> Floats:
        """Return the variance of the entries, of that of independent points."""
        low, high = self.low**2, self.high**2
        return variance[self.left] * low + variance[self.right] * high

    def blend(self, weight: Floats) -> Floats:
        """Return the mean weight (entries,) of the points that an entry is made of."""
        low, high = np.abs(self.low), np.abs(self.high)
        total = weight[self.left] * low + weight[self.right] * high
        return np.asarray(total / (low + high))

    def table(self, values: Floats | Bools) -> Floats:
        """Return entries (entries,) as (grid, pieces), NaN where a piece is not."""
        table = np.full((len(self.grid), self.piece[-1] + 1), np.nan)
        table[self.point, self.piece] = values
        return table

    def shared(self, chosen: Bools) -> Ints:
        """Return how many points two pieces share by the chosen entries (entries,)."""
        present = (self.table(chosen) == 1).astype(np.int64)
        return np.asarray(np.einsum("mk,ml->kl", present, present))

    def compact(self) -> Entries:
        """Return the same entries on the points of the grid at which there are any."""
        kept, point = np.unique(self.point, return_inverse=True)
        return replace(self, grid=self.grid[kept], point=point)


def match(points: Points, tolerance: float, *, interpolate: bool) -> Entries:
    """Lay points on a common grid: those within ``tolerance`` of the next are one.

    The grid is the union of all points.  With ``interpolate`` a piece also has an
    entry, by linear interpolation, at each point of the grid between two of its own
    that no hole parts.  Raises ValueError where two points of one piece become one.
    """
    order = np.argsort(points.x, kind="stable")
    ordered = points.x[order]
    first = np.diff(ordered, prepend=-np.inf) > tolerance
    label = np.empty(len(order), dtype=np.int64)
    label[order] = np.cumsum(first) - 1
    _refuse_twice(points, label, tolerance)
    own = np.arange(len(order))
    grid, one = ordered[first], np.ones(len(order))
    entries = Entries(grid, points.piece, label, own, own, one, 0 * one)
    return _interpolate(points, entries) if interpolate else entries


def slopes(points: Points, entries: Entries) -> Entries:
    """Return the slopes of pieces in the cells of a grid; shape (grid - 1,).

    A piece has one in each cell whose two ends it has.  The new grid is of the middles
    of cells.  Raises ValueError where a piece has none.
    """
    piece, point = entries.piece, entries.point
    start = np.flatnonzero((np.diff(piece) == 0) & (np.diff(point) == 1))
    for absent in sorted(set(piece.tolist()) - set(piece[start].tolist())):
        text = "has no two points that are neighbours on the common grid, so no slope"
        way = "give interpolate=True where grids differ"
        raise ValueError(f"{points.tell(absent)} {text}: {way}")
    left, right = entries.left[start], entries.right[start + 1]
    steep = 1 / (points.x[right] - points.x[left])
    middles = (entries.grid[:-1] + entries.grid[1:]) / 2
    return Entries(middles, piece[start], point[start], left, right, -steep, steep)


def window(kind: str | tuple[Any, ...], entries: Entries) -> Floats:
    """Return the weight of each entry by where it stands in its piece: (entries,).

    A taper is of scipy.signal.windows, by name, or a tuple of name and parameters; it
    falls to zero one step beyond the ends.  It is 1 at points at which it would be
    zero for all pieces.  Raises ValueError where there is none of that name, and
    ImportError where one needs scipy and there is none.
    """
    weight = np.ones(len(entries.piece))
    for piece in range(int(entries.piece[-1]) + 1):
        own = entries.piece == piece
        weight[own] = _taper(kind, entries.grid[entries.point[own]])
    bare = np.ones(len(entries.grid), dtype=bool)
    bare[entries.point[weight > 0]] = False
    return np.where(bare[entries.point], 1.0, weight)


class Least:
    """Offsets and averages of entries by weighted least squares: a linear map.

    With entries y_j of piece k(j) at point m(j), weights w_j, the curve f and offsets
    c, it makes sum_j w_j (y_j + c_k(j) - f_m(j))^2 as small as can be, c being zero
    for the first piece.  Without f, that is sum_m sum_(k<l) w_k w_l / W_m (y_k + c_k -
    y_l - c_l)^2, whose normal matrix is the Laplacian of the graph of overlaps.  The
    pieces must be linked by shared points.  ``shares`` (grid, pieces) is w / W.
    """

    def __init__(self, entries: Entries, weight: Floats, *, fitted: bool) -> None:
        self._piece = entries.piece
        self._point = entries.point
        self._by_piece = _Sums(entries.piece)
        self._by_point = _Sums(entries.point)
        self._weight = weight
        self._share = weight / self._by_point(weight)[entries.point]
        self.shares = np.nan_to_num(entries.table(self._share))
        pieces = self.shares.shape[1]
        self._inverse = np.zeros((pieces, pieces))
        if fitted and pieces > 1:
            weights = np.nan_to_num(entries.table(weight))
            links = np.einsum("mk,ml->kl", self.shares, weights)
            np.fill_diagonal(links, 0.0)
            laplacian = np.diag(links.sum(axis=1)) - links
            self._inverse[1:, 1:] = np.linalg.inv(laplacian[1:, 1:])

    def __call__(self, values: Floats) -> tuple[Floats, Floats]:
        """Return offsets (rows, pieces) and curves (rows, grid) of (rows, entries)."""
        apart = values - np.take(self.average(values), self._point, axis=-1)
        pull = self._by_piece(self._weight * apart)
        offsets = 0.0 - np.einsum("rk,kl->rl", pull, self._inverse)
        lifted = values + np.take(offsets, self._piece, axis=-1)
        return offsets, self.average(lifted)

    def average(self, values: Floats) -> Floats:
        """Return the weighted mean at each point (rows, grid) of (rows, entries)."""
        return self._by_point(self._share * values)

    def mean_variance(self, variance: Floats) -> Floats:
        """Return the variance of such a mean (grid,) of that of entries (entries,)."""
        return self._by_point(self._share**2 * variance)

    def gain(self) -> Floats:
        """Return what of each entry goes into each offset, (pieces, entries)."""
        shared = np.einsum("kl,ml->km", self._inverse, self.shares)
        apart = shared[:, self._point] - self._inverse[:, self._piece]
        return np.asarray(self._weight * apart)

    def average_at(self, point: int) -> Floats:
        """Return what of each entry goes into the mean at a point, (entries,)."""
        return np.where(self._point == point, self._share, 0.0)


class _Sums:
    """Sums over the last axis of what has the same key, in a fixed order."""

    def __init__(self, keys: Ints) -> None:
        self._order = np.argsort(keys, kind="stable")
        self._starts = np.flatnonzero(np.diff(keys[self._order], prepend=-1))

    def __call__(self, values: Floats) -> Floats:
        ordered = np.take(values, self._order, axis=-1)
        return np.asarray(np.add.reduceat(ordered, self._starts, axis=-1))


def find_apart(points: Points, shared: Ints) -> tuple[int, int] | None:
    """Return two pieces, nearest in x, that no chain of shared points links, if any.

    ``shared`` (pieces, pieces) is how many points two pieces share.
    """
    count = len(shared)
    reached = np.zeros(count, dtype=bool)
    reached[0] = True
    for _ in range(count):
        reached |= (shared[reached] > 0).any(axis=0)
    ranges = [points.range(piece) for piece in range(count)]
    pairs = [
        (max(ranges[b][0] - ranges[a][1], ranges[a][0] - ranges[b][1]), a, b)
        for a in np.flatnonzero(reached).tolist()
        for b in np.flatnonzero(~reached).tolist()
    ]
    if not pairs:
        return None
    _, first, second = min(pairs)
    return first, second


def spacing(points: Points) -> float:
    """Return the smallest distance between two points of one piece; 0 without any."""
    same = np.diff(points.piece) == 0
    return float(np.diff(points.x)[same].min(initial=np.inf)) if same.any() else 0.0


def _refuse_twice(points: Points, label: Ints, tolerance: float) -> None:
    twice = (np.diff(points.piece) == 0) & (np.diff(label) == 0)
    for index in np.flatnonzero(twice)[:1].tolist():
        where = f"two points at x = {points.x[index]:.6g}"
        text = f"{where}, or nearer to each other than the tolerance {tolerance:.3g}"
        raise ValueError(f"{points.tell(int(points.piece[index]))} has {text}")


def _interpolate(points: Points, entries: Entries) -> Entries:
    """Add what a piece says between two points of its own, at those of others."""
    columns = [[entries.piece, entries.point, entries.left, entries.right]]
    shares = [entries.high]
    for number in range(len(points.numbers)):
        own = np.flatnonzero(points.piece == number)
        label = entries.point[own]
        between = np.setdiff1d(np.arange(label[0], label[-1]), label)
        left = own[np.searchsorted(label, between) - 1]
        point, left = between[points.bridge[left]], left[points.bridge[left]]
        reach = points.x[left + 1] - points.x[left]
        shares.append(np.clip((entries.grid[point] - points.x[left]) / reach, 0, 1))
        columns.append([np.full(len(point), number), point, left, left + 1])
    piece, point, left, right = (np.concatenate(c) for c in zip(*columns, strict=True))
    share = np.concatenate(shares)
    order = np.lexsort((point, piece))
    share, left, right = share[order], left[order], right[order]
    values = (left, right, 1 - share, share)
    return Entries(entries.grid, piece[order], point[order], *values)


def _taper(kind: str | tuple[Any, ...], x: Floats) -> Floats:
    """Return a taper at rising x, its zeros a mean step outside of the first and last.

    On an even grid of n points that is the symmetric window of n + 2 points without
    its two ends.
    """
    count = len(x)
    if kind == "boxcar" or count == 1:
        return np.ones(count)
    step = (x[-1] - x[0]) / (count - 1)
    place = (x - x[0] + step) / (x[-1] - x[0] + 2 * step)
    if kind == "hann":
        return np.asarray(np.sin(np.pi * place) ** 2)
    samples = np.maximum(_sample(kind, count + 2), 0.0)
    return np.asarray(np.interp(place, np.linspace(0, 1, count + 2), samples))


def _sample(kind: str | tuple[Any, ...], count: int) -> Floats:
    try:
        from scipy.signal import get_window  # noqa: PLC0415
    except ImportError as error:
        way = "pip install scipy, or take 'hann' or 'boxcar'"
        raise ImportError(f"the taper {kind!r} needs scipy: {way} ({error})") from error
    try:
        return np.asarray(get_window(kind, count, fftbins=False), dtype=float)
    except (ValueError, TypeError) as error:
        way = "see scipy.signal.windows for those there are"
        raise ValueError(f"no taper is {kind!r}: {way} ({error})") from error
