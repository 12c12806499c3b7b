"""How many replicates each scenario takes: as many as it needs, batch by batch.

It stands where the root stands for an ensemble of a fixed size: the manager deals what
it wants of every scenario, and asks here for more.  It is decided at fixed counts, when
all replicates up to there are done or have failed, from those alone: so the number run
is the same at any number of ranks, and after any resume.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mpiens import bands
from mpiens.layout import DONE, FAILED
from mpiens.outcome import Batch, Failure, Ranks, StepResult, Tasks
from mpiens.precision import list_counts, measure_width
from mpiens.row import Described, Row
from mpiens.spec import Precision, Spec
from mpiens.store import Store
from mpiens.workqueue import Gate

Floats = NDArray[np.float64]


class Host(Protocol):
    """What this leaves to the root: everything but which tasks are wanted."""

    @property
    def pending(self) -> Tasks:
        """The tasks to be run, were all of them wanted, in the order of dealing."""

    @property
    def gate(self) -> Gate | None:
        """Which tasks wait for their scenario to be prepared."""

    @property
    def row(self) -> Row | None:
        """What one task leaves, once that is known."""

    @property
    def file(self) -> Store | None:
        """The file, once it has been laid down."""

    def settle(self, described: Described | None) -> Row:
        """Return what rows are like."""

    def lay_down(self, meanwhile: Callable[[], object]) -> None:
        """Lay down the file."""

    def write(self, batch: Batch, ranks: Ranks) -> None:
        """Keep finished tasks."""

    def fail(self, failure: Failure, rank: int) -> None:
        """Keep a failed task."""

    def expect(self, tasks: Tasks, *, wary: bool = False) -> Floats:
        """Return the seconds that tasks will take."""

    def keep(self, result: StepResult, rank: int) -> None:
        """Keep what a scenario's step has made."""

    def inputs(self, scenario: int) -> bytes:
        """Return what the tasks of a scenario are given."""

    def tick(self) -> bool:
        """Called often; whether the run is hopeless."""

    def head(self, line: Callable[[], str]) -> None:
        """Show what a line says with whatever is shown of progress."""


