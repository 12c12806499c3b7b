"""The spec: the user's TOML file, and the frozen dataclasses it becomes."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import itertools
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt

from mpiens.expression import Expression

Value = Any  # whatever TOML can say: number, string, boolean, date, list, table
Summary = Literal["final", "peak", "peak_time", "total"]

INJECTED = ("rng", "seed", "shared", "scenario", "replicate")
RESERVED = (  # what the result file itself calls its dimensions and groups
    *("scenario", "replicate", "level", "failure", "failures", "tasks"),
    *("parameters", "series", "bands", "summary", "comparison"),
)
DEFAULT_SCENARIO = "default"

_STRICT = {"extra": "forbid", "strict": True}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that the user can mend: where it stands, and what is wrong there."""

    place: str
    text: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.place}{': ' if self.place else ''}{self.text}"


class SpecError(ValueError):
    """The user's input is wrong: all faults at once, one sentence each."""

    def __init__(self, faults: list[Fault], path: str = "") -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.faults, self.path)

    def lines(self) -> Iterator[str]:
        """Yield one line per fault, as a compiler would print it."""
        for fault in self.faults:
            line = f":{fault.line}" if fault.line is not None else ""
            yield f"{self.path}{line}: {fault}" if self.path else str(fault)


@dataclass(frozen=True)
class Ensemble:
    """What is run, how often, and under which seed."""

    __pydantic_config__ = _STRICT
    model: str
    replicates: Annotated[int, Ge(1)]
    seed: Annotated[int, Ge(0)]
    pairing: Literal["common", "independent"] = "common"
    reduce: str | None = None


@dataclass(frozen=True)
class Shared:
    """Read-only data that all tasks use; loaded once."""

    __pydantic_config__ = _STRICT
    loader: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Output:
    """What the user says of one output; what is None comes from the first task."""

    __pydantic_config__ = _STRICT
    dims: tuple[str, ...] | None = None
    summaries: tuple[Summary, ...] = ()
    dtype: str | None = None
    units: str | None = None
    keep: bool = True
    length: Annotated[int, Ge(1)] | None = None


@dataclass(frozen=True)
class Bands:
    """Which quantiles over replicates are wanted, and what is compared with what."""

    __pydantic_config__ = _STRICT
    levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)
    baseline: str | None = None


@dataclass(frozen=True)
class Limits:
    """What a task may take, and how it is run."""

    __pydantic_config__ = _STRICT
    task_seconds: Annotated[float, Gt(0)] | None = None
    retries: Annotated[int, Ge(0)] = 0
    cost: str | None = None
    isolation: Literal["process", "none"] = "process"


@dataclass(frozen=True)
class Scenario:
    """One named point of the inputs."""

    name: str
    base: str | None
    axes: Mapping[str, Value]
    parameters: Mapping[str, Value]


@dataclass(frozen=True)
class Spec:
    """Everything the user asked for, with every default filled in."""

    ensemble: Ensemble
    parameters: Mapping[str, Value] = field(default_factory=dict)
    bases: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    sweep: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    shared: Shared | None = None
    outputs: Mapping[str, Output] = field(default_factory=dict)
    bands: Bands = field(default_factory=Bands)
    limits: Limits = field(default_factory=Limits)
    folder: str = "."

    @cached_property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The named scenarios crossed with the axes of the sweep, in order."""
        bases: dict[str | None, Mapping[str, Value]] = dict(self.bases.items())
        return tuple(
            Scenario(
                name=_name_scenario(base, axes),
                base=base,
                axes=axes,
                parameters={**self.parameters, **own, **axes},
            )
            for base, own in (bases or {None: {}}).items()
            for axes in _cross(self.sweep)
        )

    @property
    def replicates(self) -> int:
        """Replicates per scenario."""
        return self.ensemble.replicates

    @property
    def tasks(self) -> int:
        """How many (scenario, replicate) there are."""
        return len(self.scenarios) * self.replicates

    @property
    def common(self) -> bool:
        """Whether every scenario meets the same streams."""
        return self.ensemble.pairing == "common"

    def locate(self, task: int) -> tuple[int, int]:
        """Return the (scenario, replicate) of a task, both counted from 0."""
        return divmod(task, self.replicates)

    def number(self, scenario: int, replicate: int) -> int:
        """Return the task of a (scenario, replicate)."""
        return scenario * self.replicates + replicate

    @cached_property
    def baselines(self) -> tuple[int | None, ...]:
        """For each scenario the index of the one it is compared with, or None."""
        if (wanted := self.bands.baseline) is None:
            return (None,) * len(self.scenarios)
        index = {s.name: i for i, s in enumerate(self.scenarios)}
        return tuple(
            index[_name_scenario(wanted, s.axes) if wanted in self.bases else wanted]
            for s in self.scenarios
        )

    def document(self) -> dict[str, Any]:
        """Return the effective spec under the keys that the user writes."""
        parts = {
            "ensemble": dataclasses.asdict(self.ensemble),
            "parameters": dict(self.parameters),
            "scenarios": {name: dict(own) for name, own in self.bases.items()},
            "sweep": {axis: list(values) for axis, values in self.sweep.items()},
            "shared": dataclasses.asdict(self.shared) if self.shared else {},
            "outputs": {n: dataclasses.asdict(o) for n, o in self.outputs.items()},
            "bands": dataclasses.asdict(self.bands),
            "limits": dataclasses.asdict(self.limits),
        }
        return {name: _drop_none(part) for name, part in parts.items() if part}

    def to_json(self) -> str:
        """Return the effective spec as JSON, which is a spec again."""
        return json.dumps(self.document(), default=_encode_date, indent=1)


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
            document = json.loads(text, object_hook=_decode_date)
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
    return Reading(spec, faults, str(path))


def locate_faults(faults: list[Fault], path: str | Path) -> list[Fault]:
    """Give faults found later their lines in the spec's file."""
    path = Path(path)
    if path.suffix.lower() == ".json":
        return faults
    lines = _find_lines(path.read_text(encoding="utf-8"))
    return [dataclasses.replace(f, line=_line_of(f.place, lines)) for f in faults]


