"""What is read of the files that a program leaves: an array for every output."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens.spec import STANDARD_OUTPUT, Output, Read, Spec

Array = NDArray[Any]
CAPTURED = "stdout"  # the file that holds what a program writes to standard output


def extract(spec: Spec, folder: Path) -> dict[str, Array]:
    """Return the outputs that the spec reads of a task's folder.

    Raises ValueError, with a sentence that names file and column, where one cannot
    be read.
    """
    found: dict[str, Array] = {}
    for file, names in _group(spec.model.read).items():
        path = folder / (CAPTURED if file == STANDARD_OUTPUT else file)
        shown = "standard output" if file == STANDARD_OUTPUT else file
        if not path.is_file():
            there = sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))
            listed = ", ".join(there[:8]) or "nothing"
            raise ValueError(f"the program left no file {file}; it left {listed}")
        wanted = {
            name: _Wanted.of(spec.model.read[name], spec.outputs.get(name))
            for name in names
        }
        found |= _read(path, shown, wanted)
    return {
        name: _shape(found[name], spec.outputs.get(name)) for name in spec.model.read
    }


@dataclass(frozen=True)
class _Wanted:
    """What is wanted of a file for one output."""

    format: str | None
    column: int | str | None
    kind: Any  # the type of what is written as text

    @classmethod
    def of(cls, read: Read, output: Output | None) -> _Wanted:
        kind = np.dtype(output.dtype if output and output.dtype else float)
        # 3 in one task is 3.5 in the next: without a word of the spec it is a float
        return cls(read.format, read.column, kind if kind.kind in "biu" else float)

    def number(self, cell: str) -> Any:
        return float(cell) if self.kind is float else int(cell)

    def array(self, values: Any, shown: str) -> Array:
        try:
            return np.array(values, dtype=self.kind)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{shown}: {error}") from None


def _group(reads: Mapping[str, Read]) -> dict[str, list[str]]:
    """Return the outputs by file, so that each file is read once."""
    files: dict[str, list[str]] = {}
    for name, read in reads.items():
        files.setdefault(read.file, []).append(name)
    return files


def _read(path: Path, shown: str, wanted: dict[str, _Wanted]) -> dict[str, Array]:
    found: dict[str, Array] = {}
    for form in {each.format: None for each in wanted.values()}:
        own = {name: each for name, each in wanted.items() if each.format == form}
        if form in ("csv", "text"):
            found |= _read_table(path, shown, own)
            continue
        for name, each in own.items():
            read = {"npy": _read_npy, "hdf5": _read_hdf5, "json": _read_json}[str(form)]
            found[name] = read(path, shown, each)
    return found


def _read_table(path: Path, shown: str, wanted: dict[str, _Wanted]) -> dict[str, Array]:
    is_csv = any(each.format == "csv" for each in wanted.values())
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        table = _number(csv.reader(lines) if is_csv else _split(lines))
        first = next(table, None)
        if first is None:
            raise ValueError(f"{shown} is empty")
        columns = {
            name: each
            for name, each in wanted.items()
            if is_csv or each.column is not None
        }
        if len(columns) < len(wanted):  # all the numbers of a text
            rows = [first, *table]
            table = iter(rows[1:])
            [name, *_] = whole = [n for n in wanted if n not in columns]
            array = _read_numbers(rows, shown, wanted[name])
            found = dict.fromkeys(whole, array)
        else:
            found = {}
        return found | _read_columns(first, table, shown, columns)


def _split(lines: Iterable[str]) -> Iterator[list[str]]:
    for line in lines:
        yield line.partition("#")[0].split()


def _number(rows: Iterable[list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield (line, cells) of all rows that are not blank."""
    for line, cells in enumerate(rows, start=1):
        if any(cell.strip() for cell in cells):
            yield line, [cell.strip() for cell in cells]


