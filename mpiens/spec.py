"""The spec: what the user asks for, as frozen dataclasses."""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from mpiens.calibrate import Calibrate
from mpiens.cube import cross
from mpiens.curves import Join
from mpiens.design import POINT, Design
from mpiens.fault import place
from mpiens.windows import HIGH, LOW, Windows, name_window

Value = Any  # whatever TOML can say: number, string, boolean, date, list, table
Summary = Literal["final", "peak", "peak_time", "total"]
PoolKind = Literal["count", "mean", "sum", "quantiles", "histogram", "density"]
Format = Literal["csv", "npy", "hdf5", "json", "text"]
STANDARD_OUTPUT = "-"
INJECTED = ("rng", "seed", "shared", "scenario", "replicate", "prepared")
RESERVED = (  # what the result file itself calls its dimensions and groups
    *("scenario", "replicate", "level", "failure", "failures", "tasks"),
    *("parameters", "series", "bands", "summary", "comparison", "aggregate"),
    *("trial", "trials", "observed", "differences", "bound", "prediction"),
    *("takeoff", "central", "curvewise", "sensitivity", "case", "factor"),
)
DEFAULT_SCENARIO = "default"
TRIAL = "trial"  # what the scenarios of a calibration are named by: trial=17
RAGGED = "*"  # a dimension whose length differs from replicate to replicate
_STRICT = {"extra": "forbid", "strict": True}


class Step(IntEnum):
    """What is run once per scenario, before its replicates or after them.

    A calibration's trials are scored: of that step there is one per trial.  Curves are
    joined by the root: the step of the first scenario of a curve stands for that.
    """

    PREPARE = 0
    AGGREGATE = 1
    SCORE = 2
    JOIN = 3


@dataclass(frozen=True)
class Ensemble:
    """What is run, how often, and under which seed."""

    __pydantic_config__ = _STRICT
    model: str | None
    """Where the model is: `"model.py:simulate"` beside the spec, or
    `"package.module:function"`. Not with `[model] command`.
    """
    replicates: Annotated[int, Ge(1)]
    """How often each scenario is run, each time under a random stream of its own."""
    seed: Annotated[int, Ge(0)]
    """What all random streams come from: the same seed gives the same answer, bit for
    bit.
    """
    pairing: Literal["common", "independent"] = "common"
    """`"common"`: replicate k of every scenario meets the same stream, so that
    differences are not drowned in noise. `"independent"`: none do.
    """
    reduce: str | None = None
    """A function, such as `"model.py:reduce"`, that makes the outputs of whatever the
    model returns, where the model runs.
    """


@dataclass(frozen=True)
class Read:
    """What is read of the files that a program leaves: one output."""

    __pydantic_config__ = _STRICT
    file: str = STANDARD_OUTPUT
    """A file in the task's folder; `"-"` is what the program wrote to standard output.
    """
    format: Format | None = None
    """How to read it; by default the suffix tells."""
    column: int | str | None = None
    """Which part: a column by its name or number (from 0), the path of a dataset
    (`hdf5`), or a dotted key (`json`).
    """


@dataclass(frozen=True)
class Model:
    """A program that is the model; or how a Python model is run."""

    __pydantic_config__ = _STRICT
    command: tuple[str, ...] = ()
    """How the program is started: a text that is split as by a shell, or a list of
    words. With a slash it is beside the spec, else on the `PATH`. Fields in braces are
    filled: parameters, `{seed}`, `{scenario}`, `{replicate}`, `{workdir}`, `{folder}`,
    `{shared}`.
    """
    stdin: str | None = None
    """What it reads from standard input, fields filled."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Files that are written into the task's folder: their names, and templates whose
    fields are filled.
    """
    read: Mapping[str, Read] = field(default_factory=dict)
    """What is read when it has ended: an output each, `[model.read.NAME]`."""
    fresh: Literal["runner", "task"] = "runner"
    """`"task"`: every task of a Python model runs in a fork of a process in which no
    task has been, for simulators that keep global state.
    """


