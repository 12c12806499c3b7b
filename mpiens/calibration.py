"""A calibration while it runs: it asks for trials, has them scored, and tells.

It stands where the root stands for an ensemble: the manager deals the replicates of all
trials as the tasks of one queue, and asks here for more of them when ranks run out of
work.  No trial waits for another one, unless the spec wants that.
"""

from __future__ import annotations

import math
import pickle
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mpiens.layout import (
    ASKED,
    COMPLETE,
    DONE,
    FAILED_TRIAL,
    PENDING,
    SCORED,
    UNUSED,
)
from mpiens.ledger import Ledger
from mpiens.outcome import Batch, Failure, Ranks, StepResult, Tasks
from mpiens.row import Described, Row
from mpiens.spec import Spec, Step
from mpiens.store import Store
from mpiens.study import Asked, Study
from mpiens.trial import Given
from mpiens.workqueue import Gate

SHORT_SECONDS = 3.0  # of tasks as short as that every rank has one ahead of need
AHEAD = 0.25  # of longer ones so many per rank are open beside those that run
LEAST_AHEAD = 2  # but so many at least


class Host(Protocol):
    """What a calibration leaves to the root: rows, failures, and the clock."""

    def settle(self, described: Described | None) -> Row:
        """Return what rows are like."""

    def lay_down(self, meanwhile: Callable[[], object]) -> None:
        """Lay down the file."""

    def write(self, batch: Batch, ranks: Ranks) -> None:
        """Keep finished tasks."""

    def keep_failure(self, failure: Failure, rank: int) -> None:
        """Keep a failed task as it is told."""

    def expect(self, tasks: Tasks, *, wary: bool = False) -> NDArray[np.float64]:
        """Return the seconds that tasks will take."""

    def spend(self, number: int, seconds: float) -> None:
        """Enter what a step has taken."""

    def tick(self) -> bool:
        """Called often; whether the run is hopeless."""

    def head(self, line: Callable[[], str]) -> None:
        """Show what a line says with whatever is shown of progress."""

    @property
    def file(self) -> Store | None:
        """The file, once it has been laid down."""


