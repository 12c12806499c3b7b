"""Designs: points of the inputs that are sampled from ranges or listed in a file."""

from __future__ import annotations

import dataclasses
import math
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from annotated_types import Ge, Le

from mpiens.fault import Fault, SpecError, place

if TYPE_CHECKING:
    from numpy.random import Generator
    from numpy.typing import NDArray

Columns = Mapping[str, tuple[Any, ...]]
POINT = "sample"  # what a sampled point is named by: sample=17
SALTELLI = "saltelli"  # the method whose points come in blocks
_STRICT = {"extra": "forbid", "strict": True}
_MOST_SAMPLES = 2**24
_FARTHEST = sys.float_info.max / 2  # so that a range has a width
_FARTHEST_INTEGER = 2**53  # beyond, floats leave integers out


@dataclass(frozen=True)
class Range:
    """Where a parameter of a sampled design may lie: between two ends, or choices."""

    __pydantic_config__ = _STRICT
    low: int | float | None = None
    """Lower end."""
    high: int | float | None = None
    """Upper end."""
    scale: Literal["linear", "log", "logit"] = "linear"
    """On what it is spread evenly."""
    integer: bool = False
    """`true`: integers only, both ends included."""
    choices: tuple[Any, ...] | None = None
    """Or values to choose from, of any type."""

    def faults(self, section: str) -> Iterator[Fault]:
        """Yield what is wrong with the range; ``section`` is what it stands in."""
        whole = "integer = true" if self.integer else None
        if self.choices is None:
            yield from check_ends(section, self.low, self.high, self.scale, whole)
            return
        given = [key for key in ("low", "high") if getattr(self, key) is not None]
        given += ["scale"] * (self.scale != "linear") + ["integer"] * self.integer
        yield from check_choices(section, self.choices, given)

    def value(self, unit: float) -> Any:
        """Return the value at a share of the way, from 0 up to and without 1.

        Each number is made by itself, without numpy, whose vectors may round otherwise
        than its scalars: so a point is the same whatever the number of samples.
        """
        if self.choices is not None:
            return self.choices[_pick(unit, len(self.choices))]
        low, high = self._ends
        if not self.integer:
            return min(max(self._stretch(unit, low, high), low), high)
        first, last = int(low), int(high)
        if self.scale == "linear":
            return first + _pick(unit, last - first + 1)
        nearest = round(self._stretch(unit, low - 0.5, high + 0.5))
        return min(max(nearest, first), last)

    def describe(self) -> str:
        """Return the range as one reads it aloud."""
        if self.choices is not None:
            return ", ".join(str(choice) for choice in self.choices)
        scale = f", {self.scale}" if self.scale != "linear" else ""
        return f"{self.low} to {self.high}{scale}{', integers' * self.integer}"

    @property
    def _ends(self) -> tuple[float, float]:
        if self.low is None or self.high is None:
            raise ValueError("a range of choices has no ends")
        return float(self.low), float(self.high)

    def _stretch(self, unit: float, low: float, high: float) -> float:
        """Return the value at a share of the way on the range's scale."""
        match self.scale:
            case "log":
                first, last = math.log(low), math.log(high)
                return math.exp(first + unit * (last - first))
            case "logit":
                first, last = _logit(low), _logit(high)
                return 1 / (1 + math.exp(-(first + unit * (last - first))))
            case _:
                return low + unit * (high - low)


def check_choices(
    section: str, choices: Sequence[Any], beside: Sequence[str]
) -> Iterator[Fault]:
    """Yield what is wrong with choices; ``beside`` are the keys given with them."""
    for key in beside:
        yield Fault(place(section, key), "cannot go with choices; drop either")
    if not choices:
        way = 'give values, such as ["open", "closed"]'
        yield Fault(place(section, "choices"), f"is empty; {way}")