@dataclass(frozen=True)
class Shared:
    """Read-only data that all tasks use; loaded once."""

    __pydantic_config__ = _STRICT
    loader: str
    """A function that returns the data, such as `"model.py:load"`: called once per
    node; arrays within it lie in memory once per node.
    """
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """What it is called with; paths are relative to the spec."""
    mapped: bool = False
    """`true`: files that it maps (`np.load(path, mmap_mode="r")`) are mapped by every
    rank instead of read.
    """


@dataclass(frozen=True)
class Prepare:
    """A step per scenario, run once before its replicates."""

    __pydantic_config__ = _STRICT
    call: str
    """A function, such as `"model.py:prepare"`, that is run once per scenario before
    its replicates, on any rank. It is given those parameters that it names, `rng`,
    `seed`, `shared` and `scenario`; what it returns reaches the model as `prepared`.
    """


@dataclass(frozen=True)
class Pool:
    """A number, or an array of them, made of one output of all of a scenario's tasks.

    ``edges``, or else ``bins`` of equal width from ``low`` to ``high`` (of equal ratio
    where ``scale`` is log), are those of a histogram or density.
    """

    __pydantic_config__ = _STRICT
    kind: PoolKind
    """What is made of all replicates of a scenario."""
    output: str | None = None
    """Of which output; by default the one of the same name."""
    levels: tuple[float, ...] | None = None
    """Of `quantiles`: which."""
    edges: tuple[float, ...] | None = None
    """Of `histogram` and `density`: the edges of bins."""
    bins: Annotated[int, Ge(1)] | None = None
    """Or their number, between `low` and `high`."""
    low: float | None = None
    """Lower end of the bins."""
    high: float | None = None
    """Upper end of the bins."""
    scale: Literal["linear", "log"] = "linear"
    """Bins of equal width, or of equal ratio."""


@dataclass(frozen=True)
class Aggregate:
    """What is made of all replicates of a scenario: by a function, or by mpiens."""

    __pydantic_config__ = _STRICT
    call: str | None = None
    """A function, such as `"model.py:aggregate"`, that is run once per scenario when
    all its replicates are there. It is given `outputs` (each stacked over the
    replicates, a ragged one as a list of arrays), `parameters` and `target`, and where
    it names them `scenario`, `replicates`, `rng` and `seed`; it returns numbers or
    arrays by name.
    """
    target: str | None = None
    """A CSV file whose columns it is given."""
    pools: Mapping[str, Pool] = field(default_factory=dict)
    """Numbers without a function: `[aggregate.NAME]`."""


@dataclass(frozen=True)
class Takeoff:
    """Which replicates took off: those of which a summary lies above a number."""

    __pydantic_config__ = _STRICT
    summary: Summary
    """Which summary tells."""
    above: float
    """What it has to lie above."""


@dataclass(frozen=True)
class Output:
    """What the user says of one output; what is None comes from the first task."""

    __pydantic_config__ = _STRICT
    dims: tuple[str, ...] | None = None
    """What its axes are called. `["*"]` is one whose length differs between replicates,
    up to `length`: rows are filled up with NaN, their lengths lie beside them, and
    there are no bands of them.
    """
    summaries: tuple[Summary, ...] = ()
    """Numbers that are made of each replicate; by default the final one."""
    dtype: str | None = None
    """How it is stored, such as `"float32"`; by default as the model returns it."""
    units: str | None = None
    """What stands at axes and in the file."""
    keep: bool = True
    """`false`: rows are dropped once bands are made of them."""
    finite: bool = False
    """`true`: NaN and infinity fail a task."""
    length: Annotated[int, Ge(1)] | None = None
    """The longest row, where scenarios or replicates differ; shorter ones are filled up
    with NaN.
    """
    takeoff: Takeoff | None = None
    """When a replicate took off, as `{ summary = "peak", above = 100 }`; the share of
    those that did is told, and bands of them alone.
    """

    @property
    def ragged(self) -> bool:
        """Whether lengths differ from replicate to replicate."""
        return self.dims is not None and RAGGED in self.dims


