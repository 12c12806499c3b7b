"""A spec read from its file: decoded, checked, and every fault found at once."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from mpiens import cube
from mpiens.calibrate import Calibrate, Confirm, Domain, Sampler, Stop, Target
from mpiens.checks import find_faults
from mpiens.curves import Join
from mpiens.design import Design, Range
from mpiens.fault import Fault, SpecError, nearest, place
from mpiens.points import make_points, read_scenarios
from mpiens.spec import (
    Aggregate,
    Bands,
    Ensemble,
    Limits,
    Model,
    Output,
    Pool,
    Precision,
    Prepare,
    Read,
    Shared,
    Spec,
    decode_date,
)
from mpiens.windows import Windows

_STAND_INS = {
    **{"model": "stand:in", "loader": "stand:in", "call": "stand:in"},
    **{"replicates": 1, "seed": 0, "kind": "count", "method": "csv", "trials": 1},
    **{"output": "", "data": "", "column": "", "parameter": ""},
    "command": ["stand-in"],
}
_SUFFIXES = {
    **{".csv": "csv", ".npy": "npy", ".json": "json", "": "text", ".txt": "text"},
    **{".h5": "hdf5", ".hdf5": "hdf5", ".nc": "hdf5"},
}


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
        *("ensemble", "model", "parameters", "scenarios", "sweep", "design"),
        *("shared", "prepare", "outputs", "aggregate", "bands", "limits"),
        *("calibrate", "windows", "join", "precision"),
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
        named_model = {"model": None} | tables["ensemble"]
        ensemble = self.section("ensemble", Ensemble, named_model)
        shared = None
        if "shared" in self.document:
            shared = self.section("shared", Shared, tables["shared"])
            if isinstance(kwargs := tables["shared"].get("kwargs"), dict):
                # with the dates that JSON does not know
                shared = dataclasses.replace(shared, kwargs=kwargs)
        prepare = None
        if "prepare" in self.document:
            prepare = self.section("prepare", Prepare, tables["prepare"])
        outputs = {
            name: self.section(f"outputs.{name}", Output, own)
            for name, own in self.tables("outputs", tables["outputs"])
        }
        bands = self.section("bands", Bands, tables["bands"])
        limits = self.section("limits", Limits, tables["limits"])
        precision = None
        if "precision" in self.document:
            precision = self.section("precision", Precision, tables["precision"])
        bases, filed = self.scenarios(tables["scenarios"], folder)
        sweep, zips, excluded, faults = cube.decode(tables["sweep"])
        self.faults += faults
        spec = Spec(
            ensemble=ensemble,
            model=self.model(tables["model"]),
            parameters=tables["parameters"],
            bases=bases,
            sweep=sweep,
            shared=shared,
            prepare=prepare,
            outputs=outputs,
            aggregate=self.aggregate(tables["aggregate"]),
            bands=bands,
            limits=limits,
            precision=precision,
            folder=folder,
            zips=zips,
            excluded=excluded,
            design=self.design(tables["design"], ensemble.seed, folder),
            calibrate=self.calibrate(tables["calibrate"]),
            windows=self.windows(tables["windows"]),
            join={
                name: self.join(f"join.{name}", own)
                for name, own in self.tables("join", tables["join"])
            },
            filed=filed,
        )
        self.faults += find_faults(spec)
        # a spec that names no functions cannot be looked at any further, nor one that
        # lacks parameters with the file that has them
        named = {place("ensemble", k) for k in ("model", "reduce")}
        named |= {place(k, "file") for k in ("scenarios", "design")}
        named |= {place("shared", "loader"), place("model", "command")}
        named |= {place(k, "call") for k in ("prepare", "aggregate")}
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

    def aggregate(self, part: dict[str, Any]) -> Aggregate | None:
        """Decode the aggregate: its tables are pools, and the rest is the call's."""
        if not part:
            return None
        pools = {k: v for k, v in part.items() if isinstance(v, dict)}
        rest = {k: v for k, v in part.items() if k not in pools and k != "pools"}
        section: Aggregate = self.section("aggregate", Aggregate, rest)
        made = {n: self.section(f"aggregate.{n}", Pool, p) for n, p in pools.items()}
        return dataclasses.replace(section, pools=made)

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

    def windows(self, part: dict[str, Any]) -> Windows | None:
        """Decode the windows; at fault there is one, of a stand-in range."""
        if "windows" not in self.document:
            return None
        before = len(self.faults)
        windows: Windows = self.section("windows", Windows, part)
        if len(self.faults) == before:
            self.faults += windows.faults()
        if len(self.faults) > before:
            return Windows(windows.parameter, edges=(0.0, 1.0))
        return windows

    def join(self, section: str, part: dict[str, Any]) -> Join:
        """Decode how an output is joined; of what has two forms one fault is told."""
        own = dict(part)
        anchor, taper = own.get("anchor", 0.0), own.get("taper", "hann")
        if not _is_anchor(anchor):
            text = f"{anchor!r} should be an offset, or a point [x, value]"
            self.fault(place(section, "anchor"), text)
            del own["anchor"]
        if not isinstance(taper, str) and not (
            isinstance(taper, list) and taper and isinstance(taper[0], str)
        ):
            text = f'{taper!r} should be a name, or as ["kaiser", 6.0]'
            self.fault(place(section, "taper"), text)
            del own["taper"]
        joined: Join = self.section(section, Join, own)
        return joined

    def calibrate(self, part: dict[str, Any]) -> Calibrate | None:
        """Decode a calibration: its tables are sections of their own."""
        if "calibrate" not in self.document:
            return None
        apart: dict[str, dict[str, Any]] = {}
        for key in ("parameters", "targets", "stop", "confirm"):
            table = part.get(key, {})
            if not isinstance(table, dict):
                self.fault(place("calibrate", key), f"should be a table, not {table!r}")
                table = {}
            apart[key] = table
        rest = {k: v for k, v in part.items() if k not in (*apart, "sampler")}
        said: Calibrate = self.section("calibrate", Calibrate, rest)
        confirm = None
        if "confirm" in part:
            confirm = self.section("calibrate.confirm", Confirm, apart["confirm"])
        return dataclasses.replace(
            said,
            sampler=self.sampler(part.get("sampler", {})),
            stop=self.section("calibrate.stop", Stop, apart["stop"]),
            parameters={
                name: self.section(f"calibrate.parameters.{name}", Domain, own)
                for name, own in self.tables(
                    "calibrate.parameters", apart["parameters"]
                )
            },
            targets={
                name: self.target(f"calibrate.targets.{name}", own)
                for name, own in self.tables("calibrate.targets", apart["targets"])
            },
            confirm=confirm,
        )

    def sampler(self, part: Any) -> Sampler:
        """Decode a sampler: a name, or a table of a name and options."""
        if isinstance(part, str):
            return Sampler(part)
        if isinstance(part, dict) and isinstance(part.get("name", ""), str):
            options = {key: value for key, value in part.items() if key != "name"}
            return Sampler(part.get("name", Sampler.name), options)
        text = f'{part!r} should be a name, or read {{ name = "TPE", ... }}'
        self.fault(place("calibrate", "sampler"), text)
        return Sampler()

    def target(self, section: str, part: dict[str, Any]) -> Target:
        """Decode a target: the keys that are not its own are options of its loss."""
        known = {f.name for f in dataclasses.fields(Target)} - {"options"}
        own = {key: value for key, value in part.items() if key in known}
        options = {key: value for key, value in part.items() if key not in known}
        target: Target = self.section(section, Target, own)
        return dataclasses.replace(target, options=options)

    def range(self, name: str, part: dict[str, Any]) -> Range:
        own: Range = self.section(f"design.ranges.{name}", Range, part)
        if isinstance(choices := part.get("choices"), list):
            # with the dates that JSON does not know
            own = dataclasses.replace(own, choices=tuple(choices))
        return own

    def model(self, part: dict[str, Any]) -> Model:
        """Decode what is said of a program; its command becomes a list of words."""
        own = {key: value for key, value in part.items() if key != "read"}
        if isinstance(own.get("command"), str):
            try:
                own["command"] = shlex.split(own["command"])
            except ValueError as error:
                text = f"{own['command']!r} cannot be split into words: {error}"
                self.fault(place("model", "command"), text)
                own["command"] = _STAND_INS["command"]
        if "command" in own and not own["command"]:
            self.fault(place("model", "command"), "is empty; name a program")
            own["command"] = _STAND_INS["command"]
        read = part.get("read", {})
        if not isinstance(read, dict):
            self.fault(place("model", "read"), f"should be a table, not {read!r}")
            read = {}
        reads = {}
        for name, table in self.tables("model.read", read):
            reads[name] = self.read(f"model.read.{name}", table)
        model: Model = self.section("model", Model, own)
        return dataclasses.replace(model, read=reads)

    def read(self, section: str, part: dict[str, Any]) -> Read:
        """Decode how an output is read; the file's suffix tells its format."""
        part = dict(part)
        column = part.get("column", 0)
        if isinstance(column, bool) or not isinstance(column, int | str):
            text = f"{column!r} should be a name or a number from 0"
            self.fault(place(section, "column"), text)
            del part["column"]
        read: Read = self.section(section, Read, part)
        if read.format is None and "format" not in part:
            suffix = PurePosixPath(read.file).suffix
            if suffix not in _SUFFIXES:
                text = f"{read.file!r} does not tell its format; give format"
                self.fault(place(section, "file"), text)
            form: Any = _SUFFIXES.get(suffix)
            read = dataclasses.replace(read, format=form)
        return read

    def section(self, name: str, kind: Any, part: dict[str, Any]) -> Any:
        """Decode one section; what is wrong is recorded and left out."""
        # imported here since only the root decodes, and start-up on many ranks counts
        from pydantic import ValidationError  # noqa: PLC0415

        try:
            # by way of JSON: there strict types go with tables and with tuples
            return _adapt(kind).validate_json(json.dumps(part, default=str))
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
            right = stand_ins | right
            return _adapt(kind).validate_json(json.dumps(right, default=str))


@cache
def _adapt(kind: Any) -> Any:
    """Return what decodes a section; it takes longer to make than to use."""
    from pydantic import TypeAdapter  # noqa: PLC0415

    return TypeAdapter(kind)


def _is_anchor(value: Any) -> bool:
    """Whether it is a finite number, or two of them."""
    numbers = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(
        isinstance(n, int | float) and not isinstance(n, bool) and math.isfinite(n)
        for n in numbers
    )


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
