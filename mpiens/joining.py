"""One curve of overlapping pieces that agree up to an additive offset each.

The offsets of all pieces are found at once, by weighted least squares over all
overlaps, and so is the error: the joined curve is linear in the data, y = A d, and
its covariance is A C A^T, with what the offsets bring included.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpiens import pieces as parts
from mpiens.alignment import (
    Entries,
    Least,
    Points,
    find_apart,
    match,
    slopes,
    spacing,
    window,
)
from mpiens.pieces import Piece

BLOCK = 64  # points whose noise is followed through an integral at once
EXACT = 1e-12  # share of a variance below which what is left of it is rounding
TOLERANCE = 1e-6  # of the smallest step of a piece, where none is told

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Taper = str | tuple[Any, ...]
Anchor = float | tuple[float, float]


@dataclass(frozen=True, slots=True)
class Residual:
    """How well two pieces agree where they overlap, once they are joined.

    ``first`` and ``second`` number the pieces as they were given, ``points`` is how
    many they share, ``rms`` the root mean square of their difference, and ``scaled``
    the same in units of its standard error, to which the offsets have been fitted:
    its square is 1 on average where the errors are right.  It is NaN where no error
    is known, and where the offset between the two makes the difference zero.
    """

    first: int
    second: int
    points: int
    rms: float
    scaled: float


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """The joined curve, and how sure it is.

    ``x``, ``y``, ``error`` (one standard error, propagated; NaN where none is known)
    and ``count`` (how many pieces a point rests on) have shape (points,).
    ``bootstrap_error`` is None, or (points,) where every piece has replicates;
    ``draws`` are then the curves of all resamples, (bootstrap, points): of whatever
    is made of the curve, make it of each, and the scatter is its error.  ``offsets``
    is what was added to each piece and ``offset_errors`` its standard error,
    (pieces,), in the order in which pieces were given; NaN for those left out, and
    for slopes, which have none.  ``residuals`` has one for each two pieces that
    overlap.
    """

    x: Floats
    y: Floats
    error: Floats
    count: NDArray[np.int64]
    offsets: Floats
    offset_errors: Floats
    residuals: tuple[Residual, ...]
    bootstrap_error: Floats | None = None
    draws: Floats | None = None


def join(  # noqa: PLR0913  (each has a default that is meant to be kept)
    xs: Sequence[ArrayLike],
    ys: Sequence[ArrayLike],
    *,
    weights: str | Sequence[ArrayLike] | None = None,
    errors: float | Sequence[ArrayLike] | None = None,
    taper: Taper | None = None,
    credences: Sequence[float] | None = None,
    tolerance: float | None = None,
    interpolate: bool = False,
    aligned: bool = False,
    anchor: Anchor = 0.0,
    derivative: bool = False,
    integrate: bool = False,
    bootstrap: int = 1000,
    seed: int = 0,
) -> Joined:
    """Join overlapping pieces of one curve; their order does not matter to a bit.

    ``xs[k]`` has shape (points,) and ``ys[k]`` (points,) or (replicates, points), in
    any order of x.  A NaN is a point that a piece lacks; of replicates, a row of NaN
    is left out, and any other NaN takes its point from the piece.

    A point of a piece weighs credence * taper * ``weights``.  ``credences`` are one
    per piece, in [0, 1]; 0 leaves a piece out.  ``taper`` names a window of
    scipy.signal.windows (or is a tuple of name and parameters), by default "hann"
    where neither ``weights`` nor ``aligned`` are given, else "boxcar".  ``weights``
    are arrays like ``xs``, zero for a point that is not to count, or "variance": one
    over the variance by ``errors`` or replicates.

    ``errors`` are standard errors of points, arrays like ``xs`` or numbers, and those
    of different points are independent.  Where there are replicates, the covariance
    is theirs instead, and ``bootstrap`` resamples of them are drawn by ``seed``.
    Pieces are independent of each other.

    Points of different pieces are one where they differ by at most ``tolerance``, by
    default 1e-6 of the smallest step.  ``interpolate`` takes grids that differ, and
    reads each piece linearly between neighbouring points.

    ``anchor`` is the offset of the first piece, that which begins at the lowest x; or
    (x, value), a point through which the curve goes.  With ``aligned`` pieces agree as
    they are and no offset is sought: plain averaging of repeated experiments.

    ``derivative`` joins the slopes of pieces between neighbouring points instead of
    their values, so that no offset matters; x is then in the middle between them.
    With ``integrate`` too, the result is the curve of these slopes, which begins with
    the value of the first piece, or goes through (x, value).

    Raises ValueError where pieces cannot be joined, and says which, and why.
    """
    _check_values(weights, tolerance, bootstrap)
    _check_ways(aligned=aligned, derivative=derivative, integrate=integrate)
    fitted = not (aligned or derivative)
    at, level = _read_anchor(anchor, used=fitted or integrate)
    arrays = None if isinstance(weights, str) else weights
    pieces = parts.read_pieces(xs, ys, arrays, errors, credences)
    points = parts.lay_out(pieces)
    if tolerance is None:
        tolerance = TOLERANCE * spacing(points)
    lay = partial(match, tolerance=tolerance, interpolate=interpolate)
    nodes = lay(points)
    entries = slopes(points, nodes) if derivative else nodes
    width = _widths(points, nodes, entries) if integrate else None
    entries = entries.compact()
    if taper is None:
        taper = "hann" if weights is None and not aligned else "boxcar"
    own = np.concatenate([piece.weight for piece in pieces])
    weight = window(taper, entries) * entries.blend(own)
    variance = parts.spread(pieces, entries, levels=fitted)
    if isinstance(weights, str):
        weight = weight / _refuse_unknown(variance, points, entries)
    weight = weight / weight.max()
    if fitted:
        _check_links(pieces, entries, weight, lay)
    chain = _Chain(entries, Least(entries, weight, fitted=fitted), width)
    x = entries.grid if width is None else nodes.grid
    if at is not None:
        place = _find(x, at, tolerance, between=interpolate)
        chain = replace(chain, reference=place)
    numbers = [piece.number for piece in pieces]
    data = parts.mean(pieces)
    offsets, y = (rows[0] for rows in chain(data[None]))
    overlaps = _overlaps(entries, weight)
    offset_errors, error, apart = _propagate(chain, pieces, overlaps)
    draws = _draw(chain, pieces, bootstrap, seed)
    lifted = entries.of(data) + offsets[entries.piece]
    none = math.nan if derivative else 0.0  # slopes have no offsets
    rests = entries.point[weight > 0] if width is None else nodes.point
    return Joined(
        x=x,
        y=y + level,
        error=error,
        count=np.bincount(rests),
        offsets=_scatter(offsets + level + none, numbers, len(xs)),
        offset_errors=_scatter(offset_errors + none, numbers, len(xs)),
        residuals=_residuals(overlaps, lifted, apart, numbers),
        bootstrap_error=None if draws is None else draws.std(axis=0, ddof=1),
        draws=None if draws is None else draws + level,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Overlap:
    """Two pieces, and their entries at the points they share (shared,)."""

    first: int
    second: int
    of_first: Ints
    of_second: Ints

    def apart(self, values: Floats) -> Floats:
        """Return by how much entries (..., entries) differ, (..., shared)."""
        return values[..., self.of_first] - values[..., self.of_second]

    def together(self, values: Floats) -> Floats:
        """Return the sum of both entries of (..., entries), (..., shared)."""
        return values[..., self.of_first] + values[..., self.of_second]


@dataclass(frozen=True, slots=True, eq=False)
class _Chain:
    """The linear map from data to offsets and curve, all steps after one another.

    ``width`` (cells,) is that of the cells over which slopes are integrated, if they
    are.  ``reference`` is where the curve is to be zero: two points of it, and how
    far from the first to the second.
    """

    entries: Entries
    least: Least
    width: Floats | None = None
    reference: tuple[int, int, float] | None = None

    def __call__(self, data: Floats) -> tuple[Floats, Floats]:
        """Return offsets (rows, pieces) and curves (rows, grid) of (rows, points)."""
        offsets, curve = self.least(self.entries.of(data))
        if self.width is not None:
            start = data[:, :1]  # the lowest point of the first piece
            rise = np.cumsum(curve * self.width, axis=1)
            curve = np.concatenate([start, start + rise], axis=1)
        if self.reference is not None:
            low, high, share = self.reference
            base = curve[:, [low]] * (1 - share) + curve[:, [high]] * share
            offsets, curve = offsets - base, curve - base
        return offsets, curve

    def variances(self, gain: Floats, variance: Floats) -> tuple[Floats, Floats]:
        """Return those of offsets and curve, given that of independent points.

        ``gain`` (pieces, points) is what of the data goes into the offsets.  The curve
        is a mean of pieces at each point plus the mean of their offsets there.
        """
        if self.width is not None:
            return self._variances_of_sums(variance)
        entries, least, shares = self.entries, self.least, self.least.shares
        if self.reference is not None:
            low, high, share = self.reference
            at = least.average_at(low) * (1 - share) + least.average_at(high) * share
            mean_offset = shares[low] * (1 - share) + shares[high] * share
            base = entries.back(at[None], len(variance))
            base = base + np.einsum("k,kn->n", mean_offset, gain)
            gain = gain - base  # shares add up to one: so the curve is lowered by it
        noisy = gain * variance
        means = least.mean_variance(entries.variance(variance))
        both = np.einsum("mk,km->m", shares, least.average(entries.of(noisy)))
        among = np.einsum("kn,ln->kl", gain, noisy)
        of_offsets = (np.einsum("mk,kl->ml", shares, among) * shares).sum(axis=1)
        curve = np.maximum(means + 2 * both + of_offsets, 0.0)
        return np.diag(among).copy(), curve

    def _variances_of_sums(self, variance: Floats) -> tuple[Floats, Floats]:
        """Return them where slopes are integrated, by what one point at a time does."""
        cells, pieces = self.least.shares.shape
        curve = np.zeros(cells + 1)
        for start in range(0, len(variance), BLOCK):
            some = np.arange(start, min(start + BLOCK, len(variance)))
            rows = np.zeros((len(some), len(variance)))
            rows[some - start, some] = np.sqrt(variance[some])
            curve += (self(rows)[1] ** 2).sum(axis=0)
        return np.zeros(pieces), curve

    def variances_apart(
        self, overlap: _Overlap, gain: Floats, variance: Floats
    ) -> Floats:
        """Return those of differences, before and after alignment, (2, shared)."""
        alone = overlap.together(self.entries.variance(variance))
        between = gain[overlap.first] - gain[overlap.second]
        both = overlap.apart(self.entries.of(between * variance))
        of_offsets = (between**2 * variance).sum()
        return np.array([alone, alone + 2 * both + of_offsets])


def _overlaps(entries: Entries, weight: Floats) -> list[_Overlap]:
    """Return each two pieces that share points at which both have weight."""
    counts = weight > 0
    where = np.full((len(entries.grid), int(entries.piece[-1]) + 1), -1)
    where[entries.point[counts], entries.piece[counts]] = np.flatnonzero(counts)
    found = []
    for first, second in np.argwhere(np.triu(entries.shared(counts), 1)).tolist():
        both = (where[:, first] >= 0) & (where[:, second] >= 0)
        found.append(_Overlap(first, second, where[both, first], where[both, second]))
    return found


def _propagate(
    chain: _Chain, pieces: Sequence[Piece], overlaps: Sequence[_Overlap]
) -> tuple[Floats, Floats, list[Floats]]:
    """Return the standard errors of offsets, curve, and differences in overlaps.

    Of the curve that is the root of diag(A C A^T): given errors are independent, and
    replicates bring each a row of data that is as large as its share of the error.
    """
    variance = parts.variances(pieces)
    gain = chain.entries.back(chain.least.gain(), len(variance))
    offsets, curve = chain.variances(gain, variance)
    apart = [chain.variances_apart(overlap, gain, variance) for overlap in overlaps]
    for rows in parts.noise(pieces):
        row_offsets, row_curves = chain(rows)
        offsets = offsets + (row_offsets**2).sum(axis=0)
        curve = curve + (row_curves**2).sum(axis=0)
        values = chain.entries.of(rows)
        lifted = values + row_offsets[:, chain.entries.piece]
        for square, overlap in zip(apart, overlaps, strict=True):
            square[0] += overlap.together(values**2).sum(axis=0)
            square[1] += (overlap.apart(lifted) ** 2).sum(axis=0)
    none = 0.0 if parts.known(pieces) else math.nan
    errors = [np.sqrt(np.where(b > EXACT * a, b, 0.0)) + none for a, b in apart]
    return np.sqrt(offsets) + none, np.sqrt(curve) + none, errors


def _draw(
    chain: _Chain, pieces: Sequence[Piece], count: int, seed: int
) -> Floats | None:
    """Return the curves (count, grid) of resampled replicates; None without any."""
    resamples = parts.resample(pieces, count, seed, len(chain.entries.piece))
    if resamples is None:
        return None
    return np.concatenate([chain(rows)[1] for rows in resamples])


def _refuse_unknown(variance: Floats, points: Points, entries: Entries) -> Floats:
    """Return the variance by which to weigh, (entries,); ValueError where none is."""
    for entry in np.flatnonzero(~(variance > 0))[:1].tolist():
        piece = points.tell(int(entries.piece[entry]))
        if np.isnan(variance[entry]):
            text = f"{piece} has neither errors nor two or more replicates"
            raise ValueError(f"weights = 'variance' needs them, but {text}")
        where = f"at x = {entries.grid[entries.point[entry]]:.6g}"
        text = f"the replicates of {piece} are all alike {where}"
        raise ValueError(f"{text}, which is no variance to weigh by: give a taper")
    return variance


def _widths(points: Points, nodes: Entries, cells: Entries) -> Floats:
    """Return the width of all cells of a grid; ValueError where one has no slope."""
    for cell in np.setdiff1d(np.arange(len(cells.grid)), cells.point)[:1].tolist():
        low, high = nodes.grid[cell : cell + 2]
        names = [
            points.tell(int(nodes.piece[nodes.point == p][0])) for p in (cell, cell + 1)
        ]
        text = f"no piece has both x = {low:.6g} and {high:.6g}, so no slope leads"
        way = "let pieces share two points, or give interpolate=True"
        raise ValueError(f"{text} from {names[0]} to {names[1]}: {way}")
    return np.diff(nodes.grid)


def _find(
    x: Floats, at: float, tolerance: float, *, between: bool
) -> tuple[int, int, float]:
    """Return where a reference point is on a grid: two points, and a share between."""
    nearest = int(np.argmin(np.abs(x - at)))
    if abs(x[nearest] - at) <= tolerance:
        return nearest, nearest, 0.0
    if between and x[0] < at < x[-1]:
        high = int(np.searchsorted(x, at))
        return high - 1, high, float((at - x[high - 1]) / (x[high] - x[high - 1]))
    text = f"anchor x = {at:.6g} is no point of the joined curve"
    raise ValueError(f"{text}; the nearest is {x[nearest]:.17g}")


def _read_anchor(anchor: Anchor, *, used: bool) -> tuple[float | None, float]:
    """Return x, if any, and the offset or value there; ValueError where it is none."""
    if np.shape(anchor) not in ((), (2,)) or not np.isfinite(anchor).all():
        raise ValueError(f"anchor = {anchor} should be an offset, or (x, value)")
    *at, level = np.atleast_1d(anchor).tolist()
    if not used and (at or level):
        raise ValueError(f"anchor = {anchor} has no use where no offset is sought")
    return (at[0] if at else None), level


def _check_ways(*, aligned: bool, derivative: bool, integrate: bool) -> None:
    if integrate and not derivative:
        raise ValueError("integrate=True is for derivative=True")
    if aligned and derivative:
        raise ValueError("slopes have no offsets: aligned=True is not for them")


def _check_values(weights: Any, tolerance: float | None, bootstrap: int) -> None:
    if isinstance(weights, str) and weights != "variance":
        raise ValueError(f"weights = {weights!r} should be 'variance', or arrays")
    if tolerance is not None and not tolerance >= 0:
        raise ValueError(f"tolerance = {tolerance} should not be below 0")
    if bootstrap < 0 or bootstrap == 1:
        raise ValueError(f"bootstrap = {bootstrap} should be 0, or 2 or more")


def _check_links(
    pieces: Sequence[Piece], entries: Entries, weight: Floats, lay: partial[Entries]
) -> None:
    """Raise ValueError where pieces are not linked by points of some weight."""
    points = parts.lay_out(pieces)
    apart = find_apart(points, entries.shared(weight > 0))
    if apart is None:
        return
    names = " and ".join(points.tell(piece) for piece in apart)
    unknown = "so that nothing tells the offset between them"
    everything = lay(parts.lay_out(pieces, silent=True))
    shared = everything.shared(np.ones(len(everything.piece), dtype=bool))[apart]
    if shared:
        some = f"share points ({shared}), but none at which both have weight"
        raise ValueError(
            f"{names} {some}, {unknown}: give them some where they overlap"
        )
    (low, high), (begin, end) = (points.range(piece) for piece in apart)
    way = "let them overlap, or leave one out by credence 0"
    if begin <= high and low <= end and not lay.keywords["interpolate"]:
        way = "their grids differ: give interpolate=True, or a wider tolerance"
    raise ValueError(f"{names} share no point, {unknown}: {way}")


def _residuals(
    overlaps: Sequence[_Overlap],
    lifted: Floats,
    errors: Sequence[Floats],
    numbers: Sequence[int],
) -> tuple[Residual, ...]:
    """Return what is left between each two pieces, given what they say once aligned."""
    found = []
    for overlap, error in zip(overlaps, errors, strict=True):
        apart = overlap.apart(lifted)
        names = (numbers[overlap.first], numbers[overlap.second], len(apart))
        rms = math.sqrt((apart**2).mean())
        told = error > 0
        scaled = (
            math.sqrt(((apart / error)[told] ** 2).mean()) if told.any() else math.nan
        )
        found.append(Residual(*names, rms, scaled))
    return tuple(found)


def _scatter(values: Floats, numbers: Sequence[int], count: int) -> Floats:
    """Return values of pieces in the order in which those were given, (count,)."""
    found = np.full(count, np.nan)
    found[list(numbers)] = values
    return found