def check_ends(
    section: str,
    low: float | None,
    high: float | None,
    scale: str,
    whole: str | None,
) -> Iterator[Fault]:
    """Yield what is wrong with a range; ``whole`` is what asks for integers, if so."""
    sound = True
    for key, end in (("low", low), ("high", high)):
        if (text := _judge_end(key, end, scale, whole)) is not None:
            yield Fault(place(section, key), text)
            sound = False
    if sound and low is not None and high is not None and not low < high:
        text = f"{low} is not below high = {high}; a range rises"
        yield Fault(place(section, "low"), text)


def _judge_end(
    key: str, end: float | None, scale: str, whole: str | None
) -> str | None:
    """Return what is wrong with one end, if anything is."""
    if end is None:
        return "is missing; a range has low and high, or choices"
    farthest = _FARTHEST_INTEGER if whole else _FARTHEST
    if not abs(end) <= farthest:
        return f"{end} is no end of a range; give one up to {farthest:.3g}"
    if whole and end != int(end):
        return f"{end} is no integer, and {whole} wants such ends"
    if scale == "log" and key == "low" and end <= 0:
        return f'{end} has no logarithm; scale = "log" needs low above 0'
    if scale == "logit" and not 0 < end < 1:
        return f'{end} has no logit; scale = "logit" needs ends within 0 and 1'
    return None


@dataclass(frozen=True)
class Design:
    """Points of the inputs, each with a value of every parameter of the design.

    ``points`` has one tuple per parameter, all of the same length; ``labels`` names
    the points, where a file does.  Of method saltelli each sample is a block of points.
    """

    __pydantic_config__ = _STRICT
    method: Literal["lhs", "sobol", "halton", "saltelli", "csv"]
    """How points are spread: Latin hypercube, Sobol, Halton; `saltelli` for blocks of
    points that tell indices of variance; or `csv`, from a file.
    """
    samples: Annotated[int, Ge(1), Le(_MOST_SAMPLES)] | None = None
    """How many; a `saltelli` design has (parameters + 2) points each. Powers of 2 are
    most even, and but for `lhs` points stay where they are when there are more.
    """
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Where each parameter may lie: `ranges.NAME`."""
    file: str | None = None
    """Of method `csv`: a row per point."""
    columns: tuple[str, ...] | None = None
    """Which of its columns are parameters; by default all but `scenario`, which names
    points.
    """
    labels: tuple[str, ...] | None = None
    """Names of points, where the spec is that of a result file."""
    points: Columns = field(default_factory=dict)
    """The points, where the spec is that of a result file."""

    @property
    def sampled(self) -> bool:
        """Whether the points come from ranges, and not from a file."""
        return self.method != "csv"

    @property
    def block(self) -> int:
        """How many points a sample has."""
        return len(self.ranges) + 2 if self.method == SALTELLI else 1

    def place(self, name: str) -> str:
        """Return the place of one of its parameters."""
        if self.sampled:
            return place(f"design.ranges.{name}")
        return place("design", "file", name)

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with what the user says of the design."""
        wanted: dict[str, Any] = {
            "samples": self.samples,
            "ranges": self.ranges or None,
        }
        strange: dict[str, Any] = {"file": self.file, "columns": self.columns}
        if not self.sampled:
            strange, wanted = wanted, {"file": self.file}
        ways = {
            "samples": "say how many points, such as samples = 256",
            "ranges": "give each parameter one, such as "
            "ranges.beta = { low = 0.1, high = 2.0 }",
            "file": 'name it, such as file = "points.csv"',
        }
        for key, value in wanted.items():
            if value is None:
                text = f"is missing, and method = {self.method!r} needs it; {ways[key]}"
                yield Fault(place("design", key), text)
        for key, value in strange.items():
            if value is not None:
                text = f"does not go with method = {self.method!r}; leave it out"
                yield Fault(place("design", key), text)
        for name, own in self.ranges.items():
            yield from own.faults(f"design.ranges.{name}")
        yield from self._check_points()

    def describe(self) -> Iterator[str]:
        """Yield what ``mpiens check`` says of it, a line for each thing to know."""
        count = len(next(iter(self.points.values())))
        if self.sampled:
            points = f", {count:,} points" if self.block > 1 else ""
            yield f"design {self.method}: {self.samples or 0:,} samples{points}"
        else:
            yield f"design {self.file}: {count:,} points of {', '.join(self.points)}"
        for name, own in self.ranges.items():
            yield f"range {name}: {own.describe()}"

    def document(self) -> dict[str, Any]:
        """Return the design as the user writes it, and its points."""
        keys = ("method", "samples", "file", "columns", "labels")
        parts = {key: getattr(self, key) for key in keys}
        parts["ranges"] = {
            name: {k: v for k, v in vars(own).items() if v is not None}
            for name, own in self.ranges.items()
        }
        parts["points"] = dict(self.points)
        return {key: part for key, part in parts.items() if part}

    def _check_points(self) -> Iterator[Fault]:
        """Yield where points that are written out are not those of the rest."""
        if not self.points:
            return
        where = place("design", "points")
        sizes = {len(column) for column in self.points.values()}
        if self.sampled:
            sizes.add(self.block * (self.samples or 0))
        if self.labels is not None:
            sizes.add(len(self.labels))
        names = self.ranges if self.sampled else self.points
        if len(sizes) > 1 or 0 in sizes or self.points.keys() != names.keys():
            text = "are not those of the design; leave points out to have them made"
            yield Fault(where, text)


