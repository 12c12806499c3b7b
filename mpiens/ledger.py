"""The trials of a calibration: what is known of each, in memory and in the file.

They have numbers of their own in the file, from 0 in the order in which they were asked
for.  Before a first task has shown what the file holds they are in memory alone.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens.layout import (
    ASKED,
    COMPLETE,
    FAILED_TRIAL,
    SCORED,
    TRIAL_COLUMNS,
    UNASKED,
    pack_parameter,
    unpack_parameter,
)
from mpiens.spec import Spec
from mpiens.store import Store


class Ledger:
    """The table of trials; every entry is in the file as soon as there is one."""

    def __init__(self, spec: Spec) -> None:
        if spec.calibrate is None:
            raise RuntimeError("there is no [calibrate]")
        self._spec = spec
        self._calibrate = spec.calibrate
        self._store: Store | None = None
        count = self._calibrate.trials
        self._columns: dict[str, NDArray[Any]] = {
            name: np.full(count, column.fill, column.dtype)
            for name, column in TRIAL_COLUMNS.items()
        }
        self._losses = {n: np.full(count, np.nan) for n in self._calibrate.targets}
        self._parameters: dict[int, dict[str, Any]] = {}
        self.asked = 0  # trials: the first ones
        self.told = 0  # all that is known of these is final

    @classmethod
    def of(cls, store: Store) -> Ledger:
        """Return the table that a file has, and that goes on in it."""
        ledger = cls(store.layout.spec)
        ledger._store = store
        for name in TRIAL_COLUMNS:
            ledger._columns[name] = store.read(f"/trials/{name}")
        for name in ledger._losses:
            ledger._losses[name] = store.read(f"/trials/target/{name}")
        ledger._count()
        domains = ledger._calibrate.parameters
        packed = {name: store.read(f"/trials/parameter/{name}") for name in domains}
        for trial in np.flatnonzero(ledger.state != UNASKED).tolist():
            ledger._parameters[trial] = {
                name: unpack_parameter(domain, packed[name][trial])
                for name, domain in domains.items()
            }
        return ledger

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return a column, by trial."""
        return self._columns[name]

    @property
    def state(self) -> NDArray[np.uint8]:
        """The state of every trial."""
        return self._columns["state"]

    @property
    def best(self) -> int | None:
        """The trial with the least loss of those that are complete, if any is."""
        losses = np.where(self.state == COMPLETE, self["loss"], np.nan)
        return None if np.isnan(losses).all() else int(np.nanargmin(losses))

    def ranking(self) -> list[int]:
        """Return the complete trials, the one with the least loss first."""
        complete = np.flatnonzero(self.state == COMPLETE)
        order = np.argsort(self["loss"][complete], kind="stable")
        ranked: list[int] = complete[order].tolist()
        return ranked

    def parameters(self, trial: int) -> Mapping[str, Any]:
        """Return the parameters of a trial that was asked for."""
        return self._parameters[trial]

    def losses(self, trial: int) -> dict[str, float] | None:
        """Return the loss of every target of a trial; None where it has none."""
        own = {name: float(column[trial]) for name, column in self._losses.items()}
        return None if any(np.isnan(v) for v in own.values()) else own

    def bind(self, store: Store) -> None:
        """Write the table into a file that has been laid down."""
        self._store = store
        self._count()
        for name, column in self._columns.items():
            if name != "state":
                store.write_all(f"/trials/{name}", column)
        for name, column in self._losses.items():
            store.write_all(f"/trials/target/{name}", column)
        for trial, parameters in self._parameters.items():
            self._write_parameters(trial, parameters)
        store.write_all("/trials/state", self.state)

    def ask(
        self,
        trial: int,
        number: int,
        stream: int,
        parameters: Mapping[str, Any],
        seconds: float,
    ) -> None:
        """Enter a trial that was asked for, which took so long."""
        self._parameters[trial] = dict(parameters)
        self._write_parameters(trial, parameters)
        self._enter(
            trial,
            number=number,
            stream=stream,
            asked=time.time(),
            ask_seconds=seconds,
            state=ASKED,
        )
        self.asked += 1

    def take(self, trial: int, other: Ledger, source: int) -> None:
        """Take over a trial of another table; it is written with the whole table."""
        for name, column in self._columns.items():
            column[trial] = other._columns[name][source]
        for name, column in self._losses.items():
            column[trial] = other._losses[name][source]
        self._parameters[trial] = dict(other._parameters[source])

    def renumber(self, trial: int, number: int) -> None:
        """Enter that a trial has another number in the study."""
        self._enter(trial, number=number)

    def simulate(self, trial: int) -> None:
        """Enter that all replicates of a trial are over."""
        self._enter(trial, simulated=time.time())

    def score(
        self, trial: int, losses: Mapping[str, float] | None, seconds: float
    ) -> None:
        """Enter what a trial's loss is: that of every target, or None where it failed.

        From then on it is not scored again.
        """
        total = np.nan if losses is None else self._calibrate.total(losses)
        for name, column in self._losses.items():
            column[trial] = np.nan if losses is None else losses[name]
            self._write(f"/trials/target/{name}", trial, column[trial])
        self._enter(trial, loss=total, scored=time.time(), score_seconds=seconds)
        self._enter(trial, state=SCORED)

    def tell(self, trial: int, seconds: float) -> None:
        """Enter that a trial was told, which took so long."""
        state = FAILED_TRIAL if np.isnan(self["loss"][trial]) else COMPLETE
        self._enter(
            trial,
            told=time.time(),
            told_order=self.told,
            tell_seconds=seconds,
            state=state,
        )
        self.told += 1

    def _count(self) -> None:
        self.asked = int(np.count_nonzero(self.state != UNASKED))
        self.told = int(np.isin(self.state, (COMPLETE, FAILED_TRIAL)).sum())

    def _enter(self, trial: int, **values: Any) -> None:
        for name, value in values.items():
            self._columns[name][trial] = value
            self._write(f"/trials/{name}", trial, value)

    def _write(self, path: str, index: int, value: Any) -> None:
        if self._store is not None:
            self._store.write_entry(path, index, value)

    def _write_parameters(self, trial: int, parameters: Mapping[str, Any]) -> None:
        each = self._spec.per_trial
        for name, value in parameters.items():
            packed = pack_parameter(self._calibrate.parameters[name], value)
            self._write(f"/trials/parameter/{name}", trial, packed)
            for scenario in range(trial * each, (trial + 1) * each):
                self._write(f"/parameters/{name}", scenario, packed)


def copy(old: Store, new: Store) -> None:
    """Take over the trials of an older file; those of the new one are no fewer."""
    before, ledger = Ledger.of(old), Ledger(new.layout.spec)
    for trial in range(before.asked):
        ledger.take(trial, before, trial)
    ledger.bind(new)