def place(section: str, *keys: str) -> str:
    """Write a place in the file as the user wrote it: ``[section] key``."""
    return " ".join([f"[{section}]", ".".join(keys)]) if keys else f"[{section}]"


def nearest(wrong: str, known: Any) -> str:
    """Return ``", did you mean ...?"`` where one of the known names is near."""
    found = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


class _Decoder:
    """Turns a document into a Spec section by section and collects the faults."""

    SECTIONS = (
        *("ensemble", "parameters", "scenarios", "sweep"),
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
        if tables["shared"]:
            shared = self.section("shared", Shared, tables["shared"])
            if shared is not None:  # with the dates that JSON does not know
                kwargs = tables["shared"].get("kwargs", {})
                shared = dataclasses.replace(shared, kwargs=kwargs)
        outputs = {
            name: self.section(f"outputs.{name}", Output, own) or Output()
            for name, own in self.tables("outputs", tables["outputs"])
        }
        bands = self.section("bands", Bands, tables["bands"])
        limits = self.section("limits", Limits, tables["limits"])
        spec = Spec(
            # a stand-in lets the other sections be checked all the same
            ensemble=ensemble or Ensemble(model="model:model", replicates=1, seed=0),
            parameters=tables["parameters"],
            bases=dict(self.tables("scenarios", tables["scenarios"])),
            sweep=self.sweep(tables["sweep"]),
            shared=shared,
            outputs=outputs,
            bands=bands or Bands(),
            limits=limits or Limits(),
            folder=folder,
        )
        self.faults += _check(spec)
        return spec if ensemble else None

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
            if not isinstance(values, list) or not values:
                text = f"should be a list of values, not {values!r}"
                self.fault(place("sweep", axis), text)
            else:
                axes[axis] = tuple(values)
        return axes

    def section(self, name: str, kind: type[Any], part: dict[str, Any]) -> Any:
        """Decode one section, or record its faults and return None."""
        # imported here since only the root decodes, and start-up on many ranks counts
        from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415

        try:
            # by way of JSON: there strict types go with tables and with tuples
            return TypeAdapter(kind).validate_json(json.dumps(part, default=str))
        except ValidationError as error:
            known = [f.name for f in dataclasses.fields(kind)]
            for item in error.errors(include_url=False):
                key, *inner = (str(part) for part in item["loc"])
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
            return None


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
        if text is not None and len([p for p in text.split(":") if p]) != 2:
            way = 'should read "file.py:function" or "package.module:function"'
            yield Fault(where, f"{text!r} {way}")


def _check_parameters(spec: Spec) -> Iterator[Fault]:
    tables = {"parameters": spec.parameters, "sweep": spec.sweep}
    tables |= {f"scenarios.{base}": own for base, own in spec.bases.items()}
    for section, table in tables.items():
        for name in table:
            if name in INJECTED:
                text = "is what mpiens itself passes to a model; choose another name"
                yield Fault(place(section, name), text)
            elif not _NAME.fullmatch(name):
                text = "cannot be an argument of a Python function; choose another name"
                yield Fault(place(section, name), text)
    for base, own in spec.bases.items():
        for name in own.keys() & spec.sweep.keys():
            text = f"is also an axis of [sweep]; keep {name} in one of the two"
            yield Fault(place(f"scenarios.{base}", name), text)


def _check_scenarios(spec: Spec) -> Iterator[Fault]:
    seen: set[str] = set()
    for scenario in spec.scenarios:
        if scenario.name in seen:
            text = f"gives scenario {scenario.name!r} twice; name each point once"
            yield Fault(place("sweep"), text)
        seen.add(scenario.name)


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
        except TypeError:
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
    if spec.limits.cost is not None:
        try:
            Expression(spec.limits.cost).check()
        except ValueError as error:
            yield Fault(place("limits", "cost"), str(error))


def _cross(sweep: Mapping[str, tuple[Value, ...]]) -> Iterator[dict[str, Value]]:
    """Yield every combination of the axes' values, the last axis fastest."""
    for values in itertools.product(*sweep.values()):
        yield dict(zip(sweep, values, strict=True))


def _name_scenario(base: str | None, axes: Mapping[str, Value]) -> str:
    parts = [base] if base is not None else []
    parts += [f"{axis}={_write_value(value)}" for axis, value in axes.items()]
    return ",".join(parts) or DEFAULT_SCENARIO


def _write_value(value: Value) -> str:
    bare = isinstance(value, str | datetime.date | datetime.time)
    return str(value) if bare else to_text(value)


def to_text(value: Value) -> str:
    """Write a parameter's value as JSON text; dates in ISO form."""
    return json.dumps(value, default=_write_date)


def _write_date(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value)


def _encode_date(value: Any) -> dict[str, str]:
    for kind in (datetime.datetime, datetime.date, datetime.time):
        if isinstance(value, kind):
            return {f"__{kind.__name__}__": value.isoformat()}
    raise TypeError(f"{value!r} cannot stand in a spec")


def _decode_date(table: dict[str, Any]) -> Any:
    for kind in (datetime.datetime, datetime.date, datetime.time):
        if table.keys() == {f"__{kind.__name__}__"}:
            return kind.fromisoformat(table[f"__{kind.__name__}__"])
    return table


def _drop_none(part: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _drop_none(value) if isinstance(value, dict) else value
        for key, value in part.items()
        if value is not None
    }


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
