"""The result file as data: names, dimensions, shapes and types of all it holds.

Nothing here touches a file.  A :class:`Row` says what one task leaves, a
:class:`Layout` what the whole file holds, and :func:`Layout.datasets` lists every
dataset in the order in which it is laid down.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpiens.spec import Spec, to_text

PENDING, DONE, FAILED, UNUSED = range(4)
STATUS = ("pending", "done", "failed", "unused")

FAILURES = 1000  # failures kept with their text
FAILURE_BYTES = 8192

RECORD = np.dtype(
    [("task", "<i8"), ("checksum", "<u8"), ("seconds", "<f8"), ("attempts", "<u2")]
)
"""What is known of one finished task, beside its row."""

Described = Mapping[str, tuple[tuple[int, ...], str]]
"""Output name to (shape, dtype), as the first task that succeeded returned it."""


class OutputError(ValueError):
    """A model returned something that its spec or its first task rules out."""


@dataclass(frozen=True)
class Output:
    """One named array of a task, as it is stored."""

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    padded: bool = False  # shorter rows are filled up with NaN
    boolean: bool = False  # stored as int8, as netCDF has no booleans
    keep: bool = True
    units: str | None = None
    summaries: tuple[str, ...] = ()

    @property
    def fill(self) -> Any:
        """The value of a place that no model has filled."""
        kind = np.dtype(self.dtype)
        if kind.kind == "f":
            return kind.type(np.nan)
        limits = np.iinfo(kind)
        return kind.type(limits.max if kind.kind == "u" else limits.min)

    def cast(self, value: Any) -> NDArray[Any]:
        """Return the value as stored; OutputError where shape or type forbid it."""
        given = to_array(self.name, value)
        stored = np.dtype(self.dtype)
        if not (
            np.can_cast(given.dtype, stored, "same_kind")
            or (self.boolean and given.dtype == bool)
        ):
            raise OutputError(
                f"output {self.name!r} is of type {given.dtype} here and of type "
                f"{'bool' if self.boolean else stored} in the file"
            )
        if given.shape == self.shape:
            return given.astype(stored, copy=False)
        if self.padded and self._fits(given.shape):
            row = np.full(self.shape, self.fill, dtype=stored)
            row[: given.shape[0]] = given
            return row
        raise OutputError(
            f"output {self.name!r} has shape {given.shape} here and shape "
            f"{self.shape} in the file"
            + ("" if self.padded else "; where lengths differ, give [outputs] a length")
        )

    def _fits(self, shape: tuple[int, ...]) -> bool:
        return (
            len(shape) == len(self.shape)
            and shape[0] <= self.shape[0]
            and shape[1:] == self.shape[1:]
        )


@dataclass(frozen=True)
class Row:
    """What one task leaves: its outputs, side by side in memory."""

    outputs: tuple[Output, ...]

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The structured type of one row; packed, so that its bytes are the data."""
        return np.dtype([(o.name, o.dtype, o.shape) for o in self.outputs])

    def fill(self, row: Any, returned: Mapping[str, Any]) -> None:
        """Put a model's outputs into one row; OutputError where one is wrong."""
        if not isinstance(returned, Mapping):
            raise OutputError(
                "the model should return a mapping of output names to numbers, not "
                f"{type(returned).__name__}; [ensemble] reduce can make one of it"
            )
        if foreign := returned.keys() ^ {o.name for o in self.outputs}:
            name = sorted(map(str, foreign))[0]
            known = ", ".join(o.name for o in self.outputs)
            what = "is in no earlier task" if name in returned else "is missing"
            raise OutputError(f"output {name!r} {what}; the file holds {known}")
        for output in self.outputs:
            row[output.name] = output.cast(returned[output.name])


def as_bytes(array: NDArray[Any]) -> memoryview:
    """Return the memory of a contiguous array, of whatever type, as bytes."""
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


def checksum(row: bytes | memoryview) -> int:
    """Return the first 8 bytes, little-endian, of the SHA-256 of a row's bytes."""
    return int.from_bytes(hashlib.sha256(row).digest()[:8], "little")


def to_array(name: str, value: Any) -> NDArray[Any]:
    """Return a model's output as a numeric array; OutputError where it is none."""
    try:
        given = np.asarray(value)
    except ValueError as error:
        raise OutputError(f"output {name!r} is no array: {error}") from error
    if given.dtype.kind not in "biuf":
        raise OutputError(
            f"output {name!r} is of type {given.dtype}, which is no real number; "
            "return numbers (of a complex one both parts)"
        )
    return given