@dataclass(frozen=True)
class Bands:
    """Which quantiles over replicates are wanted, and what is compared with what."""

    __pydantic_config__ = _STRICT
    levels: tuple[float, ...] = (0.05, 0.25, 0.5, 0.75, 0.95)
    """Quantiles over the replicates, rising."""
    baseline: str | None = None
    """The scenario that others are compared with."""
    better: Literal["lower", "higher"] | None = None
    """Which way is better, for what is said of a comparison."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    """How sure all intervals are."""
    central: tuple[Annotated[float, Gt(0), Le(1)], ...] = ()
    """Shares of whole curves whose central regions are wanted, such as `[0.5, 0.9]`."""

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares between levels as far from both ends, the widest first."""
        pairs = zip(self.levels, reversed(self.levels), strict=True)
        return tuple(
            round(high - low, 12)
            for low, high in pairs
            if 0 < low < high and math.isclose(low + high, 1.0)
        )


@dataclass(frozen=True)
class Precision:
    """How tight an interval is to be, and how many replicates that may take.

    The interval is that of the mean, or of the quantile at ``level``: of a summary, or
    of every entry of an output, or of its ``difference`` from the baseline's.
    """

    __pydantic_config__ = _STRICT
    output: str
    """What is to be known tightly."""
    max_replicates: Annotated[int, Ge(1)]
    """How many replicates a scenario may take."""
    batch: Annotated[int, Ge(1)]
    """How many are added to a scenario that is still too wide."""
    summary: Summary | None = None
    """A summary of the output; without one every entry of it."""
    level: Annotated[float, Gt(0), Lt(1)] | None = None
    """The interval is that of this quantile; without one that of the mean."""
    difference: bool = False
    """`true`: of the difference from the baseline."""
    width: Annotated[float, Gt(0)] | None = None
    """How wide the interval may be, in the units of the output."""
    relative: Annotated[float, Gt(0)] | None = None
    """Or how wide beside what it encloses: 0.1 for 95 to 105."""
    confidence: Annotated[float, Gt(0), Lt(1)] = 0.95
    """How sure the interval is."""

    @property
    def wanted(self) -> float:
        """The width that is asked for, be it absolute or relative."""
        return self.width or self.relative or math.inf


@dataclass(frozen=True)
class Limits:
    """What a task may take, and how it is run."""

    __pydantic_config__ = _STRICT
    task_seconds: Annotated[float, Gt(0)] | None = None
    """Seconds after which a task has failed."""
    task_memory: Annotated[int, Ge(1)] | None = None
    """Bytes beyond which a task has failed."""
    retries: Annotated[int, Ge(0)] = 0
    """How often a failed task is tried again, under the same stream."""
    max_failed: Annotated[int | float, Ge(0)] | None = None
    """How many tasks may fail before a run is given up: a number, or a share such as
    `0.1`.
    """
    heartbeat: Annotated[float, Gt(0)] = 30.0
    """Seconds after which a rank that has been stopped is ended."""
    cost: str | None = None
    """What a task takes, up to a factor, such as `"days * agents"`: the longest go
    first.
    """
    isolation: Literal["process", "none"] = "process"
    """`"none"`: the model runs in the rank itself, for debuggers."""


@dataclass(frozen=True)
class Scenario:
    """One named point of the inputs."""

    name: str
    base: str | None
    axes: Mapping[str, Value]
    parameters: Mapping[str, Value]
    point: str | None = None  # of a design
    window: int | None = None


@dataclass(frozen=True)
class Group:
    """Scenarios that belong together: pieces of a curve, or points of a design."""

    name: str
    scenarios: tuple[int, ...]