def sample(design: Design, seed: int) -> Design:
    """Return a design with its points: always the same for the same seed.

    Sobol, Halton and Saltelli designs go on where fewer samples end; an LHS is made
    anew.  Raises SpecError where what it takes is not installed.
    """
    import numpy as np  # noqa: PLC0415  (heavy, and wanted by the root alone)

    samples, count = design.samples or 0, len(design.ranges)
    make = _cross if design.method == SALTELLI else _spread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a power of 2 would be more even
        units = make(design.method, count, samples, np.random.default_rng(seed))
    points = {
        name: tuple(map(own.value, column.tolist()))
        for (name, own), column in zip(design.ranges.items(), units.T, strict=True)
    }
    return dataclasses.replace(design, points=points)


def describe_cube(count: int) -> dict[str, Any]:
    """Return the unit cube of so many parameters as SALib wants it described."""
    names = [*map(str, range(count))]
    return {"num_vars": count, "names": names, "bounds": [[0, 1]] * count}


def _spread(method: str, count: int, samples: int, rng: Generator) -> NDArray[Any]:
    """Return points of the unit cube, (samples, count), all alike."""
    from scipy.stats import qmc  # noqa: PLC0415

    kinds = {"lhs": qmc.LatinHypercube, "sobol": qmc.Sobol, "halton": qmc.Halton}
    points: NDArray[Any] = kinds[method](count, rng=rng).random(samples)
    return points


def _cross(method: str, count: int, samples: int, rng: Generator) -> NDArray[Any]:
    """Return blocks of points of the unit cube, (samples * (count + 2), count).

    A block is a point of A, then for each parameter the same point with that parameter
    from B, then the point of B (Saltelli, Computer Physics Communications 145, 2002).
    """
    try:
        from SALib.sample import sobol  # noqa: PLC0415
    except ImportError as error:
        way = 'install it by pip install "mpiens[sensitivity]"'
        text = f"{method!r} needs SALib; {way} ({error})"
        raise SpecError([Fault(place("design", "method"), text)]) from error
    cube = describe_cube(count)
    points: NDArray[Any] = sobol.sample(
        cube, samples, calc_second_order=False, seed=rng
    )
    return points


def _pick(unit: float, count: int) -> int:
    """Return an index below count, each of them equally likely."""
    return min(int(unit * count), count - 1)


def _logit(share: float) -> float:
    return math.log(share / (1 - share))