def describe(spec: Spec, returned: Any) -> Described:
    """Return shapes and types of a first task's outputs, checked against the spec."""
    if not isinstance(returned, Mapping):
        Row(()).fill(None, returned)
    described = {str(n): to_array(str(n), value) for n, value in returned.items()}
    if not described:
        raise OutputError("the model returned no output at all")
    if missing := spec.outputs.keys() - described.keys():
        got = ", ".join(described) or "nothing"
        raise OutputError(
            f"output {sorted(missing)[0]!r} stands in the spec, and the model "
            f"returned {got}"
        )
    found = {n: (a.shape, a.dtype.str) for n, a in described.items()}
    for output in settle(spec, found).outputs:
        output.cast(described[output.name])
    return found


def settle(spec: Spec, described: Described) -> Row:
    """Return the row that the spec and the first task's outputs make together."""
    outputs = tuple(_settle_output(spec, name, *described[name]) for name in described)
    sizes: dict[str, tuple[int, str]] = {}
    for output in outputs:
        for dim, size in zip(output.dims, output.shape, strict=True):
            other, name = sizes.setdefault(dim, (size, output.name))
            if other != size:
                raise OutputError(
                    f"dimension {dim!r} has length {size} in output {output.name!r} "
                    f"and {other} in {name!r}; give them different dims"
                )
    return Row(outputs)


def _settle_output(spec: Spec, name: str, shape: tuple[int, ...], dtype: str) -> Output:
    wanted = spec.outputs.get(name)
    if not name.isidentifier():
        raise OutputError(f"output {name!r} is no name; use letters, digits, and _")
    dims = tuple(f"{name}_{axis}" for axis in range(len(shape)))
    if wanted is None:
        return Output(name, dims, shape, *_storage(np.dtype(dtype)))
    if wanted.dims is not None and len(wanted.dims) != len(shape):
        raise OutputError(
            f"output {name!r} has shape {shape}, and its dims in the spec are "
            f"({', '.join(wanted.dims)})"
        )
    if wanted.length is not None:
        shape = (wanted.length, *shape[1:])
    given = np.dtype(wanted.dtype or dtype)
    if wanted.length is not None and given.kind != "f":
        given = np.dtype(float)  # an integer could not hold the NaN of shorter rows
    if wanted.summaries and len(shape) > 1:
        raise OutputError(f"output {name!r} has {len(shape)} dimensions; summaries: 1")
    stored, boolean = _storage(given)
    return Output(
        name=name,
        dims=wanted.dims if wanted.dims is not None else dims,
        shape=shape,
        dtype=stored,
        padded=wanted.length is not None,
        boolean=boolean,
        keep=wanted.keep,
        units=wanted.units,
        summaries=wanted.summaries,
    )


def _storage(given: np.dtype[Any]) -> tuple[str, Any]:
    """Return (dtype as stored, whether it was boolean): netCDF's types only."""
    if given.kind == "b":
        return "<i1", True
    size = given.itemsize if given.kind in "iu" else min(max(given.itemsize, 4), 8)
    return np.dtype(f"{given.kind}{size}").newbyteorder("<").str, False