@dataclass(frozen=True)
class Spec:
    """Everything the user asked for, with every default filled in."""

    ensemble: Ensemble
    parameters: Mapping[str, Value] = field(default_factory=dict)
    bases: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    sweep: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    model: Model = field(default_factory=Model)
    shared: Shared | None = None
    prepare: Prepare | None = None
    outputs: Mapping[str, Output] = field(default_factory=dict)
    aggregate: Aggregate | None = None
    bands: Bands = field(default_factory=Bands)
    limits: Limits = field(default_factory=Limits)
    folder: str = "."
    zips: tuple[tuple[str, ...], ...] = ()
    excluded: tuple[Mapping[str, Value], ...] = ()
    design: Design | None = None
    calibrate: Calibrate | None = None
    windows: Windows | None = None
    join: Mapping[str, Join] = field(default_factory=dict)
    precision: Precision | None = None
    # the bases that came from [scenarios] file: what is wrong in them is told once
    filed: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @cached_property
    def scenarios(self) -> tuple[Scenario, ...]:
        """The named scenarios crossed with sweep, design and windows, in order.

        Those of a calibration are its trials crossed with the named scenarios.
        """
        if self.calibrate is not None:
            return tuple(self._name_trials(self.calibrate.trials))
        cube = [*cross(self.sweep, self.zips, self.excluded)]
        points = [*_name_points(self.design)]
        windows = [*_name_windows(self.windows)]
        bases: dict[str | None, Mapping[str, Value]] = dict(self.bases.items())
        return tuple(
            Scenario(
                name=_name_scenario(base, axes, point, window),
                base=base,
                axes=axes,
                parameters={**self.parameters, **own, **axes, **sampled, **bounds},
                point=point,
                window=window,
            )
            for base, own in (bases or {None: {}}).items()
            for axes in cube
            for point, sampled in points
            for window, bounds in windows
        )

    @cached_property
    def curves(self) -> tuple[Group, ...]:
        """The curves to be joined: of windows, or else of the named scenarios.

        All of them have equally many pieces.
        """
        windowed = self.windows is not None
        return self._group(
            lambda s: _name_scenario(s.base if windowed else None, s.axes, s.point)
        )

    @cached_property
    def cases(self) -> tuple[Group, ...]:
        """For everything else that is varied, the scenarios of all points of a design.

        All of them have all points, in order.
        """
        return self._group(lambda s: _name_scenario(s.base, s.axes, None, s.window))

    def _group(self, name: Callable[[Scenario], str]) -> tuple[Group, ...]:
        found: dict[str, list[int]] = {}
        for index, scenario in enumerate(self.scenarios):
            found.setdefault(name(scenario), []).append(index)
        return tuple(Group(name, tuple(own)) for name, own in found.items())

    @property
    def pieces(self) -> tuple[str, ...]:
        """The names of the pieces of each curve: windows, or else named scenarios."""
        if self.windows is not None:
            return tuple(map(name_window, range(len(self.windows.cut()))))
        return tuple(self.bases)

    def given(self) -> Iterator[tuple[str, str]]:
        """Yield (place, parameter) of whatever the spec gives, each once."""
        found = {place("parameters", name): name for name in self.parameters}
        found |= {place("sweep", name): name for name in self.sweep}
        for base, own in self.bases.items():
            found |= {self.place_own(base, name): name for name in own}
        if self.design is not None:
            found |= {self.design.place(name): name for name in self.design.points}
        found |= {place(f"calibrate.parameters.{n}"): n for n in self.calibrated}
        if self.windows is not None:
            found |= {place("windows", name): name for name in (LOW, HIGH)}
        yield from found.items()

    def place_own(self, base: str, name: str) -> str:
        """Return the place of a named scenario's own parameter."""
        if base in self.filed:
            return place("scenarios", "file", name)
        return place(f"scenarios.{base}", name)

    @property
    def fresh(self) -> bool:
        """Whether every task gets a process that none was run in before."""
        return self.model.fresh == "task"

    @property
    def simulator(self) -> str:
        """The model in one line, as the user names it."""
        return self.ensemble.model or " ".join(self.model.command)

    @property
    def model_key(self) -> tuple[str, str]:
        """Section and key of the spec that name the model."""
        return ("model", "command") if self.model.command else ("ensemble", "model")

    @property
    def calibrated(self) -> tuple[str, ...]:
        """The parameters that every trial of a calibration is given anew."""
        return tuple(self.calibrate.parameters) if self.calibrate else ()

    @property
    def per_trial(self) -> int:
        """How many scenarios a trial of a calibration has."""
        return max(1, len(self.bases))

    @property
    def replicates(self) -> int:
        """Replicates per scenario, at most."""
        if self.precision is not None:
            return max(self.ensemble.replicates, self.precision.max_replicates)
        return self.ensemble.replicates

    @property
    def tasks(self) -> int:
        """How many (scenario, replicate) there are."""
        return len(self.scenarios) * self.replicates

    @property
    def common(self) -> bool:
        """Whether every scenario meets the same streams."""
        return self.ensemble.pairing == "common"

    def most_failed(self, tasks: int) -> float:
        """Return how many of a run's tasks may fail before it is given up."""
        most = self.limits.max_failed
        if most is None:
            return float("inf")
        return most if isinstance(most, int) else most * tasks

    def locate(self, task: int) -> tuple[int, int]:
        """Return the (scenario, replicate) of a task, both counted from 0."""
        return divmod(task, self.replicates)

    def number(self, scenario: int, replicate: int) -> int:
        """Return the task of a (scenario, replicate)."""
        return scenario * self.replicates + replicate

    def step(self, kind: Step, scenario: int) -> int:
        """Return the number of a scenario's step: those after the last task."""
        return self.tasks + kind * len(self.scenarios) + scenario

    def scenario_of(self, number: int) -> int:
        """Return the scenario of a task or step."""
        return self.step_of(number)[1]

    def trial_of(self, number: int) -> int:
        """Return the trial of a calibration's task, or of its scoring."""
        step, index = self.step_of(number)
        return index // self.per_trial if step is None else index

    def input_of(self, number: int) -> int:
        """Return the key of what a task or step is given: that of its scenario.

        What a trial is scored by has keys of its own, beyond those of the scenarios.
        """
        step, index = self.step_of(number)
        return index + len(self.scenarios) if step is Step.SCORE else index

    def step_of(self, number: int) -> tuple[Step | None, int]:
        """Return (step, scenario) of a number that the queue deals; None for a task."""
        if number < self.tasks:
            return None, number // self.replicates
        kind, scenario = divmod(number - self.tasks, len(self.scenarios))
        return Step(kind), scenario

    @cached_property
    def baselines(self) -> tuple[int | None, ...]:
        """For each scenario the index of the one it is compared with, or None."""
        if (wanted := self.bands.baseline) is None:
            return (None,) * len(self.scenarios)
        index = {s.name: i for i, s in enumerate(self.scenarios)}
        return tuple(
            index[
                _name_scenario(wanted, s.axes, s.point, s.window)
                if wanted in self.bases
                else wanted
            ]
            for s in self.scenarios
        )

    def document(self) -> dict[str, Any]:
        """Return the effective spec under the keys that the user writes."""
        parts = {
            "ensemble": _drop_none(self.ensemble),
            "model": _drop_default(self.model),
            "parameters": dict(self.parameters),
            "scenarios": {name: dict(own) for name, own in self.bases.items()},
            "sweep": {axis: list(values) for axis, values in self.sweep.items()},
            "design": self.design.document() if self.design else {},
            "windows": self.windows.document() if self.windows else {},
            "shared": _drop_none(self.shared) if self.shared else {},
            "prepare": _drop_none(self.prepare) if self.prepare else {},
            "outputs": {n: _drop_none(own) for n, own in self.outputs.items()},
            "aggregate": _write_aggregate(self.aggregate) if self.aggregate else {},
            "join": {name: own.document() for name, own in self.join.items()},
            "bands": _drop_none(self.bands),
            "precision": _drop_none(self.precision) if self.precision else {},
            "limits": _drop_none(self.limits),
            "calibrate": self.calibrate.document() if self.calibrate else {},
        }
        if self.zips:
            parts["sweep"]["zip"] = [list(group) for group in self.zips]
        if self.excluded:
            parts["sweep"]["exclude"] = [dict(entry) for entry in self.excluded]
        return {name: part for name, part in parts.items() if part}

    def _name_trials(self, trials: int) -> Iterator[Scenario]:
        """Yield the scenarios of a calibration; what is sampled is not known yet."""
        bases: dict[str | None, Mapping[str, Value]] = dict(self.bases.items())
        for number in range(trials):
            for base, own in (bases or {None: {}}).items():
                yield Scenario(
                    name=name_trial(number, base),
                    base=base,
                    axes={},
                    parameters={**self.parameters, **own},
                )

    def to_json(self) -> str:
        """Return the effective spec as JSON, which is a spec again."""
        return json.dumps(self.document(), default=_encode_date, indent=1)