class Replication:
    """What deals the replicates of every scenario until it is tight enough."""

    def __init__(self, spec: Spec, host: Host) -> None:
        if spec.precision is None:
            raise RuntimeError("there is no [precision]")
        self._spec, self._precision, self._host = spec, spec.precision, host
        first, batch = spec.ensemble.replicates, spec.precision.batch
        self._counts = [*list_counts(first, batch, spec.replicates)]
        scenarios = len(spec.scenarios)
        self._wanted = np.full(scenarios, first)
        self._settled = np.zeros(scenarios, dtype=bool)
        self._over = np.zeros(scenarios * spec.replicates, dtype=bool)  # tasks that are
        if host.file is not None:
            self._over = np.isin(host.file.status, (DONE, FAILED))
            self._decide(range(scenarios))
        self._changed: set[int] = set()  # scenarios of which a task has ended
        tasks = np.array(host.pending, dtype=np.int64)
        own, replicate = np.divmod(tasks, spec.replicates)
        self.pending = tasks[replicate < self._wanted[own]]
        self._dealt = self._wanted.copy()  # up to there tasks have been handed out
        self.row, self.gate, self.scouts = host.row, host.gate, None
        self.hurry = False
        self.lay_down, self.expect, self.keep = host.lay_down, host.expect, host.keep
        self.inputs, self.tick = host.inputs, host.tick
        self._succeeded = host.file is not None  # some task, so that there are rows
        host.head(self.headline)

    @property
    def over(self) -> bool:
        """Whether every scenario has all the replicates that it will have."""
        return bool(self._settled.all())

    def headline(self) -> str:
        """Return how far it is: nobody knows yet how many replicates there will be."""
        settled = f"{int(self._settled.sum()):,} of {len(self._settled):,} scenarios"
        return f"{int(self._over.sum()):,} replicates, {settled} have enough"

    def more(self, tasks: int, *, begin: bool) -> tuple[list[int], list[int]]:
        """Return the tasks of the next batches, of scenarios that are still too wide.

        None while time is too short to begin any.
        """
        del tasks
        if not begin or (self._succeeded and self._host.file is None):
            return [], []  # which is being laid down
        changed, self._changed = self._changed, set()
        if changed:
            self._decide(sorted(changed))
        new: list[int] = []
        for scenario in np.flatnonzero(self._dealt < self._wanted).tolist():
            batch = range(self._dealt[scenario], self._wanted[scenario])
            numbers = [self._spec.number(scenario, replicate) for replicate in batch]
            new += [number for number in numbers if not self._over[number]]
            self._dealt[scenario] = self._wanted[scenario]
        return [], new

    def settle(self, described: Described | None) -> Row:
        """Return what rows are like, now that a first task has shown what it leaves."""
        self._succeeded = True
        return self._host.settle(described)

    def write(self, batch: Batch, ranks: Ranks) -> None:
        """Keep finished tasks."""
        self._host.write(batch, ranks)
        self._end(batch.records["task"])

    def fail(self, failure: Failure, rank: int) -> None:
        """Keep a failed task, or a step that failed."""
        self._host.fail(failure, rank)
        if failure.task < self._spec.tasks:
            self._end(np.array([failure.task]))

    def _end(self, tasks: Tasks) -> None:
        self._over[tasks] = True
        self._changed.update((tasks // self._spec.replicates).tolist())

    def _decide(self, scenarios: range | list[int]) -> None:
        """Settle scenarios that are tight enough, and want more of the others.

        What a baseline has decides on those that are compared with it.
        """
        baselines = self._spec.baselines
        todo = {*scenarios}
        if self._precision.difference:
            todo |= {i for i, base in enumerate(baselines) if base in todo}
        for scenario in sorted(todo):
            while not self._settled[scenario] and self._is_complete(scenario):
                if not self._is_next(scenario):
                    self._settled[scenario] = True
        if self._precision.difference:  # a baseline goes as far as who needs it
            for index, base in enumerate(baselines):
                if base is not None and base != index:
                    self._wanted[base] = max(self._wanted[base], self._wanted[index])

    def _is_complete(self, scenario: int) -> bool:
        """Whether all replicates that are wanted are over, and the baseline's twins."""
        count = int(self._wanted[scenario])
        base = self._spec.baselines[scenario] if self._precision.difference else None
        return all(
            self._over[self._spec.number(own, 0) :][:count].all()
            for own in ({scenario} if base is None else {scenario, base})
        )

    def _is_next(self, scenario: int) -> bool:
        """Want one batch more where a complete scenario is too wide; whether it is."""
        count = int(self._wanted[scenario])
        is_base = self._spec.baselines[scenario] == scenario
        if self._precision.difference and is_base:
            return False  # others decide how many it takes
        file = self._host.file
        if file is None:  # no task has succeeded: there is nothing to look at
            wide = True
        else:
            width = measure(file, self._spec, self._precision, scenario, count)
            wide = width > self._precision.wanted
        if not wide or count >= self._spec.replicates:
            return False
        self._wanted[scenario] = min(c for c in self._counts if c > count)
        return True


def measure(
    file: Store, spec: Spec, precision: Precision, scenario: int, count: int
) -> float:
    """Return how wide the interval is that the first replicates of a scenario give.

    Infinite where there is none yet.
    """
    done = file.status.reshape(file.layout.by_task)[:, :count] == DONE
    own, base = scenario, spec.baselines[scenario] if precision.difference else None
    chosen = done[own] if base is None else done[own] & done[base]
    samples = _read(file, precision, own, chosen)
    if base is not None:
        samples = samples - _read(file, precision, base, chosen)
    return measure_width(
        samples,
        precision.level,
        relative=precision.relative is not None,
        confidence=precision.confidence,
    )


def _read(
    file: Store, precision: Precision, scenario: int, chosen: NDArray[np.bool_]
) -> Floats:
    """Return what is judged of the replicates that are chosen: (..., replicates)."""
    output = file.layout.output(precision.output)
    rows = file.read_scenario(f"/series/{output.name}", scenario)[: len(chosen)]
    rows = rows[chosen].astype(float)
    if precision.summary is None:
        return np.ascontiguousarray(np.moveaxis(rows, 0, -1))
    steps = output.shape[0] if output.shape else 1
    places = np.arange(steps, dtype=float)
    rows = rows.reshape(len(rows), steps)
    return bands.summarise(precision.summary, rows, places, padded=output.padded)
