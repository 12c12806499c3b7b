"""What no single section of a spec can know to be wrong, told in sentences."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import PurePosixPath

from mpiens.design import POINT
from mpiens.expression import Expression
from mpiens.fault import Fault, nearest, place
from mpiens.pool import find_edges
from mpiens.spec import INJECTED, RAGGED, RESERVED, Output, Pool, Read, Scenario, Spec
from mpiens.windows import HIGH, LOW, WINDOW

_REFERENCE = re.compile(r"[^:]+:[^:]+")
_OF_PROGRAMS = ("workdir", "folder")  # what they get beside INJECTED
_IN_FOLDERS = ("stdin", "stdout", "shared")  # what mpiens puts into a task's folder
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def find_faults(spec: Spec) -> Iterator[Fault]:
    """Yield what no single section can know to be wrong."""
    yield from _check_ensemble(spec)
    yield from _check_model(spec)
    yield from _check_parameters(spec)
    yield from _check_scenarios(spec)
    yield from _check_outputs(spec)
    yield from _check_aggregate(spec)
    yield from _check_bands(spec)
    yield from _check_precision(spec)
    yield from _check_limits(spec)
    yield from _check_calibration(spec)
    yield from _check_windows(spec)
    yield from _check_join(spec)
    yield from _check_dims(spec)


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
        takeoff = output.takeoff
        if takeoff and takeoff.summary not in (output.summaries or ("final",)):
            text = f"{takeoff.summary!r} is none of the summaries; name it there too"
            yield Fault(place(section, "takeoff"), text)
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
    shares = spec.bands.central
    if any(b <= a for a, b in itertools.pairwise(shares)):
        text = f"{list(shares)} should rise from each share to the next"
        yield Fault(place("bands", "central"), text)
    baseline = spec.bands.baseline
    names = [*spec.bases, *(s.name for s in spec.scenarios)]
    if baseline is not None and baseline not in names:
        text = f"{baseline!r} is no scenario{nearest(baseline, names)}"
        yield Fault(place("bands", "baseline"), text)


def _check_precision(spec: Spec) -> Iterator[Fault]:
    if (precision := spec.precision) is None:
        return
    if spec.calibrate is not None:
        text = "does not go with [calibrate], whose trials are unlike; drop it"
        yield Fault(place("precision"), text)
    if (precision.width is None) == (precision.relative is None):
        text = "needs either width, or relative for a share of what it encloses"
        yield Fault(place("precision"), text)
    if precision.max_replicates < spec.ensemble.replicates:
        text = (
            f"{precision.max_replicates} is less than [ensemble] replicates = "
            f"{spec.ensemble.replicates}, which are run first; raise it"
        )
        yield Fault(place("precision", "max_replicates"), text)
    if precision.difference and spec.bands.baseline is None:
        text = "true needs [bands] baseline; name the scenario to compare with"
        yield Fault(place("precision", "difference"), text)
    if (output := spec.outputs.get(precision.output)) is None:
        text = f"{precision.output!r} has no section [outputs.{precision.output}]"
        yield Fault(place("precision", "output"), text)
    elif precision.summary not in (None, *(output.summaries or ("final",))):
        text = f"{precision.summary!r} is none of the summaries; name it there too"
        yield Fault(place("precision", "summary"), text)


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


def _check_calibration(spec: Spec) -> Iterator[Fault]:
    if (calibrate := spec.calibrate) is None:
        return
    yield from calibrate.faults()
    sections = {
        "sweep": spec.sweep,
        "design": spec.design,
        "prepare": spec.prepare,
        "aggregate": spec.aggregate,
    }
    for name, section in sections.items():
        if section:
            text = "does not go with [calibrate], which makes its own points; drop it"
            yield Fault(place(name), text)
    alien = {
        place("bands", "baseline"): spec.bands.baseline,
        place("limits", "cost"): spec.limits.cost,
    }
    for where, value in alien.items():
        if value is not None:
            text = "does not go with [calibrate], whose trials are unlike; drop it"
            yield Fault(where, text)
    for where, name in spec.given():
        if name in calibrate.parameters and not where.startswith("[calibrate"):
            text = f"is also calibrated; keep {name} in one of the two"
            yield Fault(where, text)
    for name in calibrate.targets:
        yield from _check_target(spec, name)


def _check_windows(spec: Spec) -> Iterator[Fault]:
    if spec.windows is None:
        return
    if spec.calibrate is not None:
        text = "do not go with [calibrate], which makes its own points; drop either"
        yield Fault(place("windows"), text)
    for where, name in spec.given():
        if name in (LOW, HIGH) and not where.startswith("[windows]"):
            text = "is what [windows] gives the model for each window; leave it out"
            yield Fault(where, text)
        elif name == WINDOW and where.startswith(("[sweep]", "[design")):
            text = f"is what names windows, as in {WINDOW}=3; choose another name"
            yield Fault(where, text)


def _check_dims(spec: Spec) -> Iterator[Fault]:
    """Yield dimensions of outputs that what is made of windows has itself."""
    taken: dict[str, str] = {}
    if spec.windows is not None:
        taken |= dict.fromkeys((WINDOW, "windows"), "[windows]")
    if spec.join:
        taken |= dict.fromkeys(("joined", "curve", "piece", "side"), "[join]")
    for name in spec.join:
        taken |= dict.fromkeys((f"{name}_point", f"{name}_overlap"), f"[join.{name}]")
    for name, output in spec.outputs.items():
        for dim in output.dims or ():
            if dim in taken:
                text = f"{dim!r} is what {taken[dim]} itself has in the file; choose "
                yield Fault(place(f"outputs.{name}", "dims"), f"{text}another name")


def _check_join(spec: Spec) -> Iterator[Fault]:
    if spec.join and spec.calibrate is not None:
        text = "does not go with [calibrate], whose trials are no pieces; drop either"
        yield Fault(place("join"), text)
    elif spec.join and spec.windows is None and not spec.bases:
        text = "needs pieces; give [windows], or [scenarios.NAME] for each of them"
        yield Fault(place("join"), text)
    elif spec.join and spec.common:
        text = '"common" lets all pieces meet the same streams, and a join takes '
        text += 'their errors as independent; write pairing = "independent"'
        yield Fault(place("ensemble", "pairing"), text)
    for name, join in spec.join.items():
        section = f"join.{name}"
        yield from join.faults(section, spec.pieces)
        if join.x is None and spec.windows is not None:
            text = "is missing; name the output that tells where in its window each "
            yield Fault(place(section, "x"), f"{text}value of {name} belongs")
        elif join.x == name:
            text = f"{name!r} cannot tell where it stands itself; name another output"
            yield Fault(place(section, "x"), text)
        for key, output in (("", name), ("x", join.x or name)):
            known = spec.outputs.get(output, Output())
            if known.dims is not None and len(known.dims) != 1:
                text = f"{output!r} should have one dimension, to be joined along it"
                yield Fault(place(section, *([key] if key else [])), text)


def _check_target(spec: Spec, name: str) -> Iterator[Fault]:
    if spec.calibrate is None:
        return
    target, section = spec.calibrate.targets[name], f"calibrate.targets.{name}"
    if not _NAME.fullmatch(name):
        text = "is no name for a target; use letters, digits and underscores"
        yield Fault(place(section), text)
    if target.scenario is not None and target.scenario not in spec.bases:
        hint = nearest(target.scenario, spec.bases)
        text = f"{target.scenario!r} is no scenario{hint}"
        yield Fault(place(section, "scenario"), text)
    output = spec.outputs.get(target.output, Output())
    if output.ragged or len(output.dims or ()) > 1:
        text = f"{target.output!r} should have one dimension, as observed data have"
        yield Fault(place(section, "output"), text)
    if target.index is None and not output.dims:
        text = f"is missing; name the column of {target.data} that tells where in "
        text += f"{target.output} each value belongs, or write [outputs."
        yield Fault(place(section, "index"), f"{text}{target.output}] dims")
