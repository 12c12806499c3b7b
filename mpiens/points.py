"""Points that a spec does not write out: of a design, and scenarios in a file."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiens.design import Design, sample
from mpiens.fault import Fault, SpecError, nearest, place, shorten
from mpiens.spec import decode_date

SCENARIO = "scenario"  # the column, or the key, that names a point
_INTEGER = re.compile(r"[+-]?\d{1,4000}", re.ASCII)
_NUMBER = re.compile(
    r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|nan)", re.ASCII
)  # as TOML writes them, and a little looser

Scenarios = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One line of a CSV file: its number in the file, and its cells by column."""

    number: int
    cells: dict[str, str]


def make_points(design: Design, seed: int, folder: str) -> Design:
    """Return a design with its points: those it has, or sampled, or read from its file.

    Raises SpecError where that cannot be.
    """
    if design.points:
        return design
    return sample(design, seed) if design.sampled else _read_points(design, folder)


def read_scenarios(file: str, folder: str) -> Scenarios:
    """Return the named scenarios of a JSON or CSV file; SpecError with its faults."""
    where = place("scenarios", "file")
    path = Path(folder) / file
    match path.suffix.lower():
        case ".csv":
            entries = [*_read_named_rows(path, where)]
        case ".json":
            entries = [*_read_objects(path, where)]
        case _:
            text = f"{file!r} is neither .csv nor .json; write the scenarios as either"
            raise SpecError([Fault(where, text)])
    found: Scenarios = {}
    faults = []
    for at, name, own in entries:
        if name in found:
            text = f"{path.name}{at}: scenario {name!r} stands there twice; rename one"
            faults.append(Fault(where, text))
        found[name] = own
    if not found:
        faults.append(Fault(where, f"{path.name} has no scenario; give it one"))
    if faults:
        raise SpecError(shorten(faults))
    return found


def _read_points(design: Design, folder: str) -> Design:
    """Return a design with the points of its CSV file; SpecError with its faults."""
    where = place("design", "file")
    path = Path(folder) / (design.file or "")
    header, rows = _read_csv(path, where)
    known = [name for name in header if name != SCENARIO]
    names = known if design.columns is None else [*dict.fromkeys(design.columns)]
    names = [name for name in names if name != SCENARIO]
    at = place("design", "columns")
    faults = [
        Fault(at, f"{path.name} has no column {name!r}{nearest(name, known)}")
        for name in names
        if name not in known
    ]
    if not names:
        text = f"{path.name} has no column of a parameter; give it one"
        faults.append(Fault(where, text))
    if faults:
        raise SpecError(faults)
    wanted = [SCENARIO] * (SCENARIO in header) + names
    faults = [
        Fault(where, f"{path.name}, row {row.number}: {name} is empty; fill it in")
        for row in rows
        for name in wanted
        if not row.cells[name]
    ]
    if faults:
        raise SpecError(shorten(faults))
    points = {name: tuple(_decode(row.cells[name]) for row in rows) for name in names}
    labels = None
    if SCENARIO in header:
        labels = tuple(row.cells[SCENARIO] for row in rows)
    return dataclasses.replace(design, points=points, labels=labels)


def _read_named_rows(
    path: Path, where: str
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    header, rows = _read_csv(path, where)
    if SCENARIO not in header:
        hint = nearest(SCENARIO, header)
        text = f"{path.name} has no column {SCENARIO!r}, which names them{hint}"
        raise SpecError([Fault(where, text)])
    for row in rows:
        cells = dict(row.cells)
        at, name = f", row {row.number}", cells.pop(SCENARIO)
        if not name:
            text = f"{path.name}{at}: {SCENARIO} is empty; give it a name"
            raise SpecError([Fault(where, text)])
        # an empty cell is a parameter that the scenario is not given
        yield at, name, {key: _decode(cell) for key, cell in cells.items() if cell}


def _read_objects(path: Path, where: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    try:
        document = json.loads(_read_text(path, where), object_pairs_hook=_pair)
    except ValueError as error:
        raise SpecError([Fault(where, f"{path.name} is not JSON: {error}")]) from error
    if isinstance(document, dict):
        entries = [(f", {name}", name, own) for name, own in document.items()]
    elif isinstance(document, list):
        entries = []
        for number, own in enumerate(document, start=1):
            named = isinstance(own, dict) and isinstance(own.get(SCENARIO), str)
            rest = {k: v for k, v in own.items() if k != SCENARIO} if named else own
            at = f", entry {number}"
            entries.append((at, own[SCENARIO] if named else None, rest))
    else:
        text = f"{path.name} should hold an object of scenarios, or a list of objects"
        raise SpecError([Fault(where, text)])
    for at, name, own in entries:
        if not isinstance(own, dict):
            text = f"{path.name}{at}: should be an object of parameters, not {own!r}"
            raise SpecError([Fault(where, text)])
        if name is None:
            text = f'{path.name}{at}: has no name; give it a text as "{SCENARIO}"'
            raise SpecError([Fault(where, text)])
        yield at, name, own


def _pair(pairs: list[tuple[str, Any]]) -> Any:
    """Make an object of JSON; a ValueError where a key stands in it twice."""
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice!r} stands twice in one object")
    return decode_date(table)


def _read_csv(path: Path, where: str) -> tuple[list[str], list[Row]]:
    """Return the columns and the rows of a CSV file; SpecError with its faults."""
    reader = csv.reader(io.StringIO(_read_text(path, where)), strict=True)
    try:
        lines = [(reader.line_num, cells) for cells in reader if any(cells)]
    except csv.Error as error:
        text = f"{path.name}, row {reader.line_num}: is not CSV: {error}"
        raise SpecError([Fault(where, text)]) from error
    if len(lines) < 2:
        text = f"{path.name} has no points; it wants a row of names, and rows of values"
        raise SpecError([Fault(where, text)])
    (_, first), *rest = lines
    header = [name.strip() for name in first]
    faults = []
    if "" in header:
        text = f"{path.name}: column {header.index('') + 1} has no name; give it one"
        faults.append(Fault(where, text))
    for name in dict.fromkeys(header):
        if name and header.count(name) > 1:
            text = f"{path.name} has column {name!r} twice; rename or drop one"
            faults.append(Fault(where, text))
    for number, cells in rest:
        if len(cells) != len(header):
            text = f"has {len(cells)} cells, and there are {len(header)} columns"
            faults.append(Fault(where, f"{path.name}, row {number}: {text}"))
    if faults:
        raise SpecError(shorten(faults))
    return header, [
        Row(n, dict(zip(header, map(str.strip, cells), strict=True)))
        for n, cells in rest
    ]


def _read_text(path: Path, where: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # spreadsheets write a mark first
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SpecError([Fault(where, f"{path} cannot be read: {reason}")]) from error


def _decode(cell: str) -> Any:
    """Return a cell as integer, number, true or false, or else as text."""
    if _INTEGER.fullmatch(cell):
        return int(cell)
    if _NUMBER.fullmatch(cell):
        return float(cell)
    return {"true": True, "false": False}.get(cell.lower(), cell)
