"""A spec read from its file: decoded, checked, and every fault found at once."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mpiens.cube import check_exclusions, check_zips
from mpiens.design import POINT, Design, Range
from mpiens.expression import Expression
from mpiens.fault import Fault, SpecError, nearest, place
from mpiens.points import make_points, read_scenarios
from mpiens.pool import find_edges
from mpiens.spec import (
    INJECTED,
    RAGGED,
    RESERVED,
    Aggregate,
    Bands,
    Ensemble,
    Limits,
    Model,
    Output,
    Pool,
    Prepare,
    Read,
    Scenario,
    Shared,
    Spec,
    decode_date,
)

_REFERENCE = re.compile(r"[^:]+:[^:]+")
_STAND_INS = {
    **{"model": "stand:in", "loader": "stand:in", "call": "stand:in"},
    **{"replicates": 1, "seed": 0, "kind": "count", "method": "csv"},
    "command": ["stand-in"],
}
_SWEEP_KEYS = ("zip", "exclude")
_SUFFIXES = {
    **{".csv": "csv", ".npy": "npy", ".json": "json", "": "text", ".txt": "text"},
    **{".h5": "hdf5", ".hdf5": "hdf5", ".nc": "hdf5"},
}
_OF_PROGRAMS = ("workdir", "folder")  # what they get beside INJECTED
_IN_FOLDERS = ("stdin", "stdout", "shared")  # what mpiens puts into a task's folder
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
        *("ensemble", "model", "parameters", "scenarios", "sweep", "design"),
        *("shared", "prepare", "outputs", "aggregate", "bands", "limits"),
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
        bases, filed = self.scenarios(tables["scenarios"], folder)
        sweep = self.sweep(tables["sweep"])
        zips = self.zips(tables["sweep"], sweep)
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
            folder=folder,
            zips=zips,
            excluded=self.excluded(tables["sweep"], sweep, zips),
            design=self.design(tables["design"], ensemble.seed, folder),
            filed=filed,
        )
        self.faults += _check(spec)
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

    def sweep(self, part: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        axes = {}
        for axis, values in part.items():
            if axis in _SWEEP_KEYS:
                continue
            if not isinstance(values, list) or not values:
                text = f"should be a list of values, not {values!r}"
                self.fault(place("sweep", axis), text)
            else:
                axes[axis] = tuple(values)
        return axes

    def aggregate(self, part: dict[str, Any]) -> Aggregate | None:
        """Decode the aggregate: its tables are pools, and the rest is the call's."""
        if not part:
            return None
        pools = {k: v for k, v in part.items() if isinstance(v, dict)}
        rest = {k: v for k, v in part.items() if k not in pools and k != "pools"}
        section: Aggregate = self.section("aggregate", Aggregate, rest)
        made = {n: self.section(f"aggregate.{n}", Pool, p) for n, p in pools.items()}
        return dataclasses.replace(section, pools=made)

    def zips(
        self, part: dict[str, Any], axes: Mapping[str, tuple[Any, ...]]
    ) -> tuple[tuple[str, ...], ...]:
        groups = part.get("zip", [])
        if not _is_list(groups, lambda g: g and _is_list(g, lambda a: type(a) is str)):
            text = f'should list groups of axes, as in [["a", "b"]], not {groups!r}'
            self.fault(place("sweep", "zip"), text)
            return ()
        # an axis that is at fault itself has been told of
        rest = [[a for a in group if a in axes or a not in part] for group in groups]
        faults = [*check_zips(axes, rest)]
        self.faults += faults
        return () if faults else tuple(tuple(group) for group in rest if group)

    def excluded(
        self,
        part: dict[str, Any],
        axes: Mapping[str, tuple[Any, ...]],
        zips: tuple[tuple[str, ...], ...],
    ) -> tuple[dict[str, Any], ...]:
        entries = part.get("exclude", [])
        if not _is_list(entries, lambda entry: entry and isinstance(entry, dict)):
            text = f"should list points, as in [{{ a = 1, b = 2 }}], not {entries!r}"
            self.fault(place("sweep", "exclude"), text)
            return ()
        if any(fault.place.startswith("[sweep]") for fault in self.faults):
            return ()
        faults = [*check_exclusions(axes, zips, entries)]
        self.faults += faults
        return () if faults else tuple(entries)

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
    yield from _check_model(spec)
    yield from _check_parameters(spec)
    yield from _check_scenarios(spec)
    yield from _check_outputs(spec)
    yield from _check_aggregate(spec)
    yield from _check_bands(spec)
    yield from _check_limits(spec)


def _check_ensemble(spec: Spec) -> Iterator[Fault]:
    callables = {
        place("ensemble", "model"): spec.ensemble.model,
        place("ensemble", "reduce"): spec.ensemble.reduce,
        place("shared", "loader"): spec.shared.loader if spec.shared else None,
        place("prepare", "call"): spec.prepare.call if spec.prepare else None,
        place("aggregate", "call"): spec.aggregate.call if spec.aggregate else None,
    }
    for where, text in callables.items():
        if text is not None and not _REFERENCE.fullmatch(text):
            way = 'should read "file.py:function" or "package.module:function"'
            yield Fault(where, f"{text!r} {way}")


