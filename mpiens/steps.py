"""What is run once per scenario, as a runner calls it: prepare, and aggregate."""

from __future__ import annotations

import csv
import hashlib
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens import scoring
from mpiens.fault import Fault, SpecError, nearest, place
from mpiens.model import (
    KEYWORD,
    Function,
    Model,
    Signature,
    find,
    inspect_model,
    read_source,
)
from mpiens.pool import make_pool
from mpiens.row import Row, to_array
from mpiens.scoring import Scorer
from mpiens.spec import INJECTED, Aggregate, Scenario, Spec, Step
from mpiens.streams import Stream

Target = Mapping[str, NDArray[np.float64]]
_PREPARE = ("rng", "seed", "shared", "scenario")
_POSITIONS = ("outputs", "parameters", "target")
_AGGREGATE = (*_POSITIONS, "scenario", "replicates", "rng", "seed")


class Steps:
    """The steps of a spec's scenarios, ready to be called for one after another."""

    def __init__(self, spec: Spec, model: Model) -> None:
        self._spec = spec
        self._model = model
        self._prepare: Function | None = None
        self._aggregate: Function | None = None
        self._target: Target | None = None
        if spec.prepare is not None:
            where = place("prepare", "call")
            self._prepare = find(spec.prepare.call, spec.folder, where)
        self._scorer = Scorer(spec) if spec.calibrate is not None else None
        if spec.aggregate is not None:
            self._target = read_target(spec)
            if spec.aggregate.call is not None:
                where = place("aggregate", "call")
                self._aggregate = find(spec.aggregate.call, spec.folder, where)

    def run(self, step: Step, scenario: int, stream: Stream, given: bytes) -> bytes:
        """Run a scenario's step; what it makes is pickled."""
        act = self._run_prepare if step is Step.PREPARE else self._run_aggregate
        made = act(self._spec.scenarios[scenario], stream, given)
        try:
            return pickle.dumps(made, protocol=5)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            name = step.name.lower()
            text = f"[{name}] returned what cannot be pickled: {error}"
            raise TypeError(text) from error

    def score(self, given: bytes) -> bytes:
        """Return a trial's loss of every target, pickled.

        It is given the rows of its scenarios' replicates that are done.
        """
        if self._scorer is None:
            raise RuntimeError("there is no [calibrate]")
        row, scenarios = pickle.loads(given)
        return pickle.dumps(self._scorer.score([unpack(row, s) for s in scenarios]))

    def _run_prepare(self, scenario: Scenario, stream: Stream, given: bytes) -> Any:
        del given
        if self._prepare is None:
            raise RuntimeError("there is no [prepare]")
        names, anything = _names(self._prepare)
        offered = self._model.offer(scenario, stream)
        own = scenario.parameters
        passed = own if anything else {n: v for n, v in own.items() if n in names}
        extras = {n: offered[n]() for n in _PREPARE if n in names}
        return self._prepare(**passed, **extras)

    def _run_aggregate(
        self, scenario: Scenario, stream: Stream, given: bytes
    ) -> dict[str, NDArray[Any]]:
        replicates, row, rows = pickle.loads(given)
        outputs = unpack(row, rows)
        section = self._spec.aggregate or Aggregate()
        made: dict[str, NDArray[Any]] = {}
        if self._aggregate is not None:
            offered: dict[str, Callable[[], Any]] = {
                "outputs": lambda: outputs,
                "parameters": lambda: dict(scenario.parameters),
                "target": lambda: self._target,
                "replicates": lambda: replicates,
                **self._model.offer(scenario, stream),
            }
            bound = _bind(self._aggregate)
            extras = {name: offered[what]() for name, what in bound.items()}
            made |= _check_made(self._aggregate(**extras), section)
        levels = self._spec.bands.levels
        for name, pool in section.pools.items():
            sample = replicates if pool.output is None else outputs[pool.output]
            made[name] = make_pool(pool, sample, levels)
        return made


def unpack(row: Row, rows: NDArray[np.void]) -> dict[str, Any]:
    """Return outputs as a model returned them: stacked, or lists where ragged.

    Stacked ones have shape (replicates, ...).
    """
    outputs: dict[str, Any] = {}
    for output in row.outputs:
        values = np.ascontiguousarray(rows[output.name])
        if output.boolean:
            values = values.astype(bool)
        if output.ragged:
            lengths = rows[f"{output.name}.length"].tolist()
            pairs = zip(values, lengths, strict=True)
            outputs[output.name] = [row[:length] for row, length in pairs]
        else:
            outputs[output.name] = values
    return outputs


def inspect_all(spec: Spec) -> Signature:
    """Import all that a spec names and return the model's signature.

    Raises SpecError with all faults of the model and of the steps.
    """
    faults: list[Fault] = []
    found: Signature | None = None
    try:
        found = inspect_model(spec)
    except SpecError as error:
        faults += error.faults
    faults += _check_prepare(spec)
    faults += _check_aggregate(spec)
    faults += scoring.find_faults(spec)
    if found is None or faults:
        raise SpecError(faults)
    return replace(
        found, aggregate_code=_hash_aggregate(spec), target_code=_hash_targets(spec)
    )


def inspect_aggregate(spec: Spec) -> str:
    """Import the aggregate and return what Signature calls its code.

    Raises SpecError with all its faults.
    """
    if faults := [*_check_aggregate(spec)]:
        raise SpecError(faults)
    return _hash_aggregate(spec)