def _read_numbers(
    rows: list[tuple[int, list[str]]], shown: str, wanted: _Wanted
) -> Array:
    """Return all numbers of a text: (row, column), without axes of length 1."""
    width = len(rows[0][1])
    values = []
    for line, cells in rows:
        if len(cells) != width:
            text = f"has {len(cells)} numbers in line {line}, and {width} in the first"
            raise ValueError(f"{shown} {text}")
        values.append([_cell(c, shown, f"line {line}", wanted) for c in cells])
    array = wanted.array(values, shown)
    return array.reshape([n for n in array.shape if n != 1])


def _read_columns(
    first: tuple[int, list[str]],
    table: Iterator[tuple[int, list[str]]],
    shown: str,
    wanted: dict[str, _Wanted],
) -> dict[str, Array]:
    if not wanted:
        return {}
    by_name = any(isinstance(each.column, str) for each in wanted.values())
    is_header = by_name or not any(map(_is_number, first[1]))
    places = {n: _place(first[1], each, shown) for n, each in wanted.items()}
    values: dict[str, list[Any]] = {name: [] for name in wanted}
    for line, cells in table if is_header else [first, *table]:
        for name, each in wanted.items():
            where = f"column {each.column or places[name]!r}, line {line}"
            if places[name] >= len(cells):
                raise ValueError(f"{shown} has {len(cells)} cells only in line {line}")
            value = _cell(cells[places[name]], shown, where, each)
            values[name].append(value)
    if not all(values.values()):
        raise ValueError(f"{shown} has a header and no rows")
    return {name: each.array(values[name], shown) for name, each in wanted.items()}


def _place(header: list[str], wanted: _Wanted, shown: str) -> int:
    """Return which cell of each row is wanted."""
    column = wanted.column
    if column is None and len(header) == 1:
        return 0
    if isinstance(column, int) and column < len(header):
        return column
    if isinstance(column, str) and column in header:
        return header.index(column)
    known = ", ".join(header)
    if column is None:
        raise ValueError(f"{shown} has {len(header)} columns; name one of {known}")
    raise ValueError(f"{shown} has no column {column!r}; it has {known}")


def _cell(cell: str, shown: str, where: str, wanted: _Wanted) -> Any:
    try:
        return wanted.number(cell)
    except ValueError:
        kind = "number" if wanted.kind is float else "whole number"
        raise ValueError(f"{shown} has {cell!r} in {where}: no {kind}") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _read_npy(path: Path, shown: str, wanted: _Wanted) -> Array:
    del wanted
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{shown} is no NPY file: {error}") from None


def _read_hdf5(path: Path, shown: str, wanted: _Wanted) -> Array:
    import h5py  # noqa: PLC0415  (few programs write it)

    try:
        file = h5py.File(path)
    except OSError as error:
        raise ValueError(f"{shown} is no HDF5 file: {error}") from None
    with file:
        dataset = file.get(wanted.column)
        if not isinstance(dataset, h5py.Dataset):
            known: list[str] = []
            file.visit(known.append)
            there = ", ".join(known[:8]) or "nothing"
            text = f"{shown} has no dataset {wanted.column!r}; it has {there}"
            raise ValueError(text)
        return np.asarray(dataset[()])


def _read_json(path: Path, shown: str, wanted: _Wanted) -> Array:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{shown} is no JSON: {error}") from None
    if wanted.column is None:
        return wanted.array(value, shown)
    for key in str(wanted.column).split("."):
        try:
            value = value[int(key)] if isinstance(value, list) else value[key]
        except (KeyError, IndexError, ValueError, TypeError):
            there = list(value) if isinstance(value, dict) else value
            text = f"{shown} has no {wanted.column!r}: there is no {key!r} in {there!r}"
            raise ValueError(text[:400]) from None
    return wanted.array(value, f"{shown}, {wanted.column}")


def _shape(array: Array, output: Output | None) -> Array:
    """Give a single number the dimensions that the spec gives the output."""
    if output is None or output.dims is None or array.size != 1:
        return array
    return array.reshape([1] * len(output.dims))