def _check_model(spec: Spec) -> Iterator[Fault]:
    model, where = spec.model, place("ensemble", "model")
    if model.command and spec.ensemble.model is not None:
        text = f"and {where} = {spec.ensemble.model!r} are two models; keep one of them"
        yield Fault(place("model", "command"), text)
    if model.command:
        yield from _check_program(spec)
        return
    if spec.ensemble.model is None:
        way = "name a Python model here, or a program by [model] command"
        yield Fault(where, f"is missing; {way}")
    for key in ("stdin", "files", "read"):
        if getattr(model, key):
            yield Fault(place("model", key), "is for a program; give [model] command")
    if model.fresh == "task" and spec.limits.isolation != "process":
        text = "'task' needs a process for every task; leave out [limits] isolation"
        yield Fault(place("model", "fresh"), text)


def _check_program(spec: Spec) -> Iterator[Fault]:
    model = spec.model
    if model.fresh == "task":
        text = "'task' is for Python models; a program starts anew for every task"
        yield Fault(place("model", "fresh"), text)
    if not model.read:
        way = "write [model.read.NAME] for each output"
        yield Fault(place("model", "read"), f"is missing; {way}")
    for name in model.files:
        if not _is_within(name):
            text = "should be the name of a file in the task's own folder"
            yield Fault(place("model", "files", name), text)
        elif name.partition("/")[0].partition(".")[0] in _IN_FOLDERS:
            text = "is what mpiens itself puts into the folder; choose another name"
            yield Fault(place("model", "files", name), text)
    for name, read in model.read.items():
        section = f"model.read.{name}"
        if not _NAME.fullmatch(name):
            text = "is no name for an output; use letters, digits and underscores"
            yield Fault(place(section), text)
        if not _is_within(read.file):
            text = f"{read.file!r} should be a file in the task's own folder"
            yield Fault(place(section, "file"), text)
        yield from _check_column(section, read)
    if spec.ensemble.reduce is None:
        for name in spec.outputs.keys() - model.read.keys():
            text = f"is not read of the program; write [model.read.{name}]"
            yield Fault(place(f"outputs.{name}"), text)
    for where, name in spec.given():
        if name in _OF_PROGRAMS:
            text = "is what mpiens itself passes to a program; choose another name"
            yield Fault(where, text)


def _is_within(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def _check_column(section: str, read: Read) -> Iterator[Fault]:
    where = place(section, "column")
    match read.format, read.column:
        case "npy", column if column is not None:
            yield Fault(where, f"{column!r}: a file of format npy has no columns")
        case "hdf5", column if not isinstance(column, str):
            yield Fault(where, "should be the path of a dataset in the HDF5 file")
        case "text", str(column):
            yield Fault(where, f"{column!r}: columns of text are numbers from 0")
        case _, int(column) if column < 0:
            yield Fault(where, f"{column} is no column; they are numbers from 0")


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
        for position, dim in enumerate(dims):
            if dim == RAGGED and position == 0:
                continue
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
        for dim in [] if output.ragged else dims[:1]:
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
    if output.ragged and output.length is None:
        text = 'is missing; an output with dims ["*"] needs the longest row allowed'
        yield Fault(place(section, "length"), text)
    if output.ragged and output.summaries:
        text = "are of one curve, and rows of different lengths have none; leave it out"
        yield Fault(place(section, "summaries"), text)
    if output.length is not None and not output.dims:
        text = "needs dims, since it is the length of the first dimension"
        yield Fault(place(section, "length"), text)


def _check_aggregate(spec: Spec) -> Iterator[Fault]:
    if spec.aggregate is None:
        return
    if spec.aggregate.call is None and not spec.aggregate.pools:
        text = "makes nothing; give it call, or tables such as [aggregate.NAME]"
        yield Fault(place("aggregate"), text)
    for name, pool in spec.aggregate.pools.items():
        section = f"aggregate.{name}"
        if not _NAME.fullmatch(name):
            text = "is no name for an aggregate; use letters, digits and underscores"
            yield Fault(place(section), text)
        if pool.output is None and pool.kind != "count":
            text = f"is missing; a {pool.kind} is made of one of the model's outputs"
            yield Fault(place(section, "output"), text)
        for level in pool.levels or ():
            if not 0 <= level <= 1:
                text = f"{level} is no quantile; levels lie between 0 and 1"
                yield Fault(place(section, "levels"), text)
        yield from _check_bins(section, pool)


def _check_bins(section: str, pool: Pool) -> Iterator[Fault]:
    """Yield keys that a pool of its kind has no use for, and bins that are none."""
    binned = ("edges", "bins", "low", "high")
    own = {"quantiles": ("levels",), "histogram": binned, "density": binned}
    for key in ("levels", *binned):
        if getattr(pool, key) is not None and key not in own.get(pool.kind, ()):
            kinds = " or ".join(kind for kind, keys in own.items() if key in keys)
            yield Fault(place(section, key), f"is for a {kinds}, not for a {pool.kind}")
    if pool.kind in ("histogram", "density"):
        try:
            find_edges(pool)
        except ValueError as error:
            yield Fault(place(section), str(error))


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


def _is_list(value: Any, good: Callable[[Any], Any]) -> bool:
    return isinstance(value, list) and all(map(good, value))


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
