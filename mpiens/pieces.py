"""Pieces of a curve as a user has them: checked, put in order, and their noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpiens.alignment import Entries, Points

BUDGET = 1 << 20  # numbers that are worked on at once

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """One piece: the points that it has, with x rising.

    ``x``, ``error``, ``weight`` and ``bridge`` (does it go on to its next point, or is
    there a hole) have shape (points,), ``rows`` has (replicates, points).  ``silent``
    are the x of points that it has but that have no weight.  Weights are times the
    piece's credence.
    """

    number: int
    x: Floats
    rows: Floats
    error: Floats | None
    weight: Floats
    bridge: NDArray[np.bool_]
    silent: Floats

    def key(self) -> tuple[float, float, bytes]:
        """Return what pieces are sorted by: their range, then all that they hold."""
        error = b"" if self.error is None else self.error.tobytes()
        arrays = (self.x, self.rows, self.weight)
        content = b"".join([*(array.tobytes() for array in arrays), error])
        return float(self.x[0]), float(self.x[-1]), content


def read_pieces(
    xs: Sequence[ArrayLike],
    ys: Sequence[ArrayLike],
    weights: Sequence[ArrayLike] | None,
    errors: float | Sequence[ArrayLike] | None,
    credences: Sequence[float] | None,
) -> list[Piece]:
    """Return the pieces that are not left out, sorted; ValueError where they are none.

    The arguments are those of ``mpiens.join``.
    """
    if len(xs) != len(ys):
        raise ValueError(f"there are {len(xs)} xs and {len(ys)} ys")
    count = len(xs)
    credence = _credences(credences, count)
    weight = _each("weights", 1.0 if weights is None else weights, count)
    error = _each("errors", errors, count)
    pieces = []
    for number in np.flatnonzero(credence).tolist():
        own = np.asarray(weight[number], dtype=float) * credence[number]
        pieces.append(_read(number, xs[number], ys[number], own, error[number]))
    if not pieces:
        raise ValueError("there is no piece with a credence above 0")
    return sorted(pieces, key=Piece.key)


def lay_out(pieces: Sequence[Piece], *, silent: bool = False) -> Points:
    """Return the points of all pieces, or also those that have no weight."""
    xs = [piece.x for piece in pieces]
    bridge = [piece.bridge for piece in pieces]
    if silent:
        xs = [np.sort(np.concatenate([piece.x, piece.silent])) for piece in pieces]
        bridge = [np.arange(len(x)) < len(x) - 1 for x in xs]
    return Points(
        np.repeat(np.arange(len(xs)), [len(x) for x in xs]),
        np.concatenate(xs),
        np.concatenate(bridge),
        tuple(piece.number for piece in pieces),
    )


def mean(pieces: Sequence[Piece]) -> Floats:
    """Return the data to be joined, (points,): means over replicates."""
    return np.concatenate([piece.rows.mean(axis=0) for piece in pieces])


def spread(pieces: Sequence[Piece], entries: Entries, *, levels: bool) -> Floats:
    """Return the variance of every entry (entries,); NaN where it is not known.

    With ``levels`` that of replicates is taken about a level of each replicate's own,
    since an offset takes it away.
    """
    found = np.full(len(entries.piece), np.nan)
    for index, (piece, own) in enumerate(zip(pieces, _slices(pieces), strict=True)):
        mine = entries.piece == index
        data = np.zeros((len(piece.rows), sum(len(p.x) for p in pieces)))
        if piece.error is not None:
            data[0, own] = piece.error**2
            found[mine] = entries.variance(data[0])[mine]
        elif len(piece.rows) > 1:
            data[:, own] = piece.rows
            found[mine] = _variance_of_mean(entries.of(data)[:, mine], levels=levels)
    return found


def known(pieces: Sequence[Piece]) -> bool:
    """Tell whether there is an error of every piece, given or by replicates."""
    return all(piece.error is not None or len(piece.rows) > 1 for piece in pieces)


def variances(pieces: Sequence[Piece]) -> Floats:
    """Return the given errors, squared, (points,); zero where there are replicates."""
    errors = (
        np.zeros(len(piece.x)) if piece.error is None else piece.error
        for piece in pieces
    )
    return np.concatenate(list(errors)) ** 2


def noise(pieces: Sequence[Piece]) -> Iterator[Floats]:
    """Yield rows (replicates, points) of data, each the size of an independent error.

    The covariance of the data of pieces with replicates is the sum of the outer
    products of all rows with themselves.
    """
    total = sum(len(piece.x) for piece in pieces)
    for piece, own in zip(pieces, _slices(pieces), strict=True):
        replicates = len(piece.rows)
        if replicates > 1:
            data = np.zeros((replicates, total))
            apart = piece.rows - piece.rows.mean(axis=0)
            data[:, own] = apart / np.sqrt(replicates * (replicates - 1))
            yield data


def resample(
    pieces: Sequence[Piece], count: int, seed: int, size: int
) -> Iterator[Floats] | None:
    """Yield ``count`` rows (rows, points) of data, means of replicates drawn at random.

    Of R replicates R - 1 are drawn, with replacement, so that the variance of their
    mean has no bias: P. J. McCarthy and C. B. Snowden, "The Bootstrap and Finite
    Population Sampling", Vital and Health Statistics 2 (95), 1985; J. N. K. Rao and
    C. F. J. Wu, J. Am. Stat. Assoc. 83, 231 (1988).  None where a piece has fewer
    than two.
    """
    if count and all(len(piece.rows) > 1 for piece in pieces):
        return _resample(pieces, count, seed, max(1, BUDGET // size))
    return None


def _resample(
    pieces: Sequence[Piece], count: int, seed: int, block: int
) -> Iterator[Floats]:
    generators = np.random.default_rng(seed).spawn(len(pieces))
    for start in range(0, count, block):
        parts = []
        for piece, rng in zip(pieces, generators, strict=True):
            replicates = len(piece.rows)
            even = np.full(replicates, 1 / replicates)
            size = min(block, count - start)
            times = rng.multinomial(replicates - 1, even, size=size)
            shares = times / (replicates - 1)
            parts.append(np.einsum("br,rn->bn", shares, piece.rows))
        yield np.concatenate(parts, axis=1)


def _slices(pieces: Sequence[Piece]) -> list[slice]:
    ends = np.cumsum([len(piece.x) for piece in pieces]).tolist()
    return [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]


def _variance_of_mean(values: Floats, *, levels: bool) -> Floats:
    """Return the variance of the mean of (replicates, entries), over replicates.

    About a level of each row, n / (n - 1) makes good what fitting it takes away: of
    entries that are independent and of like variance, all of it.
    """
    replicates, count = values.shape
    if not levels or count == 1:
        return np.asarray(values.var(axis=0, ddof=1) / replicates)
    apart = values - values.mean(axis=1, keepdims=True)
    fair = count / (count - 1)
    return np.asarray(apart.var(axis=0, ddof=1) / replicates * fair)


def _read(
    number: int,
    x: ArrayLike,
    y: ArrayLike,
    weight: Floats,
    error: ArrayLike | None,
) -> Piece:
    abscissa = np.asarray(x, dtype=float)
    if abscissa.ndim != 1 or not np.isfinite(abscissa).all():
        raise ValueError(f"x of piece {number} should be one row of finite numbers")
    rows = np.atleast_2d(np.asarray(y, dtype=float))
    if rows.ndim != 2 or rows.shape[1] != len(abscissa):
        shape = f"of shape {np.shape(y)} where x has {len(abscissa)} points"
        raise ValueError(f"y of piece {number} is {shape}")
    if error is not None and np.ndim(y) > 1:
        text = "replicates have errors of their own: give either them or errors"
        raise ValueError(f"piece {number}: {text}")
    order = np.argsort(abscissa, kind="stable")
    abscissa, rows = abscissa[order], rows[:, order]
    rows = rows[~np.isnan(rows).all(axis=1)]
    if np.isinf(rows).any():
        infinite = abscissa[np.isinf(rows).any(axis=0)][0]
        text = f"is infinite at x = {infinite:.6g}: NaN is for a point that it lacks"
        raise ValueError(f"piece {number} {text}")
    present = ~np.isnan(rows).any(axis=0)
    _refuse_empty(number, rows, present)
    weights = _row(number, "weights", weight, order)
    errors = None if error is None else _row(number, "errors", error, order)
    if not (np.isfinite(weights) & (weights >= 0))[present].all():
        raise ValueError(f"weights of piece {number} should be finite, and not below 0")
    if errors is not None and not (np.isfinite(errors) & (errors > 0))[present].all():
        raise ValueError(f"errors of piece {number} should be finite, and above 0")
    kept = present & (weights > 0)
    if not kept.any():
        raise ValueError(f"piece {number} has no weight: leave it out by credence 0")
    return Piece(
        number,
        abscissa[kept],
        np.ascontiguousarray(rows[:, kept]),
        None if errors is None else errors[kept],
        weights[kept],
        np.append(np.diff(np.flatnonzero(kept)) == 1, [False]),
        abscissa[present & ~kept],
    )


def _refuse_empty(number: int, rows: Floats, present: NDArray[np.bool_]) -> None:
    if len(rows) == 0:
        raise ValueError(f"piece {number} has no number: leave it out by credence 0")
    if not present.any():
        way = "give its replicates as pieces of their own"
        raise ValueError(f"piece {number} has no point in all its replicates: {way}")


def _row(number: int, name: str, values: ArrayLike, order: NDArray[np.int64]) -> Floats:
    found = np.asarray(values, dtype=float)
    if found.shape not in ((), (len(order),)):
        shape = f"of shape {found.shape} where x has {len(order)} points"
        raise ValueError(f"{name} of piece {number} are {shape}")
    return np.broadcast_to(found, (len(order),))[order]


def _each(name: str, values: Any, count: int) -> list[Any]:
    """Return what each piece has of something: one for all, or one for each."""
    if values is None or np.isscalar(values):
        return [values] * count
    if len(values) != count:
        raise ValueError(f"there are {len(values)} {name} for {count} pieces")
    return list(values)


def _credences(credences: Sequence[float] | None, count: int) -> list[float]:
    if credences is None:
        return [1.0] * count
    found = [float(value) for value in credences]
    if len(found) != count:
        raise ValueError(f"there are {len(found)} credences for {count} pieces")
    for number, value in enumerate(found):
        if not 0 <= value <= 1:
            raise ValueError(f"credence {value} of piece {number} is not in [0, 1]")
    return found
