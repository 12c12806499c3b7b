"""The result file as data: names, dimensions, shapes and types of all it holds.

Nothing here touches a file.  :func:`Layout.datasets` lists every dataset in the order
in which it is laid down.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from mpiens.bands import METHOD
from mpiens.calibrate import Domain
from mpiens.difference import LOWER
from mpiens.intervals import find_least
from mpiens.pool import find_coordinate
from mpiens.row import Output, Row
from mpiens.shard import Shard
from mpiens.spec import DEFAULT_SCENARIO, TRIAL, Spec, Takeoff, to_text
from mpiens.windows import WINDOW

PENDING, DONE, FAILED, UNUSED = range(4)
STATUS = ("pending", "done", "failed", "unused")
FAILURES = 1000  # failures kept with their text
FAILURE_BYTES = 8192
UNASKED, ASKED, SCORED, COMPLETE, FAILED_TRIAL = range(5)
TRIAL_STATE = ("pending", "running", "scored", "complete", "failed")
_NONE = b"null"  # a parameter as text, of a trial that was not asked for


@dataclass(frozen=True)
class Column:
    """One thing that is known of every trial of a calibration."""

    dtype: DTypeLike
    fill: Any
    attributes: Mapping[str, Any] = field(default_factory=dict)


_TIME = {"units": "seconds since 1970-01-01"}
_SECONDS = {"units": "s"}
TRIAL_COLUMNS = {
    "number": Column(np.int64, -1, {"long_name": "number in the study"}),
    "stream": Column(np.int64, -1, {"long_name": "what its random streams come of"}),
    "loss": Column(np.float64, np.nan, {"long_name": "weighted sum over targets"}),
    "asked": Column(np.float64, np.nan, _TIME),
    "simulated": Column(np.float64, np.nan, _TIME),
    "scored": Column(np.float64, np.nan, _TIME),
    "told": Column(np.float64, np.nan, _TIME),
    "told_order": Column(np.int64, -1, {"long_name": "how many were told before"}),
    "ask_seconds": Column(np.float64, np.nan, _SECONDS),
    "score_seconds": Column(np.float64, np.nan, _SECONDS),
    "tell_seconds": Column(np.float64, np.nan, _SECONDS),
    "state": Column(
        np.uint8,
        UNASKED,
        {
            "flag_values": np.arange(len(TRIAL_STATE), dtype=np.uint8),
            "flag_meanings": " ".join(TRIAL_STATE),
        },
    ),
}
"""By name; trials were asked for in the order of the file."""


@dataclass(frozen=True)
class Member:
    """One array of what was joined; in ``dims`` {} stands for the output's name."""

    dims: tuple[str, ...]
    long_name: str
    dtype: DTypeLike = np.float64
    fill: Any = np.nan
    measured: bool = False  # in the units of x, or of the output

    @property
    def of_points(self) -> bool:
        """Whether it is along the curve."""
        return self.dims == _POINT


_POINT, _OVERLAP = ("{}_point",), ("{}_overlap",)
JOINED = {
    "x": Member(_POINT, "x", measured=True),
    "y": Member(_POINT, "joined curve", measured=True),
    "error": Member(_POINT, "standard error", measured=True),
    "bootstrap_error": Member(
        _POINT, "standard error by bootstrap over replicates", measured=True
    ),
    "count": Member(_POINT, "pieces that a point rests on", np.int64, 0),
    "offset": Member(("piece",), "what was added to a piece", measured=True),
    "offset_error": Member(("piece",), "standard error of the offset", measured=True),
    "residuals/pair": Member((*_OVERLAP, "side"), "the two pieces", np.int64, -1),
    "residuals/points": Member(_OVERLAP, "points that both have", np.int64, 0),
    "residuals/rms": Member(
        _OVERLAP, "root mean square of their difference", measured=True
    ),
    "residuals/scaled": Member(
        _OVERLAP, "the same in units of its standard error: 1 where errors are right"
    ),
}
"""By name, in the group of an output; pieces are numbered from 0."""