class Calibration:
    """What deals a calibration's trials, and keeps what becomes of them."""

    def __init__(self, spec: Spec, host: Host, study: Study, ranks: int) -> None:
        if spec.calibrate is None:
            raise RuntimeError("there is no [calibrate]")
        self._spec = spec
        self._calibrate = spec.calibrate
        self._host = host
        self._study = study
        self._ranks = ranks
        self._began = time.monotonic()
        self._each = spec.per_trial * spec.replicates  # tasks of a trial
        self._ledger = Ledger(spec) if host.file is None else Ledger.of(host.file)
        self._before = self._ledger.told
        self._seconds = 0.0  # that so many tasks of this run have taken
        self._simulated = 0
        self._left: Counter[int] = Counter()  # tasks of a trial that are not finished
        self._failed: Counter[int] = Counter()
        self._urgent: list[int] = []
        self._full = False  # the study, with all its jobs
        self._told = self._read_tells()
        # scored, some in an earlier run, and perhaps not told
        self._untold: list[int] = np.flatnonzero(self._ledger.state == SCORED).tolist()
        self._resume()

    @property
    def pending(self) -> Tasks:
        """The tasks to be run of the trials that were asked for in earlier runs."""
        file = self._host.file
        if file is None:
            return np.zeros(0, dtype=np.int64)
        asked = np.arange(len(file.status)) < self._ledger.asked * self._each
        return np.flatnonzero(asked & np.isin(file.status, (PENDING, UNUSED)))

    @property
    def row(self) -> Row | None:
        """What one task leaves, once that is known."""
        return None if self._host.file is None else self._host.file.layout.row

    @property
    def scouts(self) -> Tasks:
        """The tasks that may settle the layout: those that will be asked for."""
        return np.zeros(0, dtype=np.int64)

    @property
    def gate(self) -> Gate:
        """What tasks wait for: nothing; what they are given is small."""
        keys = len(self._spec.scenarios) + self._calibrate.trials
        steps = np.zeros(keys, dtype=np.int64)
        nbytes = self.row.dtype.itemsize if self.row else 1
        return Gate(steps, np.ones(keys, dtype=bool), max(1, nbytes))

    @property
    def over(self) -> bool:
        """Whether no trial is open, and none will be asked for."""
        return self._ledger.told == self._ledger.asked and not self._wants_more()

    @property
    def hurry(self) -> bool:
        """Whether more will be asked for, and tasks are short beside an asking."""
        return self._are_short and self._wants_more()

    def more(self, tasks: int, *, begin: bool) -> tuple[list[int], list[int]]:
        """Return what else is to be run: what goes before all that is pending, and
        what goes after it; ``tasks`` have been asked for and are not finished.

        One trial is asked for at a time, so that news is heard in between.  In order
        the next one is told only when all have been asked for that do not wait for it:
        what the sampler knows at each ask is then the same at any number of ranks.
        None is asked for unless it may ``begin``.
        """
        urgent, self._urgent = self._urgent, []
        asked: list[int] = []
        while self._untold and not self._calibrate.ordered:
            self._tell(self._untold.pop(0))
        while not asked or self._calibrate.ordered:
            if self._wants_more() and self._has_room(tasks + len(asked)):
                if not begin:
                    break
                asked += self._ask()
            elif self._calibrate.ordered and self._is_next_scored():
                self._tell(self._ledger.told)
            else:
                break
        return urgent, asked

    def inputs(self, key: int) -> bytes:
        """Return what a trial's tasks are given, or what it is scored by, pickled."""
        scenarios = len(self._spec.scenarios)
        if key >= scenarios:
            return self._collect_rows(key - scenarios)
        trial = key // self._spec.per_trial
        stream = int(self._ledger["stream"][trial])
        return pickle.dumps(Given(stream, self._ledger.parameters(trial)))

    def settle(self, described: Described | None) -> Row:
        """Return what rows are like, now that a first task has shown what it leaves."""
        return self._host.settle(described)

    def lay_down(self, meanwhile: Callable[[], object]) -> None:
        """Lay down the file, with the trials that have been asked for."""
        self._host.lay_down(meanwhile)
        if self._host.file is not None:
            self._ledger.bind(self._host.file)

    def write(self, batch: Batch, ranks: Ranks) -> None:
        """Keep finished tasks; the last of a trial has it scored."""
        self._host.write(batch, ranks)
        self._seconds += float(batch.records["seconds"].sum())
        self._simulated += len(batch.records)
        for task in batch.records["task"].tolist():
            self._count_down(task)

    def keep(self, result: StepResult, rank: int) -> None:
        """Keep what a trial's losses are; they are told once idle ranks have work."""
        del rank
        trial = self._spec.trial_of(result.task)
        self._host.spend(result.task, result.seconds)
        self._score(trial, pickle.loads(result.data), result.seconds)

    def fail(self, failure: Failure, rank: int) -> None:
        """Keep a failed task, or a trial that could not be scored."""
        trial = self._spec.trial_of(failure.task)
        if failure.task >= self._spec.tasks:
            what = f"trial {trial} could not be scored"
            self._keep_reason(failure.task, f"{what}\n{failure.text}")
            self._score(trial, None, failure.seconds)
            return
        self._host.keep_failure(self._describe(failure), rank)
        self._failed[trial] += 1
        self._count_down(failure.task)

    def expect(self, tasks: Tasks, *, wary: bool = False) -> NDArray[np.float64]:
        """Return the seconds that tasks take by what others have taken."""
        return self._host.expect(tasks, wary=wary)

    def tick(self) -> bool:
        """Show progress where it is time to; whether the run is hopeless."""
        self._host.head(self.headline)
        return self._host.tick()

    def headline(self) -> str:
        """Return how far it is: trials, the best loss, and the rate of this run."""
        told = self._ledger.told
        minutes = max(time.monotonic() - self._began, 1e-9) / 60
        parts = [f"{told:,} trials"]
        if (best := self._ledger.best) is not None:
            parts.append(f"best {self._ledger['loss'][best]:.4g}")
        return ", ".join([*parts, f"{(told - self._before) / minutes:.1f} per minute"])

    def _resume(self) -> None:
        """Find out what is left to do of the trials that were asked for."""
        ledger, study = self._ledger, self._study
        for trial in range(ledger.asked):
            state = int(ledger.state[trial])
            asked = Asked(
                number=int(ledger["number"][trial]),
                stream=int(ledger["stream"][trial]),
                parameters=ledger.parameters(trial),
            )
            ended = state in (COMPLETE, FAILED_TRIAL)
            number = study.renew(
                asked,
                ledger.losses(trial),
                scored=ended or state == SCORED,
                ended=ended,
            )
            if number != asked.number:
                ledger.renumber(trial, number)
        study.adopt({*ledger["number"].tolist()})
        if (file := self._host.file) is None:
            return
        status = file.status[: ledger.asked * self._each].reshape(-1, self._each)
        for trial, own in enumerate(status):
            self._left[trial] = int(np.isin(own, (PENDING, UNUSED)).sum())
            self._failed[trial] = self._each - int((own == DONE).sum())
            self._failed[trial] -= self._left[trial]
            if not self._left[trial]:
                self._finish_replicates(trial)

    def _read_tells(self) -> list[tuple[float, float]]:
        """Return (loss, least loss so far) of all trials in the order of the tells."""
        order = self._ledger["told_order"]
        told = np.flatnonzero(order >= 0)
        found: list[tuple[float, float]] = []
        for trial in told[np.argsort(order[told])].tolist():
            self._append_tell(found, float(self._ledger["loss"][trial]))
        return found

    @staticmethod
    def _append_tell(tells: list[tuple[float, float]], loss: float) -> None:
        least = tells[-1][1] if tells else math.inf
        tells.append((loss, least if math.isnan(loss) else min(least, loss)))

    def _wants_more(self) -> bool:
        """Whether another trial is wanted at all."""
        left = self._calibrate.trials - self._ledger.asked
        return left > 0 and not self._full and not self._is_stopped()

    def _is_stopped(self) -> bool:
        """Whether a rule of the spec says that it is enough."""
        stop = self._calibrate.stop
        if stop.seconds is not None and time.monotonic() - self._began > stop.seconds:
            return True
        if not self._told:
            return False
        least = self._told[-1][1]
        if stop.loss_below is not None and least < stop.loss_below:
            return True
        lately = stop.patience
        if lately is None or len(self._told) <= lately:
            return False
        return self._told[-1 - lately][1] <= least

    def _has_room(self, tasks: int) -> bool:
        """Whether another trial may be asked for now."""
        asked, told = self._ledger.asked, self._ledger.told
        flight = self._calibrate.in_flight
        if self._calibrate.mode == "batched":
            size = flight or max(1, -(-self._ranks // self._each))
            return told >= asked // size * size
        if flight is not None:
            return asked - told < flight
        ahead = self._ranks * (1 if self._are_short else AHEAD)
        return tasks < self._ranks + max(ahead, LEAST_AHEAD)

    @property
    def _are_short(self) -> bool:
        """Whether tasks take little time, as far as is known."""
        return self._seconds < SHORT_SECONDS * self._simulated

    def _ask(self) -> list[int]:
        """Ask for a trial and return its tasks; none where the study is full."""
        if self._study.shared and self._study.is_full():
            self._full = True
            return []
        began = time.monotonic()
        trial = self._ledger.asked
        asked = self._study.ask(trial)
        seconds = time.monotonic() - began
        self._ledger.ask(trial, asked.number, asked.stream, asked.parameters, seconds)
        self._left[trial] = self._each
        tasks = range(trial * self._each, (trial + 1) * self._each)
        if self._host.file is not None:  # it may have been unused in an earlier run
            self._host.file.forget(np.array(tasks, dtype=np.int64))
        return [*tasks]

    def _count_down(self, task: int) -> None:
        trial = self._spec.trial_of(task)
        self._left[trial] -= 1
        if self._left[trial] == 0:
            self._finish_replicates(trial)

    def _finish_replicates(self, trial: int) -> None:
        """All replicates of a trial are over: have it scored, if it is to be."""
        if self._ledger.state[trial] != ASKED:
            return
        self._ledger.simulate(trial)
        failed = self._failed[trial]
        if failed and (self._calibrate.failed == "fail" or failed == self._each):
            self._score(trial, None, 0.0)
        else:
            self._urgent.append(self._spec.step(Step.SCORE, trial))

    def _score(
        self, trial: int, losses: Mapping[str, float] | None, seconds: float
    ) -> None:
        self._ledger.score(trial, losses, seconds)
        self._untold.append(trial)

    def _is_next_scored(self) -> bool:
        """Whether the trial is scored that is to be told next, in order."""
        state, told = self._ledger.state, self._ledger.told
        return bool(told < len(state) and state[told] == SCORED)

    def _tell(self, trial: int) -> None:
        """Tell a trial; the file has its loss already."""
        began = time.monotonic()
        self._study.tell(int(self._ledger["number"][trial]), self._ledger.losses(trial))
        self._ledger.tell(trial, time.monotonic() - began)
        self._append_tell(self._told, float(self._ledger["loss"][trial]))

    def _collect_rows(self, trial: int) -> bytes:
        """Return the rows of a trial's replicates that are done, by scenario."""
        file = self._host.file
        if file is None:
            raise RuntimeError("nothing is scored before there is a file")
        row = file.layout.row
        status = file.status.reshape(file.layout.by_task)
        scenarios = []
        each = self._spec.per_trial
        for scenario in range(trial * each, (trial + 1) * each):
            replicates = np.flatnonzero(status[scenario] == DONE)
            rows = np.zeros(len(replicates), row.dtype)
            for output in row.stored:
                path = f"/series/{output.name}"
                rows[output.name] = file.read_scenario(path, scenario)[replicates]
            scenarios.append(rows)
        return pickle.dumps((row, scenarios), protocol=5)

    def _describe(self, failure: Failure) -> Failure:
        """Return a failure that tells where, with what, how often, and why."""
        trial = self._spec.trial_of(failure.task)
        index, replicate = self._spec.locate(failure.task)
        scenario = self._spec.scenarios[index]
        given = Given(
            int(self._ledger["stream"][trial]), self._ledger.parameters(trial)
        )
        text = (
            f"scenario {scenario.name!r}, replicate {replicate}, attempt "
            f"{failure.attempts}, parameters {given.fill(scenario)}, spawn key "
            f"{given.key(self._spec, failure.task)}\n{failure.text}"
        )
        return Failure(failure.task, failure.attempts, failure.seconds, text)

    def _keep_reason(self, number: int, text: str) -> None:
        if self._host.file is not None:
            self._host.file.write_failure(number, text)
