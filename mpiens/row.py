"""What one task leaves: its outputs, side by side, checked and cast as stored."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens.spec import RAGGED, Spec

_PLAIN = {float, int, np.float64, np.int64}
_PLAIN_TYPES = (np.dtype(np.float64), np.dtype(np.int64))

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
    ragged: bool = False  # so is every row, and its length is stored beside it
    boolean: bool = False  # stored as int8, as netCDF has no booleans
    keep: bool = True
    finite: bool = False  # NaN and infinity are faults
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
        kind = np.dtype(bool) if self.boolean else stored
        if not np.can_cast(given.dtype, kind, "same_kind"):
            raise OutputError(
                f"output {self.name!r} is of type {given.dtype} here and of type "
                f"{kind} in the file"
            )
        if self.finite and not np.isfinite(given).all():
            first = np.argwhere(~np.isfinite(given))[0].tolist()
            raise OutputError(
                f"output {self.name!r} is {given[tuple(first)]} at {first}, and the "
                "spec says that it is finite"
            )
        if given.shape == self.shape:
            return given.astype(stored, copy=False)
        if self.padded and self._fits(given.shape):
            row = np.full(self.shape, self.fill, dtype=stored)
            row[: given.shape[0]] = given
            return row
        if self.padded and given.shape[1:] == self.shape[1:] and given.ndim:
            raise OutputError(
                f"output {self.name!r} has {given.shape[0]:,} entries, and its length "
                f"in the spec is {self.shape[0]:,}; give it a larger one"
            )
        raise OutputError(
            f"output {self.name!r} has shape {given.shape} here and shape "
            f"{self.shape} in the file"
            + ("" if self.padded else "; where lengths differ, give [outputs] a length")
        )

    def fill_all(self, rows: Any, values: list[Any]) -> bool:
        """Put what many tasks returned into their rows, where it is all of one kind.

        Else it returns False, and it is for ``cast`` to say what becomes of it.
        """
        given = self._collect(values)
        if given is None or not np.can_cast(given[0].dtype, self.dtype, "same_kind"):
            return False
        own = rows[self.name]
        if isinstance(given, list):
            np.stack(given, out=own, casting="same_kind")
        else:
            own[:] = given
        return not self.finite or bool(np.isfinite(own).all())

    def _collect(self, values: list[Any]) -> list[Any] | NDArray[Any] | None:
        """Return arrays that are shaped as stored, or plain numbers as one array."""
        kinds = {*map(type, values)}
        if self.ragged or self.boolean or len(kinds) != 1:
            return None
        if kinds == {np.ndarray}:
            like = {(value.shape, value.dtype) for value in values}
            alike = len(like) == 1 and values[0].shape == self.shape
            return values if alike and values[0].dtype.kind in "biuf" else None
        if self.shape != () or not kinds <= _PLAIN:
            return None
        given = np.array(values)  # some integers are too large for their usual type
        return given if given.dtype in _PLAIN_TYPES else None

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
    def stored(self) -> tuple[Output, ...]:
        """The arrays that a row is stored as: the lengths of ragged ones are some."""
        lengths = (
            Output(f"{o.name}.length", (), (), "<i8", keep=o.keep)
            for o in self.outputs
            if o.ragged
        )
        return *self.outputs, *lengths

    @cached_property
    def banded(self) -> tuple[Output, ...]:
        """The outputs that have bands: entries of ragged ones do not correspond."""
        return tuple(o for o in self.outputs if not o.ragged)

    @cached_property
    def dtype(self) -> np.dtype[np.void]:
        """The structured type of one row; packed, so that its bytes are the data."""
        return np.dtype([(o.name, o.dtype, o.shape) for o in self.stored])

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
            if output.ragged:
                row[f"{output.name}.length"] = len(returned[output.name])

    def fill_all(self, rows: Any, returned: Sequence[Any]) -> None:
        """Put what many tasks returned into their rows; OutputError where one is wrong.

        As ``fill`` does it for each, but sooner where all are alike.
        """
        names = {o.name for o in self.outputs}
        if all(isinstance(one, dict) and one.keys() == names for one in returned):
            columns = ((o, [one[o.name] for one in returned]) for o in self.outputs)
            if all(output.fill_all(rows, values) for output, values in columns):
                return
        for row, one in zip(rows, returned, strict=True):
            self.fill(row, one)


def as_bytes(array: NDArray[Any]) -> memoryview:
    """Return the memory of a contiguous array, of whatever type, as bytes."""
    flat: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat)


def checksum(row: bytes | memoryview) -> int:
    """Return the first 8 bytes, little-endian, of the SHA-256 of a row's bytes."""
    return int(checksums(row, len(row), [0])[0])


def checksums(
    rows: bytes | memoryview, size: int, indices: Iterable[int]
) -> NDArray[np.uint64]:
    """Return the checksums of some of the rows that lie side by side, by index."""
    sha256 = hashlib.sha256
    starts = (index * size for index in indices)
    heads = [sha256(rows[start : start + size]).digest()[:8] for start in starts]
    return np.frombuffer(b"".join(heads), dtype="<u8")


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
    pools = spec.aggregate.pools.items() if spec.aggregate else ()
    for name, pool in pools:
        if pool.output is not None and pool.output not in described:
            raise OutputError(
                f"output {pool.output!r} stands in [aggregate.{name}], and the model "
                f"returned {', '.join(described)}"
            )
    _check_pieces(spec, described)
    found = {n: (a.shape, a.dtype.str) for n, a in described.items()}
    for output in settle(spec, found).outputs:
        output.cast(described[output.name])
    return found


def _check_pieces(spec: Spec, described: Mapping[str, NDArray[Any]]) -> None:
    """Raise OutputError where what is to be joined cannot be told along a curve."""
    for name, join in spec.join.items():
        for output in (name, join.x or name):
            if output not in described:
                raise OutputError(
                    f"output {output!r} stands in [join.{name}], and the model "
                    f"returned {', '.join(described)}"
                )
        shapes = described[name].shape, described[join.x or name].shape
        if len(shapes[0]) != 1 or shapes[0] != shapes[1]:
            told = f"output {name!r} has shape {shapes[0]}"
            told += f", and {join.x!r} has {shapes[1]}" if join.x else ""
            raise OutputError(f"{told}: to be joined it needs one dimension, and its x")


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
        stored, boolean = find_storage(np.dtype(dtype))
        return Output(name, dims, shape, stored, boolean=boolean)
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
        raise OutputError(
            f"output {name!r} has {len(shape)} dimensions, and summaries need one"
        )
    if "peak_time" in wanted.summaries and not shape:
        raise OutputError(
            f"output {name!r} has no dimension, and 'peak_time' needs one"
        )
    stored, boolean = find_storage(given)
    if wanted.dims is not None:
        own = f"{name}_entry"
        dims = tuple(own if dim == RAGGED else dim for dim in wanted.dims)
    return Output(
        name=name,
        dims=dims,
        shape=shape,
        dtype=stored,
        padded=wanted.length is not None,
        ragged=wanted.ragged,
        boolean=boolean,
        keep=wanted.keep,
        finite=wanted.finite,
        units=wanted.units,
        summaries=wanted.summaries,
    )


def find_storage(given: np.dtype[Any]) -> tuple[str, Any]:
    """Return (dtype as stored, whether it was boolean): netCDF's types only."""
    if given.kind == "b":
        return "<i1", True
    size = given.itemsize if given.kind in "iu" else min(max(given.itemsize, 4), 8)
    return np.dtype(f"{given.kind}{size}").newbyteorder("<").str, False