@dataclass(frozen=True)
class Statistic:
    """One thing that is made of the replicates of each scenario."""

    dims: tuple[str, ...]  # between the scenario and those of the output
    long_name: str = ""
    measured: bool = True  # in the units of the output


BAND = "bands"
_BOUND = ("bound",)
STATISTICS = {
    BAND: Statistic(("level",)),
    "interval": Statistic(("level", "bound"), "confidence interval of the quantile"),
    "prediction": Statistic(
        ("prediction", "bound"), "where that share of future replicates will fall"
    ),
    "mean": Statistic(()),
    "std": Statistic(()),
}
"""By name; those of a whole output are along its dimensions too."""
MEAN_INTERVAL = "mean_interval"
DIFFERENCES = STATISTICS | {
    MEAN_INTERVAL: Statistic(_BOUND, "confidence interval of the mean difference")
}
VERDICTS = {
    "better": Statistic((), "probability of being better than the baseline", False),
    "better_interval": Statistic(_BOUND, "confidence interval of better", False),
    "averted": Statistic((), "(baseline - scenario) / baseline, of means", False),
    "averted_interval": Statistic(_BOUND, "confidence interval of averted", False),
    "reduction": Statistic((), "variance of the mean without pairing, by ours", False),
}
"""What is told of a summary beside the baseline's; for summaries alone."""


TAKEOFF = {
    "share": Statistic((), "share of replicates that took off", False),
    "share_interval": Statistic(_BOUND, "confidence interval of the share", False),
}
CENTRAL = {
    "region": Statistic(("central", "bound"), "what that share of curves covers"),
    "fences": Statistic(_BOUND, "beyond which a curve is outlying"),
    "box": Statistic(("central", "bound"), "curve box of that share of curves"),
    "depth": Statistic(("replicate",), "modified band depth", False),
    "score": Statistic(("replicate",), "share of groups that contain it", False),
    "outlying": Statistic(("replicate",), "1 where it leaves the fences", False),
    "peak_box": Statistic(("central", "bound"), "sizes of peaks of the curve box"),
    "peak_time_box": Statistic(
        ("central", "bound"), "steps at which curves of the curve box peak", False
    ),
}
"""What is told of whole curves: regions and depth by Sun and Genton, box and score by
Juul et al."""
ALONG = ("region", "fences", "box")
"""Those that are along the curve."""
_FACTOR = ("factor",)
INDICES = {
    "first": Statistic(_FACTOR, "share of the variance that is its alone", False),
    "first_interval": Statistic(
        (*_FACTOR, "bound"), "confidence interval of first", False
    ),
    "total": Statistic(_FACTOR, "share of the variance that it takes part in", False),
    "total_interval": Statistic(
        (*_FACTOR, "bound"), "confidence interval of total", False
    ),
}
"""What blocks of a Saltelli design tell of each parameter."""
CORRELATIONS = {
    "correlation": Statistic(_FACTOR, "rank correlation with the parameter", False),
    "correlation_interval": Statistic(
        (*_FACTOR, "bound"), "confidence interval of correlation", False
    ),
    "noise": Statistic((), "share of the variance that is of the replicates", False),
}
"""What the points of every sampled design tell."""
ROWS = "series"  # over all steps, beside an output's summaries


def place_statistic(path: str, name: str) -> str:
    """Return where a statistic is of the rows, or the summary, at a path.

    Rows are elsewhere (in /series), so the band takes the path itself.
    """
    rows = path.startswith(("/bands/", "/differences/")) or path.endswith(f"/{ROWS}")
    return path if rows and name == BAND else f"{path}.{name}"


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


@dataclass(frozen=True, eq=False)
class Series:
    """What was observed of an output, along its dimension: NaN where nothing was."""

    output: str
    values: NDArray[np.float64]
    scenario: str | None = None  # the one that it belongs to; else all


@dataclass(frozen=True)
class Joint:
    """How large what was joined of an output is; of the longest of several curves."""

    name: str
    points: int
    overlaps: int