def name_trial(number: int, base: str | None) -> str:
    """Return the name of a trial's scenario, such as ``trial=17,masks``."""
    return f"{TRIAL}={number}" if base is None else f"{TRIAL}={number},{base}"


def to_text(value: Value) -> str:
    """Write a parameter's value as JSON text; dates in ISO form."""
    return json.dumps(value, default=_write_date)


def _name_points(
    design: Design | None,
) -> Iterator[tuple[str | None, Mapping[str, Value]]]:
    """Yield the points of a design, each with its name."""
    if design is None:
        yield None, {}
        return
    for number, values in enumerate(zip(*design.points.values(), strict=True)):
        point = dict(zip(design.points, values, strict=True))
        if design.sampled:
            yield f"{POINT}={number}", point
        elif design.labels is not None:
            yield design.labels[number], point
        else:
            yield _name_scenario(None, point), point


def _name_windows(
    windows: Windows | None,
) -> Iterator[tuple[int | None, Mapping[str, float]]]:
    """Yield the number of every window, and what the model is given of it."""
    if windows is None:
        yield None, {}
        return
    for index, window in enumerate(windows.cut()):
        yield index, window.parameters


def _name_scenario(
    base: str | None,
    axes: Mapping[str, Value],
    point: str | None = None,
    window: int | None = None,
) -> str:
    parts = [base] if base is not None else []
    parts += [f"{axis}={_write_value(value)}" for axis, value in axes.items()]
    parts += [point] if point is not None else []
    parts += [name_window(window)] if window is not None else []
    return ",".join(parts) or DEFAULT_SCENARIO


