"""Outputs of windows, or of scenarios, joined to curves once all tasks are finished.

The root does that alone, from the rows in the file and in the order of scenarios: the
answer does not depend on who has run what.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens.child import ChildDied, ask_child
from mpiens.curves import Join
from mpiens.deadline import Look
from mpiens.joining import TOLERANCE, Joined, join
from mpiens.layout import DONE, JOINED, Joint
from mpiens.spec import Group, Step
from mpiens.store import Store

Floats = NDArray[np.float64]
Piece = tuple[Floats, Floats]


def join_curves(file: Store, look: Look) -> dict[str, Any]:
    """Join what the spec wants joined, put it into the file, say how it went.

    What cannot be joined has NaN, or is not in the file where no curve of an output
    could be; why is told in the table of failures.
    """
    spec = file.layout.spec
    file.forget_steps(spec.step(Step.JOIN, 0))
    reasons: dict[Group, list[str]] = {}
    joints: list[Joint] = []
    made: dict[str, NDArray[Any]] = {}
    for name, section in spec.join.items():
        curves: list[Joined | None] = []
        for curve in spec.curves:
            joined, reason = _attempt(file, name, section, curve, look)
            curves.append(joined)
            if reason:
                reasons.setdefault(curve, []).append(f"{name}: {reason}")
        if (joint := _measure(name, curves)) is not None:
            joints.append(joint)
            arrays = _stack(joint, curves, file.layout.curve_shape)
            made |= {f"/joined/{name}/{key}": array for key, array in arrays.items()}
    for curve, texts in reasons.items():
        number = spec.step(Step.JOIN, curve.scenarios[0])
        file.write_failure(number, "\n".join(texts))
    file.extend(dataclasses.replace(file.layout, joints=tuple(joints)), made)
    return {"curves_failed": sum(map(len, reasons.values()))}


def _attempt(
    file: Store, name: str, section: Join, curve: Group, look: Look
) -> tuple[Joined | None, str]:
    """Return a joined curve, or why there is none.

    That takes a child: the root hears the other ranks and the clock meanwhile.
    """

    def answer() -> tuple[Joined | None, str]:
        try:
            joined = _join(file, name, section, curve)
        except (ValueError, ImportError) as error:
            return None, str(error)
        return dataclasses.replace(joined, draws=None), ""

    try:
        made: tuple[Joined | None, str] = ask_child(answer, look)
    except ChildDied as news:
        how = f"exit code {news.code}" if news.code > 0 else f"signal {-news.code}"
        return None, f"joining ended with {how}; is there memory enough?"
    return made


def _join(file: Store, name: str, section: Join, curve: Group) -> Joined:
    """Join one curve; ValueError where that cannot be.  Credence 0 leaves one out."""
    spec = file.layout.spec
    options = section.options(spec.pieces)
    nothing = np.zeros(0), np.zeros((0, 0))
    pieces = [
        _read_piece(file, name, section, scenario) if credence else nothing
        for scenario, credence in zip(
            curve.scenarios, options["credences"], strict=True
        )
    ]
    xs, ys = zip(*pieces, strict=True)
    return join(xs, ys, seed=spec.ensemble.seed, **options)


def _read_piece(file: Store, name: str, section: Join, scenario: int) -> Piece:
    """Return x (points,) and replicates (replicates, points) of a scenario's output.

    Where replicates have different points these are all that any has; NaN stands where
    one lacks one.  Raises ValueError where there is nothing.
    """
    spec = file.layout.spec
    done = np.flatnonzero(file.status.reshape(file.layout.by_task)[scenario] == DONE)
    if not len(done):
        text = f"scenario {spec.scenarios[scenario].name!r} has no replicate that is"
        raise ValueError(f"{text} done, so that a piece is missing")
    ys = _read_rows(file, name, scenario, done)
    if section.x is None:
        xs = [np.arange(len(y), dtype=float) for y in ys]
    else:
        xs = _read_rows(file, section.x, scenario, done)
    for replicate, x, y in zip(done.tolist(), xs, ys, strict=True):
        if len(x) != len(y):
            where = f"{spec.scenarios[scenario].name!r}, replicate {replicate}"
            text = f"has {len(y)} values and {len(x)} of {section.x}"
            raise ValueError(f"scenario {where} {text}: one is needed for each")
    return _align(xs, ys, section.tolerance)


def _read_rows(
    file: Store, name: str, scenario: int, replicates: NDArray[np.int64]
) -> list[Floats]:
    """Return an output of some replicates, each as long as it was returned."""
    rows = file.read_scenario(f"/series/{name}", scenario)[replicates].astype(float)
    if not file.layout.output(name).ragged:
        return [*rows]
    lengths = file.read_scenario(f"/series/{name}.length", scenario)[replicates]
    return [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]


def _align(
    xs: Sequence[Floats], ys: Sequence[Floats], tolerance: float | None
) -> Piece:
    """Lay replicates on the points that any of them has; (points,), (rows, points).

    Points are one where they differ by at most the tolerance, by default as in
    ``mpiens.join``.  Raises ValueError where two of one replicate become one.
    """
    present = [np.isfinite(x) for x in xs]
    xs = [x[own] for x, own in zip(xs, present, strict=True)]
    ys = [y[own] for y, own in zip(ys, present, strict=True)]
    every = np.sort(np.concatenate(xs))
    if tolerance is None:
        steps = [np.diff(np.sort(x)).min(initial=np.inf) for x in xs]
        smallest = min(steps)
        tolerance = TOLERANCE * smallest if math.isfinite(smallest) else 0.0
    grid = every[np.diff(every, prepend=-np.inf) > tolerance]
    rows = np.full((len(ys), len(grid)), np.nan)
    for row, x, y in zip(rows, xs, ys, strict=True):
        where = np.searchsorted(grid, x, side="right") - 1
        if len(np.unique(where)) < len(where):
            text = "a replicate has two points at one x, or nearer than the tolerance"
            raise ValueError(f"{text} {tolerance:.3g}")
        row[where] = y
    return grid, rows


def _measure(name: str, curves: Sequence[Joined | None]) -> Joint | None:
    """Return how large the arrays are that hold all curves; None where is none."""
    there = [curve for curve in curves if curve is not None]
    if not there:
        return None
    points = max(len(curve.x) for curve in there)
    return Joint(name, points, max(len(curve.residuals) for curve in there))


def _stack(
    joint: Joint,
    curves: Sequence[Joined | None],
    shape: tuple[tuple[int, ...], int],
) -> dict[str, NDArray[Any]]:
    """Return the arrays of the file, with what stands for nothing where it is."""
    several, pieces = shape
    sizes = {
        ("{}_point",): (joint.points,),
        ("piece",): (pieces,),
        ("{}_overlap",): (joint.overlaps,),
        ("{}_overlap", "side"): (joint.overlaps, 2),
    }
    whole: dict[str, NDArray[Any]] = {}
    for key, member in JOINED.items():
        size = (len(curves), *sizes[member.dims])
        whole[key] = np.full(size, member.fill, member.dtype)
        for index, curve in enumerate(curves):
            if curve is not None:
                values = _collect(curve)[key]
                part = tuple(slice(size) for size in values.shape)
                whole[key][index][part] = values
    if not several:
        whole = {key: array[0] for key, array in whole.items()}
    return whole


def _collect(joined: Joined) -> dict[str, NDArray[Any]]:
    """Return what was joined by the names that it has in the file."""
    residuals = joined.residuals
    none = np.full(len(joined.x), np.nan)
    boot = joined.bootstrap_error
    pairs = [sorted((own.first, own.second)) for own in residuals]
    return {
        "x": joined.x,
        "y": joined.y,
        "error": joined.error,
        "bootstrap_error": none if boot is None else boot,
        "count": joined.count,
        "offset": joined.offsets,
        "offset_error": joined.offset_errors,
        "residuals/pair": np.array(pairs, dtype=np.int64).reshape(-1, 2),
        "residuals/points": np.array([own.points for own in residuals], np.int64),
        "residuals/rms": np.array([own.rms for own in residuals], float),
        "residuals/scaled": np.array([own.scaled for own in residuals], float),
    }


@dataclass(frozen=True)
class Verdict:
    """What is said of one joined curve.

    ``worst`` is the largest residual of an overlap in units of its standard error, or
    where none is known the largest root mean square, and ``pair`` the pieces it is of.
    """

    output: str
    curve: str | None
    along: str
    points: int
    low: float
    high: float
    error: float
    worst: float | None
    pair: tuple[str, str] | None
    scaled: bool

    def __str__(self) -> str:
        what = f"joined {self.output}" + (f" of {self.curve}" if self.curve else "")
        if not self.points:
            return f"{what}: nothing, see the failures"
        error = "unknown" if math.isnan(self.error) else f"{self.error:.3g}"
        text = f"{what}: {self.points:,} points, {self.along} from {self.low:g} to "
        text += f"{self.high:g}, largest error {error}"
        if self.pair is None:
            return text
        unit = "times its error" if self.scaled else "(root mean square)"
        return (
            f"{text}, worst residual {self.worst:.3g} {unit}, {' and '.join(self.pair)}"
        )


def judge(file: Store) -> Iterator[Verdict]:
    """Yield what is to be said of every joined curve of a file."""
    layout = file.layout
    several, _ = layout.curve_shape
    for joint in layout.joints:
        keys = [k for k in JOINED if f"/joined/{joint.name}/{k}" in file]
        arrays = {key: file.read(f"/joined/{joint.name}/{key}") for key in keys}
        for index, curve in enumerate(layout.spec.curves):
            own = {k: array[index] if several else array for k, array in arrays.items()}
            yield _judge(file, joint.name, curve, own, bool(several))


def _judge(
    file: Store, name: str, curve: Group, own: dict[str, NDArray[Any]], told: bool
) -> Verdict:
    spec = file.layout.spec
    there = np.isfinite(own["x"])
    worst, pair, scaled = None, None, False
    if "residuals/rms" in own and (own["residuals/points"] > 0).any():
        scaled = bool(np.isfinite(own["residuals/scaled"]).any())
        values = own["residuals/scaled" if scaled else "residuals/rms"]
        index = int(np.nanargmax(values))
        one, other = own["residuals/pair"][index].tolist()
        worst, pair = float(values[index]), (spec.pieces[one], spec.pieces[other])
    x, error = own["x"][there], own["error"][there]
    known = np.isfinite(error).any()
    along = spec.windows.parameter if spec.windows else spec.join[name].x or "x"
    return Verdict(
        output=name,
        curve=curve.name if told else None,
        along=along,
        points=int(there.sum()),
        low=float(x[0]) if len(x) else math.nan,
        high=float(x[-1]) if len(x) else math.nan,
        error=float(np.nanmax(error)) if known else math.nan,
        worst=worst,
        pair=pair,
        scaled=scaled,
    )