@dataclass(frozen=True)
class Layout:
    """The whole file: what is known of it before any task has run but the first."""

    spec: Spec
    parameters: Mapping[str, tuple[Any, ...]]
    row: Row
    shard: Shard | None = None  # rows of its own tasks only, and nothing made of them
    aggregates: tuple[Output, ...] = ()  # what is made last, of each scenario
    joints: tuple[Joint, ...] = ()
    observed: Mapping[str, Series] = field(default_factory=dict)  # by target

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
        for output in self.row.banded:
            for kind in output.summaries or ("final",) * (len(output.dims) <= 1):
                yield output, kind

    def datasets(self, *, slim: bool = False) -> Iterator[Dataset]:
        """Yield every dataset; a slim file has no rows of outputs not to be kept."""
        yield from self._coordinates()
        yield from self._parameters()
        yield from self._tasks()
        yield from self._trials()
        yield from self._observed()
        yield from self._windows()
        if self.shard is None:
            yield from self._bands()
            yield from self._summaries()
            yield from self._takeoffs()
            yield from self._central()
            yield from self._sensitivity()
        yield from self._series(slim)
        yield from self.extension()

    def extension(self) -> Iterator[Dataset]:
        """Yield what is not laid down before all tasks are finished."""
        yield from self._aggregates()
        yield from self._joined()

    def _aggregates(self) -> Iterator[Dataset]:
        pools = self.spec.aggregate.pools if self.spec.aggregate else {}
        seen = {"level"}
        for output in self.aggregates:
            pool = pools.get(output.name)
            told = None if pool is None else find_coordinate(pool)
            for dim, size in zip(output.dims, output.shape, strict=True):
                if dim not in seen:
                    values = np.arange(size) if told is None else told
                    yield _coordinate(dim, values)
                told = None
                seen.add(dim)
            yield Dataset(
                f"/aggregate/{output.name}",
                ("scenario", *output.dims),
                (self.by_task[0], *output.shape),
                output.dtype,
                attributes={"units": output.units} if output.units else {},
            )

    def _joined(self) -> Iterator[Dataset]:
        """Yield what was joined: one curve, or one for each entry of ``curve``."""
        if not self.joints:
            return
        several, pieces = self.curve_shape
        curve: tuple[str, ...] = ("curve",) if several else ()
        piece = "piece" if self.spec.windows is None else WINDOW
        if several:
            names = [own.name for own in self.spec.curves]
            yield _coordinate("curve", names, long_name="what is joined apart")
        if self.spec.windows is None:
            yield _coordinate("piece", [*self.spec.pieces], long_name="scenario")
        yield _coordinate("side", np.arange(2), long_name="of an overlap")
        for joint in self.joints:
            path, sizes = f"/joined/{joint.name}", {}
            sizes[piece] = pieces
            sizes["side"] = 2
            for dim, size in (("point", joint.points), ("overlap", joint.overlaps)):
                sizes[f"{joint.name}_{dim}"] = size
                if size:
                    yield _coordinate(f"{joint.name}_{dim}", np.arange(size))
            for name, member in JOINED.items():
                if name.startswith("residuals/") and not joint.overlaps:
                    continue
                dims = [piece if dim == "piece" else dim for dim in member.dims]
                dims = [dim.format(joint.name) for dim in dims]
                yield Dataset(
                    f"{path}/{name}",
                    (*curve, *dims),
                    (*several, *(sizes[dim] for dim in dims)),
                    member.dtype,
                    fill=member.fill,
                    attributes=self._describe_joined(joint.name, name, member),
                )

    @property
    def curve_shape(self) -> tuple[tuple[int, ...], int]:
        """How many curves there are, if several, and how many pieces each has."""
        curves = self.spec.curves
        alone = len(curves) == 1 and curves[0].name == DEFAULT_SCENARIO
        return () if alone else (len(curves),), len(curves[0].scenarios)

    def _describe_joined(
        self, output: str, name: str, member: Member
    ) -> dict[str, str]:
        """Return the attributes of one array of what was joined."""
        join, told = self.spec.join[output], {"long_name": member.long_name}
        if name == "x":
            source = join.x
            if self.spec.windows is not None:
                told["long_name"] = self.spec.windows.parameter
        else:  # slopes have units that nobody has told
            source = None if join.derivative and not join.integrate else output
            if member.of_points:
                told["coordinates"] = "x"
        units = self.output(source).units if source and member.measured else None
        return told | ({"units": units} if units else {})

    def _windows(self) -> Iterator[Dataset]:
        """Yield the bins, and what they are extended to."""
        if self.spec.windows is None:
            return
        windows = self.spec.windows.cut()
        parameter = self.spec.windows.parameter
        yield _coordinate(WINDOW, np.arange(len(windows)), long_name="window")
        told = {
            "low": "lower end of the window",
            "high": "upper end of the window",
            "first": "lower edge of its own bin",
            "last": "upper edge of its own bin",
        }
        for name, text in told.items():
            data = np.array([getattr(window, name) for window in windows])
            yield Dataset(
                f"/windows/{name}",
                (WINDOW,),
                data.shape,
                np.float64,
                data=data,
                attributes={"long_name": text, "parameter": parameter},
            )

    def _coordinates(self) -> Iterator[Dataset]:
        names = [s.name for s in self.spec.scenarios]
        yield _coordinate("scenario", names, long_name="scenario")
        yield _coordinate("replicate", np.arange(self.spec.replicates))
        levels = np.array(self.spec.bands.levels, dtype=float)
        yield _coordinate("level", levels, long_name="quantile over replicates")
        yield _coordinate("bound", ["lower", "upper"], long_name="of an interval")
        if shares := self.spec.bands.shares:
            told = "share of future replicates"
            yield _coordinate("prediction", np.array(shares), long_name=told)
        if central := self.spec.bands.central:
            told = "share of all curves, the most central ones"
            yield _coordinate("central", np.array(central), long_name=told)
        count = min(FAILURES, math.prod(self.by_task))
        yield _coordinate("failure", np.arange(count))
        for dim, size in self.sizes.items():
            yield _coordinate(dim, np.arange(size))

    def _parameters(self) -> Iterator[Dataset]:
        sampled = self.spec.calibrate.parameters if self.spec.calibrate else {}
        for name, values in self.parameters.items():
            if name in sampled:
                path, count = f"/parameters/{name}", self.by_task[0]
                yield _parameter(path, "scenario", count, sampled[name])
                continue
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
            "ended": (np.float64, np.nan, _TIME),
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

    def _trials(self) -> Iterator[Dataset]:
        """Yield what is known of a calibration's trials."""
        if (calibrate := self.spec.calibrate) is None:
            return
        count = calibrate.trials
        yield _coordinate(TRIAL, np.arange(count))
        for name, column in TRIAL_COLUMNS.items():
            yield Dataset(
                f"/trials/{name}",
                (TRIAL,),
                (count,),
                column.dtype,
                fill=column.fill or None,  # zeros need no filling
                attributes=column.attributes,
            )
        for name in calibrate.targets:
            path = f"/trials/target/{name}"
            yield Dataset(path, (TRIAL,), (count,), np.float64, fill=np.nan)
        for name, domain in calibrate.parameters.items():
            yield _parameter(f"/trials/parameter/{name}", TRIAL, count, domain)

    def _observed(self) -> Iterator[Dataset]:
        for name, series in self.observed.items():
            told = {"output": series.output}
            told |= {"scenario": series.scenario} if series.scenario else {}
            output = self.output(series.output)
            yield Dataset(
                f"/observed/{name}",
                output.dims,
                output.shape,
                np.float64,
                data=series.values,
                attributes=told,
            )

    def _bands(self) -> Iterator[Dataset]:
        for output in self.row.banded:
            path = f"/bands/{output.name}"
            yield from self._statistics(path, STATISTICS, output)
        for output in self.row.banded if self.has_baseline else ():
            path = f"/differences/{output.name}"
            yield from self._statistics(path, DIFFERENCES, output)

    def list_statistics(self, path: str, output: Output) -> list[str]:
        """Return where an output's bands or differences are, and what is beside."""
        differences = path.startswith("/differences/")
        statistics = DIFFERENCES if differences else STATISTICS
        return [dataset.path for dataset in self._statistics(path, statistics, output)]

    def count_statistics(self, differences: bool) -> int:
        """Return how many numbers describe the replicates of one entry."""
        statistics = DIFFERENCES if differences else STATISTICS
        sizes = self._statistic_sizes
        return sum(math.prod(sizes[d] for d in s.dims) for s in statistics.values())

    @property
    def _statistic_sizes(self) -> dict[str, int]:
        bands = self.spec.bands
        return {"level": len(bands.levels), "bound": 2, "prediction": len(bands.shares)}

    def curved(self) -> Iterator[Output]:
        """Yield every output whose curves are ranked as wholes, where that is asked."""
        if self.spec.bands.central:
            yield from self._lines()

    def _lines(self) -> Iterator[Output]:
        yield from (o for o in self.row.banded if len(o.dims) == 1)

    def analysed(self) -> Iterator[tuple[Output, str]]:
        """Yield all of which it is said what the parameters of a design do to it.

        That is (output, summary), or ROWS for an output over all its steps.
        """
        if self.sensitivities:
            yield from self.summaries()
            yield from ((output, ROWS) for output in self._lines())

    @property
    def sensitivities(self) -> Mapping[str, Statistic]:
        """What is told of the parameters of a design, where one is sampled."""
        design = self.spec.design
        if design is None or not design.sampled:
            return {}
        return (INDICES if design.block > 1 else {}) | CORRELATIONS

    def _sensitivity(self) -> Iterator[Dataset]:
        """Yield what the parameters of a design do."""
        if (design := self.spec.design) is None:
            return
        cases = [case.name for case in self.spec.cases]
        sizes = {"case": len(cases), "factor": len(design.ranges), "bound": 2}
        for number, (output, kind) in enumerate(self.analysed()):
            if number == 0:
                told = "all points of the design, under what else is varied"
                yield _coordinate("case", cases, long_name=told)
                told = "parameter of the design"
                yield _coordinate("factor", [*design.ranges], long_name=told)
            along = output if kind == ROWS else Output(output.name, (), (), "<f8")
            for name, own in self.sensitivities.items():
                dims = ("case", *own.dims)
                confidence = {"confidence": self.spec.bands.confidence}
                yield Dataset(
                    f"/sensitivity/{output.name}/{kind}.{name}",
                    (*dims, *along.dims),
                    (*(sizes[dim] for dim in dims), *along.shape),
                    np.float64,
                    fill=np.nan,
                    attributes={"long_name": own.long_name}
                    | (confidence if name.endswith("interval") else {}),
                )

    def _central(self) -> Iterator[Dataset]:
        """Yield what is told of whole curves."""
        sizes = {"central": len(self.spec.bands.central), "bound": 2}
        sizes["replicate"] = self.by_task[1]
        for output in self.curved():
            for name, own in CENTRAL.items():
                along = name in ALONG
                told = {"long_name": own.long_name}
                told |= {"units": output.units} if output.units and own.measured else {}
                shape = [sizes[dim] for dim in own.dims]
                yield Dataset(
                    f"/curvewise/{output.name}/{name}",
                    ("scenario", *own.dims, *(output.dims if along else ())),
                    (self.by_task[0], *shape, *(output.shape if along else ())),
                    np.uint8 if name == "outlying" else np.float64,
                    fill=None if name == "outlying" else np.nan,
                    attributes=told,
                )

    def takeoffs(self) -> Iterator[tuple[Output, Takeoff]]:
        """Yield every output of which it is said when a replicate took off."""
        for output in self.row.banded:
            own = self.spec.outputs.get(output.name)
            if own is not None and own.takeoff is not None:
                yield output, own.takeoff

    def _takeoffs(self) -> Iterator[Dataset]:
        """Yield what describes those replicates alone that took off."""
        for output, takeoff in self.takeoffs():
            path = f"/takeoff/{output.name}"
            for name, statistic in TAKEOFF.items():
                yield Dataset(
                    f"{path}/{name}",
                    ("scenario", *statistic.dims),
                    (self.by_task[0], *(2 for _ in statistic.dims)),
                    np.float64,
                    fill=np.nan,
                    attributes={"long_name": statistic.long_name}
                    | {"summary": takeoff.summary, "above": takeoff.above},
                )
            yield from self._statistics(f"{path}/{ROWS}", STATISTICS, output)
            for own, kind in self.summaries():
                if own.name == output.name:
                    yield from self._summary(f"{path}/{kind}", STATISTICS, own, kind)

    def _summary(
        self, path: str, statistics: Mapping[str, Statistic], output: Output, kind: str
    ) -> Iterator[Dataset]:
        """Yield what describes a summary's replicates."""
        units = output.units if kind != "peak_time" else None
        scalar = Output(output.name, (), (), "<f8", units=units)
        yield from self._statistics(path, statistics, scalar)

    def _statistics(
        self, path: str, statistics: Mapping[str, Statistic], output: Output
    ) -> Iterator[Dataset]:
        """Yield what describes the replicates of each scenario."""
        sizes = self._statistic_sizes
        for name, statistic in statistics.items():
            if not all(sizes[dim] for dim in statistic.dims):
                continue
            yield Dataset(
                place_statistic(path, name),
                ("scenario", *statistic.dims, *output.dims),
                (self.by_task[0], *(sizes[d] for d in statistic.dims), *output.shape),
                np.float64,
                fill=np.nan,
                attributes=self._describe_statistic(name, statistic, output),
            )

    def _describe_statistic(
        self, name: str, statistic: Statistic, output: Output
    ) -> dict[str, Any]:
        bands = self.spec.bands
        told: dict[str, Any] = {}
        if output.units and statistic.measured:
            told["units"] = output.units
        if statistic.long_name:
            told["long_name"] = statistic.long_name
        if name == BAND:
            told["quantile_method"] = METHOD
        if name.endswith("interval"):
            told["confidence"] = bands.confidence
        if name == "interval":  # NaN where there are fewer
            least = [find_least(level, bands.confidence) for level in bands.levels]
            told["least_replicates"] = np.array(least, dtype=np.int64)
        if name == "better":
            told["better"] = bands.better or LOWER
        return told

    def _summaries(self) -> Iterator[Dataset]:
        groups = {"summary": STATISTICS}
        if self.has_baseline:
            groups["comparison"] = DIFFERENCES | VERDICTS
        for group, statistics in groups.items():
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
                yield from self._summary(path, statistics, output, kind)

    def _series(self, slim: bool) -> Iterator[Dataset]:
        for output in self.row.stored:
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