@dataclass(frozen=True)
class Dataset:
    """One dataset of the file; without ``data`` it is filled while tasks run."""

    path: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: DTypeLike
    fill: Any = None
    data: Any = None
    attributes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Layout:
    """The whole file: what is known of it before any task has run but the first."""

    spec: Spec
    parameters: Mapping[str, tuple[Any, ...]]
    row: Row

    @property
    def by_task(self) -> tuple[int, int]:
        """The shape of everything that has one entry per task."""
        return len(self.spec.scenarios), self.spec.replicates

    @property
    def sizes(self) -> dict[str, int]:
        """The length of each output dimension."""
        return {
            dim: size
            for output in self.row.outputs
            for dim, size in zip(output.dims, output.shape, strict=True)
        }

    @property
    def has_baseline(self) -> bool:
        """Whether scenarios are compared."""
        return self.spec.bands.baseline is not None

    def output(self, name: str) -> Output:
        """Return the output of that name."""
        return next(o for o in self.row.outputs if o.name == name)

    def summaries(self) -> Iterator[tuple[Output, str]]:
        """Yield every (output, summary); without any named it is the final value."""
        for output in self.row.outputs:
            for kind in output.summaries or ("final",) * (len(output.dims) <= 1):
                yield output, kind

    def datasets(self, *, slim: bool = False) -> Iterator[Dataset]:
        """Yield every dataset; a slim file has no rows of outputs not to be kept."""
        yield from self._coordinates()
        yield from self._parameters()
        yield from self._tasks()
        yield from self._bands()
        yield from self._summaries()
        yield from self._series(slim)

    def _coordinates(self) -> Iterator[Dataset]:
        names = [s.name for s in self.spec.scenarios]
        yield _coordinate("scenario", names, long_name="scenario")
        yield _coordinate("replicate", np.arange(self.spec.replicates))
        levels = np.array(self.spec.bands.levels, dtype=float)
        yield _coordinate("level", levels, long_name="quantile over replicates")
        count = min(FAILURES, math.prod(self.by_task))
        yield _coordinate("failure", np.arange(count))
        for dim, size in self.sizes.items():
            yield _coordinate(dim, np.arange(size))

    def _parameters(self) -> Iterator[Dataset]:
        for name, values in self.parameters.items():
            data = to_column(values)
            yield Dataset(
                f"/parameters/{name}", ("scenario",), data.shape, data.dtype, data=data
            )

    def _tasks(self) -> Iterator[Dataset]:
        status = {
            "flag_values": np.arange(len(STATUS), dtype=np.uint8),
            "flag_meanings": " ".join(STATUS),
        }
        checked = {"long_name": "first 8 bytes of the SHA-256 of the task's row"}
        columns: dict[str, tuple[DTypeLike, Any, Mapping[str, Any]]] = {
            "status": (np.uint8, None, status),
            "checksum": (np.uint64, None, checked),
            "seconds": (np.float64, np.nan, {"units": "s"}),
            "attempts": (np.uint16, None, {}),
            "rank": (np.int32, -1, {"long_name": "rank that ran the task"}),
        }
        for name, (dtype, fill, attributes) in columns.items():
            dims = ("scenario", "replicate")
            path = f"/tasks/{name}"
            yield Dataset(
                path, dims, self.by_task, dtype, fill=fill, attributes=attributes
            )
        done = {"long_name": "replicates that the bands rest on"}
        shape = (self.by_task[0],)
        yield Dataset("/tasks/done", ("scenario",), shape, np.int64, attributes=done)
        count = min(FAILURES, math.prod(self.by_task))
        text = f"S{FAILURE_BYTES}"
        yield Dataset("/failures/task", ("failure",), (count,), np.int64, fill=-1)
        yield Dataset("/failures/text", ("failure",), (count,), text)

    def _bands(self) -> Iterator[Dataset]:
        for output in self.row.outputs:
            path = f"/bands/{output.name}"
            yield from self._statistics(path, "", output.dims, output.shape, output)

    def _statistics(
        self,
        path: str,
        suffix: str,
        dims: tuple[str, ...],
        shape: tuple[int, ...],
        output: Output,
    ) -> Iterator[Dataset]:
        """Yield a band, and beside it its mean and standard deviation."""
        count = self.by_task[0]
        levels = len(self.spec.bands.levels)
        units = {"units": output.units} if output.units else {}
        method = {"quantile_method": "linear (type 7 of Hyndman and Fan, 1996)"}
        yield Dataset(
            path + suffix,
            ("scenario", "level", *dims),
            (count, levels, *shape),
            np.float64,
            fill=np.nan,
            attributes=units | method,
        )
        for name in ("mean", "std"):
            yield Dataset(
                f"{path}.{name}",
                ("scenario", *dims),
                (count, *shape),
                np.float64,
                fill=np.nan,
                attributes=units,
            )

    def _summaries(self) -> Iterator[Dataset]:
        groups = ["summary", "comparison"] if self.has_baseline else ["summary"]
        for group in groups:
            for output, kind in self.summaries():
                path = f"/{group}/{output.name}/{kind}"
                units = output.units if kind != "peak_time" else None
                yield Dataset(
                    path,
                    ("scenario", "replicate"),
                    self.by_task,
                    np.float64,
                    fill=np.nan,
                    attributes={"units": units} if units else {},
                )
                scalar = Output(output.name, (), (), "<f8", units=units)
                yield from self._statistics(path, ".bands", (), (), scalar)

    def _series(self, slim: bool) -> Iterator[Dataset]:
        for output in self.row.outputs:
            if slim and not output.keep:
                continue
            attributes = {"units": output.units} if output.units else {}
            yield Dataset(
                f"/series/{output.name}",
                ("scenario", "replicate", *output.dims),
                (*self.by_task, *output.shape),
                output.dtype,
                fill=output.fill,
                attributes=attributes,
            )


def to_column(values: tuple[Any, ...]) -> NDArray[Any]:
    """Return a parameter over the scenarios: numbers where all are, else JSON text."""
    plain = [v for v in values if v is not None]
    if plain and all(_is_number(v) for v in plain):
        if len(plain) == len(values) and all(_fits_int64(v) for v in plain):
            return np.array(values, dtype=np.int64)
        return np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    return np.array([to_text(v) for v in values], dtype=object)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits_int64(value: Any) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _coordinate(name: str, values: Any, **attributes: str) -> Dataset:
    data = np.array(values, dtype=object if isinstance(values, list) else None)
    return Dataset(
        f"/{name}", (name,), data.shape, data.dtype, data=data, attributes=attributes
    )
