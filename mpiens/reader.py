"""A spec read from its file: decoded, checked, and every fault found at once."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpiens import cube
from mpiens.design import POINT, Design, Range
from mpiens.expression import Expression
from mpiens.fault import Fault, SpecError, nearest, place
from mpiens.points import make_points, read_scenarios
from mpiens.spec import (
    INJECTED,
    RESERVED,
    Bands,
    Ensemble,
    Limits,
    Output,
    Scenario,
    Shared,
    Spec,
    decode_date,
)

_REFERENCE = re.compile(r"[^:]+:[^:]+")
_STAND_INS = {"model": "stand:in", "loader": "stand:in", "replicates": 1, "seed": 0}
_STAND_INS |= {"method": "csv"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Reading:
    """What could be read of a spec, and every fault found on the way."""

    spec: Spec | None
    faults: list[Fault]
    path: str

    def require(self) -> Spec:
        """Return the spec, or raise SpecError with all faults."""
        if self.spec is None or self.faults:
            raise SpecError(self.faults, self.path)
        return self.spec


def read(path: str | Path) -> Reading:
    """Read a spec from a TOML file (or a JSON file with the same keys)."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        return Reading(None, [Fault("", f"cannot be read: {reason}")], str(path))
    return decode(text, path, is_json=path.suffix.lower() == ".json")


def decode(text: str, path: str | Path = "", *, is_json: bool = False) -> Reading:
    """Decode the text of a spec; paths in it are relative to the folder of ``path``."""
    path = Path(path)
    try:
        if is_json:
            document = json.loads(text, object_hook=decode_date)
        else:
            document = tomllib.loads(text)
    except ValueError as error:  # both decoders' errors are ValueErrors with a place
        kind = "JSON" if is_json else "TOML"
        return Reading(None, [Fault("", f"is not {kind}: {error}")], str(path))
    if not isinstance(document, dict):
        return Reading(None, [Fault("", "a spec is a table of sections")], str(path))
    decoder = _Decoder(document)
    spec = decoder.decode(folder=str(path.parent.absolute()))
    lines = {} if is_json else _find_lines(text)
    faults = [
        dataclasses.replace(f, line=_line_of(f.place, lines)) for f in decoder.faults
    ]
    return Reading(spec, sorted(faults, key=lambda f: f.line or 0), str(path))


def locate_faults(faults: list[Fault], path: str | Path) -> list[Fault]:
    """Give faults found later their lines in the spec's file."""
    path = Path(path)
    if path.suffix.lower() == ".json":
        return faults
    lines = _find_lines(path.read_text(encoding="utf-8"))
    return [dataclasses.replace(f, line=_line_of(f.place, lines)) for f in faults]