def _hash_aggregate(spec: Spec) -> str:
    """Return a hash of what aggregates are made by: the section, code, and target."""
    if spec.aggregate is None:
        return ""
    section = repr(spec.document()["aggregate"]).encode()
    call, target = spec.aggregate.call, spec.aggregate.target
    parts = [section]
    parts += [read_source(call, spec.folder)] if call else []
    parts += [(Path(spec.folder) / target).read_bytes()] if target else []
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _hash_targets(spec: Spec) -> str:
    """Return a hash of what trials are scored by: data, and functions of the user's."""
    if spec.calibrate is None:
        return ""
    return hashlib.sha256(b"".join(scoring.read_sources(spec))).hexdigest()


def read_target(spec: Spec) -> Target | None:
    """Return the target's columns by name, or None where there is no target.

    Raises SpecError where the file is no CSV of numbers; an empty cell is NaN.
    """
    if spec.aggregate is None or spec.aggregate.target is None:
        return None
    where = place("aggregate", "target")
    path = Path(spec.folder) / spec.aggregate.target
    try:
        with path.open(encoding="utf-8", newline="") as file:
            head, *lines = [line for line in csv.reader(file) if line]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no CSV text"
        text = f"{spec.aggregate.target!r} cannot be read: {reason}"
        raise SpecError([Fault(where, text)]) from None
    columns: dict[str, list[float]] = {name.strip(): [] for name in head}
    for number, line in enumerate(lines, start=2):
        for name, cell in zip(columns, line, strict=False):
            try:
                columns[name].append(float(cell) if cell.strip() else math.nan)
            except ValueError:
                text = f"line {number} of {path.name} has {cell!r} in column {name}"
                text += ", which is no number"
                raise SpecError([Fault(where, text)]) from None
    return {name: np.array(values) for name, values in columns.items()}


def _check_prepare(spec: Spec) -> Iterator[Fault]:
    """Yield what prepare needs and is not given; one not found is told elsewhere."""
    if spec.prepare is None:
        return
    where, name = place("prepare", "call"), spec.prepare.call.rpartition(":")[2]
    with suppress(SpecError, TypeError, ValueError):
        found = signature(find(spec.prepare.call, spec.folder, where))
        for needed in (p for p in found.parameters.values() if _is_needed(p)):
            has = [needed.name in s.parameters for s in spec.scenarios]
            if needed.name in INJECTED:
                has = [needed.name in _PREPARE]
            if not all(has) and needed.name in INJECTED:
                text = f"and a step is given {', '.join(_PREPARE)}"
                yield Fault(where, f"{name}() needs {needed.name}, {text}")
            elif not all(has):
                lacking = spec.scenarios[has.index(False)].name
                text = f"which scenario {lacking!r} lacks; give it in [parameters]"
                yield Fault(where, f"{name}() needs {needed.name}, {text}")


def _check_aggregate(spec: Spec) -> Iterator[Fault]:
    """Yield what is wrong with the aggregate's function, and with its target."""
    try:
        read_target(spec)
    except SpecError as error:
        yield from error.faults
    if spec.aggregate is not None and spec.aggregate.call is not None:
        where = place("aggregate", "call")
        try:
            _bind(find(spec.aggregate.call, spec.folder, where))
        except SpecError as error:
            yield from error.faults
        except (TypeError, ValueError) as error:
            yield Fault(where, f"{spec.aggregate.call!r}: {error}")


def _is_needed(parameter: Parameter) -> bool:
    variable = parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    return parameter.default is Parameter.empty and not variable


def _names(function: Function) -> tuple[frozenset[str], bool]:
    """Return the names that a function takes, and whether it takes any."""
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return frozenset(), True
    names = frozenset(p.name for p in parameters if p.kind in KEYWORD)
    return names, any(p.kind is Parameter.VAR_KEYWORD for p in parameters)


def _bind(function: Function) -> dict[str, str]:
    """Return what an aggregate is given under each of its names.

    A first argument of a name of its own is the outputs, a second one the parameters,
    a third one the target.  Raises TypeError where it needs more, or by position only.
    """
    bound: dict[str, str] = {}
    for index, parameter in enumerate(signature(function).parameters.values()):
        name = parameter.name
        if parameter.kind in KEYWORD and name in _AGGREGATE:
            bound[name] = name
        elif not _is_needed(parameter):
            continue
        elif parameter.kind is KEYWORD[0] and index < len(_POSITIONS):
            bound[name] = _POSITIONS[index]
        else:
            hint = nearest(name, _AGGREGATE)
            offered = ", ".join(_AGGREGATE)
            raise TypeError(f"it needs {name}, and is given by name {offered}{hint}")
    return bound


def _check_made(returned: Any, section: Aggregate) -> dict[str, NDArray[Any]]:
    """Return what an aggregate returned as arrays; ValueError where it is none."""
    if not isinstance(returned, Mapping):
        raise ValueError(
            "the aggregate should return a mapping of names to numbers or arrays, not "
            f"{type(returned).__name__}"
        )
    made = {}
    for name, value in returned.items():
        if not (isinstance(name, str) and name.isidentifier()):
            text = f"aggregate {name!r} is no name; use letters, digits, and _"
            raise ValueError(text)
        if name in section.pools:
            text = f"aggregate {name!r} is also [aggregate.{name}]; rename one of them"
            raise ValueError(text)
        made[name] = to_array(name, value)
    return made
