"""What was observed: one column of a CSV file, and where it lies in an output."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpiens.fault import Fault, SpecError, nearest, shorten

Floats = NDArray[np.float64]
Lines = list[tuple[int, list[str]]]

TOLERANCE = 1e-6
"""How far an index may lie from its coordinate, in spacings of the coordinate: far more
than what writing decimals loses, and far less than what tells two points apart.
"""

_MISSING = ("", "na", "nan")  # as spreadsheets, R and pandas leave a cell


@dataclass(frozen=True, eq=False)
class Observed:
    """An observed series (points,): where each value lies, and the value.

    Both in the order of the file; a value that is missing there is NaN.
    """

    index: Floats
    values: Floats


def read_observed(path: Path, index: str, column: str) -> Observed:
    """Return one column of a CSV file with the column that says where its values lie.

    Lines without any cell are left out, and cells that are empty, NA or NaN are
    missing values.  Raises SpecError with all faults of the file; the place of each is
    the key of a target that is to be mended: ``data``, ``index`` or ``column``.
    """
    header, lines = _read_lines(path)
    faults = [
        Fault(key, f"{path.name} has no column {name!r}{_hint(name, header)}")
        for key, name in (("index", index), ("column", column))
        if name not in header
    ]
    if faults:
        raise SpecError(faults)
    where, what = header.index(index), header.index(column)
    seen: dict[float, int] = {}
    values = []
    for number, cells in lines:
        try:
            place = _to_number(cells[where], index, missing=False)
            if place in seen:
                text = f"{index} {place:.12g} stands in line {seen[place]} already"
                raise ValueError(f"{text}; keep one of them")
            value = _to_number(cells[what], column, missing=True)
        except ValueError as error:
            faults.append(Fault("data", f"{path.name}, line {number}: {error}"))
            continue
        seen[place] = number
        values.append(value)
    if not faults and all(map(math.isnan, values)):
        text = f"{path.name} has no value in column {column!r}; choose another"
        faults.append(Fault("column", text))
    if faults:
        raise SpecError(shorten(faults))
    return Observed(np.array([*seen], dtype=float), np.array(values, dtype=float))


def align(observed: Observed, coordinate: NDArray[np.number]) -> NDArray[np.intp]:
    """Return where in an output's coordinate (steps,) each observed value lies.

    An index matches a coordinate that is no further away than TOLERANCE times the
    least spacing.  Raises ValueError where one has none, whether or not its value is
    missing.
    """
    steps = np.asarray(coordinate, dtype=float)
    if steps.size == 0:
        raise ValueError("the output has no point to compare with what was observed")
    order = np.argsort(steps, kind="stable")
    ordered = steps[order]
    gaps = np.diff(ordered)
    # one point alone has no spacing; then its own magnitude is the scale
    scale = gaps[gaps > 0].min(initial=np.inf)
    scale = scale if np.isfinite(scale) else max(1.0, abs(float(ordered[0])))
    above = np.searchsorted(ordered, observed.index).clip(0, len(ordered) - 1)
    below = (above - 1).clip(0)
    low, high = (abs(ordered[at] - observed.index) for at in (below, above))
    found = np.where(low <= high, below, above)
    off = np.minimum(low, high) > TOLERANCE * scale
    if off.any():
        first = observed.index[off.argmax()]
        span = f"from {ordered[0]:.12g} to {ordered[-1]:.12g} in {len(steps)} points"
        raise ValueError(
            f"what was observed at {first:.12g} has no match in the output, which goes "
            f"{span}; let the output reach it, or drop it from the data"
        )
    return np.asarray(order[found], dtype=np.intp)


def _read_lines(path: Path) -> tuple[list[str], Lines]:
    """Return the header and the lines of a CSV file; SpecError with its faults."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a mark first
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SpecError([Fault("data", f"{path} cannot be read: {reason}")]) from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        lines = [
            (reader.line_num, [cell.strip() for cell in cells])
            for cells in reader
            if any(cells)
        ]
    except csv.Error as error:
        fault = Fault("data", f"{path.name}, line {reader.line_num}: no CSV: {error}")
        raise SpecError([fault]) from error
    if len(lines) < 2:
        wanted = "it wants a line of names, and lines of numbers"
        raise SpecError([Fault("data", f"{path.name} has no data; {wanted}")])
    (_, header), *rest = lines
    faults = [
        Fault("data", f"{path.name} has column {name!r} twice; rename or drop one")
        for name in dict.fromkeys(header)
        if name and header.count(name) > 1
    ]
    for number, cells in rest:
        if len(cells) != len(header):
            told = f"has {len(cells)} cells, and there are {len(header)} columns"
            faults.append(Fault("data", f"{path.name}, line {number}: {told}"))
    if faults:
        raise SpecError(shorten(faults))
    return header, rest


def _to_number(cell: str, column: str, *, missing: bool) -> float:
    """Return a cell's number, NaN where it may be missing; ValueError with a fault."""
    if cell.lower() in _MISSING:
        if missing:
            return math.nan
        raise ValueError(f"column {column} is empty; fill it in, or drop the line")
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        out = "correct it, or leave the cell empty" if missing else "correct it"
        raise ValueError(f"{cell!r} in column {column} is no finite number; {out}")
    return value


def _hint(name: str, header: list[str]) -> str:
    """Return the nearest column, or else all there are."""
    return nearest(name, header) or f"; it has {', '.join(filter(None, header))}"
