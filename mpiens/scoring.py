"""How far a trial's replicates are from what was observed, target by target."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens import loss
from mpiens.calibrate import Target
from mpiens.fault import Fault, SpecError, place
from mpiens.layout import Series
from mpiens.model import find, read_source
from mpiens.observed import Observed, align, read_observed
from mpiens.row import Row
from mpiens.spec import Spec

Floats = NDArray[np.float64]
Outputs = Mapping[str, Any]  # by name, stacked over the replicates that are done


class Unscored(ValueError):  # noqa: N818  (it is news of a trial, not an error of ours)
    """A trial has no loss, and why."""


class Scorer:
    """The targets of a calibration, their data read once; scores trial after trial."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._targets = spec.calibrate.targets if spec.calibrate else {}
        self._drop = spec.calibrate is not None and spec.calibrate.failed == "drop"
        self._observed = {n: read_data(spec, n) for n in self._targets}
        self._losses = {n: find_loss(spec, n) for n in self._targets}

    def score(self, outputs: Sequence[Outputs]) -> dict[str, float]:
        """Return the loss of every target; ``outputs`` has one entry per scenario.

        That of a target without a scenario of its own is the sum over all of them.
        Raises Unscored where a trial has no finite loss.
        """
        bases: list[str | None] = [*self._spec.bases] or [None]
        losses = {}
        for name, target in self._targets.items():
            parts = [
                self._score_one(name, target, own)
                for base, own in zip(bases, outputs, strict=True)
                if target.scenario in (None, base)
            ]
            losses[name] = math.fsum(parts)
        return losses

    def _score_one(self, name: str, target: Target, outputs: Outputs) -> float:
        if target.output not in outputs:
            known = ", ".join(outputs)
            text = f"target {name!r} is of output {target.output!r}, and the model "
            raise Unscored(f"{text}returned {known}")
        observed = self._observed[name]
        series = np.asarray(outputs[target.output], dtype=float)
        series = series.reshape(len(series), -1)  # a scalar is a series of one point
        try:
            places = align(observed, np.arange(series.shape[1], dtype=float))
        except ValueError as error:
            raise Unscored(f"target {name!r}: {error}") from None
        there = ~np.isnan(observed.values)
        simulated = self._choose(name, series[:, places], there)
        found = loss.score(
            self._losses[name], simulated, observed.values, target.options
        )
        if not math.isfinite(found):
            raise Unscored(f"target {name!r}: its loss {target.loss!r} is {found}")
        return found

    def _choose(self, name: str, simulated: Floats, there: NDArray[np.bool_]) -> Floats:
        """Return the replicates that are scored; Unscored where NaN forbids it.

        What counts is where something was observed.
        """
        good = np.asarray(np.isfinite(simulated[:, there]).all(axis=1))
        if good.all() and len(good):
            return simulated
        if self._drop and good.any():
            return simulated[good]
        if not len(good):
            raise Unscored(f"target {name!r}: no replicate is there to be scored")
        wrong = int(np.count_nonzero(~good))
        text = f"target {name!r}: {wrong} of {len(good)} replicates have no finite "
        text += "number where one was observed"
        way = "" if self._drop else ' ([calibrate] failed = "drop" scores the others)'
        raise Unscored(text + way)


def _find_index(spec: Spec, target: Target) -> str | None:
    """Return the column that tells where values belong, where that is known."""
    output = spec.outputs.get(target.output)
    own = output.dims[0] if output and output.dims else None
    return target.index or own


def read_data(spec: Spec, name: str) -> Observed:
    """Return the observed series of a target; SpecError where it cannot be read."""
    if spec.calibrate is None:
        raise RuntimeError("there is no [calibrate]")
    target = spec.calibrate.targets[name]
    index = _find_index(spec, target) or ""
    try:
        return read_observed(Path(spec.folder) / target.data, index, target.column)
    except SpecError as error:
        section = f"calibrate.targets.{name}"
        told = [Fault(place(section, f.place), f.text) for f in error.faults]
        raise SpecError(told) from None


def lay_out(spec: Spec, row: Row) -> dict[str, Series]:
    """Return what was observed along the dimension of each target's output.

    What does not fit an output is left out: its trials fail, and say so.
    """
    found = {}
    for name, target in (spec.calibrate.targets if spec.calibrate else {}).items():
        with suppress(StopIteration, ValueError, SpecError):
            output = next(o for o in row.outputs if o.name == target.output)
            observed = read_data(spec, name)
            values = np.full(output.shape, np.nan)
            size = values.size
            places = align(observed, np.arange(size, dtype=float))
            values.reshape(-1)[places] = observed.values
            found[name] = Series(target.output, values, target.scenario)
    return found


def find_loss(spec: Spec, name: str) -> Any:
    """Return a target's loss: its name, or the user's function."""
    if spec.calibrate is None:
        raise RuntimeError("there is no [calibrate]")
    target = spec.calibrate.targets[name]
    if not target.own_loss:
        return target.loss
    where = place(f"calibrate.targets.{name}", "loss")
    return find(target.loss, spec.folder, where)


def find_faults(spec: Spec) -> Iterator[Fault]:
    """Yield what is wrong with the targets' data and losses."""
    for name, target in (spec.calibrate.targets if spec.calibrate else {}).items():
        section = f"calibrate.targets.{name}"
        wrong = [*loss.check_options(target.loss, target.options)]
        try:
            find_loss(spec, name)
            if _find_index(spec, target) is None:
                continue  # which has been told
            observed = read_data(spec, name)
        except SpecError as error:
            yield from error.faults
        else:
            if not wrong:
                wrong += loss.check_observed(
                    target.loss, observed.values, target.options
                )
        for text in wrong:
            yield Fault(place(section, "loss"), text)


def read_sources(spec: Spec) -> Iterator[bytes]:
    """Yield all that losses are made of: functions of the user's, and data."""
    for target in (spec.calibrate.targets if spec.calibrate else {}).values():
        yield (Path(spec.folder) / target.data).read_bytes()
        if target.own_loss:
            yield read_source(target.loss, spec.folder)