class _Decoder:
    """Turns a document into a Spec section by section and collects the faults."""

    SECTIONS = (
        *("ensemble", "parameters", "scenarios", "sweep", "design"),
        *("shared", "outputs", "bands", "limits"),
    )

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.faults: list[Fault] = []

    def decode(self, folder: str) -> Spec | None:
        for name in self.document:
            if name not in self.SECTIONS:
                hint = nearest(name, self.SECTIONS)
                self.fault(place(name), f"is no section of a spec{hint}")
        tables = {name: self.table(name) for name in self.SECTIONS}
        ensemble = self.section("ensemble", Ensemble, tables["ensemble"])
        shared = None
        if "shared" in self.document:
            shared = self.section("shared", Shared, tables["shared"])
            if isinstance(kwargs := tables["shared"].get("kwargs"), dict):
                # with the dates that JSON does not know
                shared = dataclasses.replace(shared, kwargs=kwargs)
        outputs = {
            name: self.section(f"outputs.{name}", Output, own)
            for name, own in self.tables("outputs", tables["outputs"])
        }
        bands = self.section("bands", Bands, tables["bands"])
        limits = self.section("limits", Limits, tables["limits"])
        bases, filed = self.scenarios(tables["scenarios"], folder)
        sweep, zips, excluded, faults = cube.decode(tables["sweep"])
        self.faults += faults
        spec = Spec(
            ensemble=ensemble,
            parameters=tables["parameters"],
            bases=bases,
            sweep=sweep,
            shared=shared,
            outputs=outputs,
            bands=bands,
            limits=limits,
            folder=folder,
            zips=zips,
            excluded=excluded,
            design=self.design(tables["design"], ensemble.seed, folder),
            filed=filed,
        )
        self.faults += _check(spec)
        # a spec that names no functions cannot be looked at any further, nor one that
        # lacks parameters with the file that has them
        named = {place("ensemble", k) for k in ("model", "reduce")}
        named |= {place(k, "file") for k in ("scenarios", "design")}
        named.add(place("shared", "loader"))
        return None if named & {fault.place for fault in self.faults} else spec

    def fault(self, where: str, text: str) -> None:
        self.faults.append(Fault(where, text))

    def table(self, name: str) -> dict[str, Any]:
        part = self.document.get(name, {})
        if isinstance(part, dict):
            return part
        self.fault(place(name), f"should be a table, not {part!r}")
        return {}

    def tables(self, name: str, part: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        for key, own in part.items():
            if isinstance(own, dict):
                yield key, own
            else:
                text = f"should be a table, not {own!r}; write [{name}.{key}]"
                self.fault(place(name, key), text)

    def scenarios(
        self, part: dict[str, Any], folder: str
    ) -> tuple[dict[str, Any], frozenset[str]]:
        """Return the named scenarios, and which of them a file has."""
        if not isinstance(file := part.get("file"), str):
            return dict(self.tables("scenarios", part)), frozenset()
        rest = {name: own for name, own in part.items() if name != "file"}
        bases = dict(self.tables("scenarios", rest))
        try:
            filed = read_scenarios(file, folder)
        except SpecError as error:
            self.faults += error.faults
            return bases, frozenset()
        for name in bases.keys() & filed.keys():
            text = f"is also a scenario of {file}; rename one of them"
            self.fault(place(f"scenarios.{name}"), text)
        return filed | bases, frozenset(filed)

    def design(self, part: dict[str, Any], seed: int, folder: str) -> Design | None:
        """Decode the design and make its points; at fault it has one, of ones."""
        if "design" not in self.document:
            return None
        before = len(self.faults)
        apart = {key: part.get(key, {}) for key in ("ranges", "points")}
        for key, table in apart.items():
            if not isinstance(table, dict):
                self.fault(place("design", key), f"should be a table, not {table!r}")
                apart[key] = {}
        rest = {key: value for key, value in part.items() if key not in apart}
        said: Design = self.section("design", Design, rest)
        design = dataclasses.replace(
            said,
            ranges={
                name: self.range(name, own)
                for name, own in self.tables("design.ranges", apart["ranges"])
            },
            points={
                name: tuple(column) if isinstance(column, list) else ()
                for name, column in apart["points"].items()
            },
        )
        names = [*apart["ranges"], *(design.columns or ())]
        ones = dict.fromkeys(names, (1,))
        stand_in = dataclasses.replace(design, points=ones, labels=None)
        if len(self.faults) == before:
            self.faults += design.faults()
        if len(self.faults) > before:
            return stand_in if names else None
        try:
            return make_points(design, seed, folder)
        except SpecError as error:
            self.faults += error.faults
            return stand_in if names else None

    def range(self, name: str, part: dict[str, Any]) -> Range:
        own: Range = self.section(f"design.ranges.{name}", Range, part)
        if isinstance(choices := part.get("choices"), list):
            # with the dates that JSON does not know
            own = dataclasses.replace(own, choices=tuple(choices))
        return own

    def section(self, name: str, kind: type[Any], part: dict[str, Any]) -> Any:
        """Decode one section; what is wrong is recorded and left out."""
        # imported here since only the root decodes, and start-up on many ranks counts
        from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

        adapter = TypeAdapter(kind)
        try:
            # by way of JSON: there strict types go with tables and with tuples
            return adapter.validate_json(json.dumps(part, default=str))
        except ValidationError as error:
            known = {f.name for f in dataclasses.fields(kind)}
            wrong = set()
            for item in error.errors(include_url=False):
                key, *inner = (str(part) for part in item["loc"])
                wrong.add(key)
                where = place(name, key)
                match item["type"]:
                    case "missing":
                        self.fault(where, "is missing; every spec needs it")
                    case "unexpected_keyword_argument" | "extra_forbidden":
                        self.fault(where, f"is not a key here{nearest(key, known)}")
                    case _:
                        what = item["msg"].removeprefix("Input ")
                        at = f"[{'.'.join(inner)}]" if inner else ""
                        self.fault(where, f"{item['input']!r}{at} {what}")
            # the rest is checked all the same
            right = {k: v for k, v in part.items() if k in known - wrong}
            stand_ins = {k: v for k, v in _STAND_INS.items() if k in known & wrong}
            return adapter.validate_json(json.dumps(stand_ins | right, default=str))


def _check(spec: Spec) -> Iterator[Fault]:
    """Yield what no single section can know to be wrong."""
    yield from _check_ensemble(spec)
    yield from _check_parameters(spec)
    yield from _check_scenarios(spec)
    yield from _check_outputs(spec)
    yield from _check_bands(spec)
    yield from _check_limits(spec)


def _check_ensemble(spec: Spec) -> Iterator[Fault]:
    callables = {
        place("ensemble", "model"): spec.ensemble.model,
        place("ensemble", "reduce"): spec.ensemble.reduce,
        place("shared", "loader"): spec.shared.loader if spec.shared else None,
    }
    for where, text in callables.items():
        if text is not None and not _REFERENCE.fullmatch(text):
            way = 'should read "file.py:function" or "package.module:function"'
            yield Fault(where, f"{text!r} {way}")


def _check_parameters(spec: Spec) -> Iterator[Fault]:
    for where, name in spec.given():
        if name in INJECTED:
            text = "is what mpiens itself passes to a model; choose another name"
            yield Fault(where, text)
        elif not _NAME.fullmatch(name):
            text = "cannot be an argument of a Python function; choose another name"
            yield Fault(where, text)
    sampled = spec.design.points if spec.design else {}
    varied = dict.fromkeys(spec.sweep, "an axis of [sweep]")
    varied |= dict.fromkeys(sampled, "a parameter of [design]")
    for where, name in spec.given():
        fixed = where.startswith("[scenarios") and name in varied
        if fixed or (where.startswith("[sweep]") and name in sampled):
            text = f"is also {varied[name]}; keep {name} in one of the two"
            yield Fault(where, text)
    if spec.design is not None and spec.design.sampled:
        for where, name in spec.given():
            if name == POINT and where.startswith(("[sweep]", "[design")):
                text = f"is what names the points of a design, as in {POINT}=17"
                yield Fault(where, f"{text}; choose another name")


def _check_scenarios(spec: Spec) -> Iterator[Fault]:
    seen: dict[str, Scenario] = {}
    twice: dict[str, str] = {}
    for scenario in spec.scenarios:
        if (other := seen.setdefault(scenario.name, scenario)) is not scenario:
            by_axes = other.axes is not scenario.axes or spec.design is None
            where = place("sweep") if by_axes else place("design", "file")
            twice.setdefault(where, scenario.name)
    for where, name in twice.items():
        yield Fault(where, f"gives scenario {name!r} twice; name each point once")


def _check_outputs(spec: Spec) -> Iterator[Fault]:
    lengths: dict[str, tuple[str, int | None]] = {}
    for name, output in spec.outputs.items():
        section = f"outputs.{name}"
        if not _NAME.fullmatch(name):
            text = "is no name for an output; use letters, digits and underscores"
            yield Fault(place(section), text)
        dims = output.dims or ()
        for dim in dims:
            if dim in RESERVED or not _NAME.fullmatch(dim):
                text = f"{dim!r} cannot name a dimension here; choose another name"
                yield Fault(place(section, "dims"), text)
        if len(set(dims)) < len(dims):
            text = f"{list(dims)} names a dimension twice; each needs its own name"
            yield Fault(place(section, "dims"), text)
        if len(dims) > 1 and output.summaries:
            text = f"need one dimension, and {name} has {len(dims)}: {', '.join(dims)}"
            yield Fault(place(section, "summaries"), text)
        if output.dims == () and "peak_time" in output.summaries:
            text = f"'peak_time' needs a dimension, and {name} has none"
            yield Fault(place(section, "summaries"), text)
        yield from _check_storage(section, output)
        for dim in dims[:1]:
            other, length = lengths.setdefault(dim, (name, output.length))
            if length != output.length:
                text = (
                    f"{output.length} differs from {length} of {other}, "
                    f"and both have {dim} first; give both the same length"
                )
                yield Fault(place(section, "length"), text)


def _check_storage(section: str, output: Output) -> Iterator[Fault]:
    import numpy as np  # noqa: PLC0415  (only to judge a dtype)

    if output.dtype is not None:
        try:
            good = np.dtype(output.dtype).kind in "biuf"
        except (SyntaxError, TypeError, ValueError):
            good = False
        if not good:
            text = f"{output.dtype!r} is no numeric type; try float64 or int64"
            yield Fault(place(section, "dtype"), text)
        elif output.length is not None and np.dtype(output.dtype).kind != "f":
            text = f"{output.dtype!r} cannot hold the NaN of shorter rows; try float64"
            yield Fault(place(section, "dtype"), text)
    if output.length is not None and not output.dims:
        text = "needs dims, since it is the length of the first dimension"
        yield Fault(place(section, "length"), text)


def _check_bands(spec: Spec) -> Iterator[Fault]:
    levels = spec.bands.levels
    where = place("bands", "levels")
    if not levels:
        yield Fault(where, "is empty; give quantiles between 0 and 1, such as [0.5]")
    for level in levels:
        if not 0 <= level <= 1:
            yield Fault(where, f"{level} is no quantile; levels lie between 0 and 1")
    if any(b <= a for a, b in itertools.pairwise(levels)):
        yield Fault(where, f"{list(levels)} should rise from each level to the next")
    baseline = spec.bands.baseline
    names = [*spec.bases, *(s.name for s in spec.scenarios)]
    if baseline is not None and baseline not in names:
        text = f"{baseline!r} is no scenario{nearest(baseline, names)}"
        yield Fault(place("bands", "baseline"), text)


def _check_limits(spec: Spec) -> Iterator[Fault]:
    most = spec.limits.max_failed
    if isinstance(most, float) and not most < 1:
        text = f"{most} is no share of all tasks; write {most:.0f} for a number of them"
        yield Fault(place("limits", "max_failed"), text)
    if spec.limits.cost is not None:
        try:
            Expression(spec.limits.cost).check()
        except ValueError as error:
            yield Fault(place("limits", "cost"), str(error))


_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")
_KEY = re.compile(r"""\s*((?:[A-Za-z0-9_-]+|"[^"]*"|'[^']*'|\s*\.\s*)+?)\s*=""")


def _find_lines(text: str) -> dict[str, int]:
    """Return the line of every table and key of a TOML text, by dotted name."""
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            table = _plain(header[1])
            found.setdefault(table, number)
        elif key := _KEY.match(line):
            name = f"{table}.{_plain(key[1])}" if table else _plain(key[1])
            found.setdefault(name, number)
    return found


def _plain(dotted: str) -> str:
    return ".".join(part.strip(" \t\"'") for part in dotted.split("."))


def _line_of(where: str, lines: dict[str, int]) -> int | None:
    """Return the line of a place, or of the nearest table around it."""
    section, _, key = where.partition("] ")
    name = ".".join(p for p in (section.strip("[]"), key) if p)
    while name:
        if name in lines:
            return lines[name]
        name = name.rpartition(".")[0]
    return None