def pack_parameter(domain: Domain, value: Any) -> Any:
    """Return a calibrated parameter's value as the file has it."""
    return value if _is_numeric(domain) else json.dumps(value).encode()


def unpack_parameter(domain: Domain, stored: Any) -> Any:
    """Return a calibrated parameter's value as the model is given it."""
    value = stored.item() if _is_numeric(domain) else json.loads(stored)
    if domain.choices is not None:
        truth = isinstance(value, bool)  # which is 0 or 1 for Python, and not for us
        same = (c for c in domain.choices if c == value)
        return next(c for c in same if isinstance(c, bool) == truth)
    return int(value) if domain.scale == "integer" else value


def _is_numeric(domain: Domain) -> bool:
    """Whether a parameter's values are told apart as numbers of the file."""
    choices = domain.choices or ()
    return all(map(_is_number, choices)) and len({*choices}) == len(choices)


def _parameter(path: str, dim: str, count: int, domain: Domain) -> Dataset:
    """Return the dataset of a calibrated parameter, which is filled trial by trial."""
    if _is_numeric(domain):
        return Dataset(path, (dim,), (count,), np.float64, fill=np.nan)
    texts = [_NONE, *(pack_parameter(domain, c) for c in domain.choices or ())]
    return Dataset(path, (dim,), (count,), f"S{max(map(len, texts))}", fill=_NONE)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _fits_int64(value: Any) -> bool:
    return isinstance(value, int) and -(2**63) <= value < 2**63


def _coordinate(name: str, values: Any, **attributes: str) -> Dataset:
    data = np.array(values, dtype=object if isinstance(values, list) else None)
    return Dataset(
        f"/{name}", (name,), data.shape, data.dtype, data=data, attributes=attributes
    )