def _write_value(value: Value) -> str:
    bare = isinstance(value, str | datetime.date | datetime.time)
    return str(value) if bare else to_text(value)


def _write_date(value: Any) -> str:
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return repr(value)


def _encode_date(value: Any) -> dict[str, str]:
    for kind in (datetime.datetime, datetime.date, datetime.time):
        if isinstance(value, kind):
            return {f"__{kind.__name__}__": value.isoformat()}
    raise TypeError(f"{value!r} cannot stand in a spec")


def decode_date(table: dict[str, Any]) -> Any:
    """Return the date that a JSON table stands for, or the table: a hook for json."""
    for kind in (datetime.datetime, datetime.date, datetime.time):
        if table.keys() == {f"__{kind.__name__}__"}:
            return kind.fromisoformat(table[f"__{kind.__name__}__"])
    return table


def _write_aggregate(section: Aggregate) -> dict[str, Any]:
    pools = {name: _drop_none(pool) for name, pool in section.pools.items()}
    return {k: v for k, v in _drop_none(section).items() if k != "pools"} | pools


def _drop_default(model: Model) -> dict[str, Any]:
    """Return a section of a model as the user writes it; nothing where none is."""
    if model == Model():
        return {}
    read = {name: _drop_none(own) for name, own in model.read.items()}
    fields = _drop_none(model) | {"read": read}
    return {key: value for key, value in fields.items() if value}


def _drop_none(section: Any) -> dict[str, Any]:
    """Return a section as the user writes it, without keys that are not given."""
    fields = dataclasses.asdict(section)
    return {key: value for key, value in fields.items() if value is not None}
