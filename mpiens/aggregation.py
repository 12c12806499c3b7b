"""What is made of all replicates of each scenario, once all tasks are finished.

The manager deals a step for every scenario, with the rows that it is made of; what
comes back is kept on the shelf, and goes into the file when all is there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens.layout import DONE
from mpiens.outcome import Batch, Failure, Ranks, StepResult, Tasks
from mpiens.row import Described, Output, Row, find_storage
from mpiens.shelf import Shelf
from mpiens.spec import Pool, Step, to_text
from mpiens.store import Store
from mpiens.workqueue import Gate

Made = dict[str, NDArray[Any]]


class Aggregation:
    """Where the manager puts aggregates, and where it gets the rows for them."""

    def __init__(self, file: Store, shelf: Shelf, code: str) -> None:
        self._file = file
        self._spec = file.layout.spec
        self._shelf = shelf
        self._code = code
        self._done = file.status.reshape(file.layout.by_task) == DONE
        self._sums = file.read("/tasks/checksum")
        self._keys = [self._make_key(s) for s in range(len(self._spec.scenarios))]
        self._failed: set[int] = set()
        file.forget_steps(self._spec.tasks)

    @property
    def steps(self) -> Tasks:
        """The number of every scenario's step."""
        scenarios = range(len(self._spec.scenarios))
        numbers = [self._spec.step(Step.AGGREGATE, index) for index in scenarios]
        return np.array(numbers, dtype=np.int64)

    @property
    def row(self) -> Row:
        """What one task has left."""
        return self._file.layout.row

    @property
    def pending(self) -> Tasks:
        """The steps to be run: those of scenarios with rows and without a result."""
        todo = [
            key not in self._shelf and self._done[index].any()
            for index, key in enumerate(self._keys)
        ]
        return np.asarray(self.steps[np.array(todo)])

    @property
    def gate(self) -> Gate:
        """What tasks wait for: nothing, all rows are there."""
        nbytes = self._file.layout.row.dtype.itemsize * self._spec.replicates
        return Gate(self.steps, np.ones(len(self._keys), dtype=bool), max(1, nbytes))

    def inputs(self, scenario: int) -> bytes:
        """Return the rows of the replicates of a scenario that are done, pickled."""
        row = self._file.layout.row
        replicates = np.flatnonzero(self._done[scenario])
        rows = np.zeros(len(replicates), row.dtype)
        for output in row.stored:
            path = f"/series/{output.name}"
            rows[output.name] = self._file.read_scenario(path, scenario)[replicates]
        return pickle.dumps((replicates, row, rows), protocol=5)

    def keep(self, result: StepResult, rank: int) -> None:
        """Keep what was made of a scenario."""
        del rank
        self._shelf.put(self._keys[self._spec.scenario_of(result.task)], result.data)

    def fail(self, failure: Failure, rank: int) -> None:
        """Keep why nothing could be made of a scenario."""
        del rank
        scenario = self._spec.scenario_of(failure.task)
        self._failed.add(scenario)
        name = self._spec.scenarios[scenario].name
        text = f"scenario {name!r}, aggregate, attempt {failure.attempts}"
        self._file.write_failure(failure.task, f"{text}\n{failure.text}")

    def expect(self, tasks: Tasks, *, wary: bool = False) -> NDArray[np.float64]:
        """Nothing is known of how long aggregates take."""
        del wary
        return np.full(len(tasks), np.nan)

    def tick(self) -> bool:
        """No number of failures makes this hopeless: the rows are there."""
        return False

    def settle(self, described: Described | None) -> Row:
        """Not called: the layout is known."""
        raise RuntimeError("rows have been settled already")

    def lay_down(self, meanwhile: Callable[[], object]) -> None:
        """Not called: there is a file."""
        raise RuntimeError("the file has been laid down already")

    def write(self, batch: Batch, ranks: Ranks) -> None:
        """Not called: all rows are there."""
        raise RuntimeError("aggregates are no rows")

    def finish(self) -> dict[str, Any]:
        """Put what was made into the file, and return what is to be said of it.

        Where lengths differ between scenarios, or one has nothing, there is NaN.
        """
        made: list[Made] = [
            pickle.loads(self._shelf.get(key)) if key in self._shelf else {}
            for key in self._keys
        ]
        known: dict[str, int] = {}
        for index, one in enumerate(made):
            if text := _contradict(one, known):
                number = self._spec.step(Step.AGGREGATE, index)
                self.fail(Failure(number, 1, 0.0, text), 0)
                one.clear()
        whole = {name: stack([one.get(name) for one in made]) for name in known}
        described = tuple(self._describe(name, array) for name, array in whole.items())
        layout = dataclasses.replace(self._file.layout, aggregates=described)
        self._file.extend(layout, {f"/aggregate/{n}": a for n, a in whole.items()})
        failed = len(self._failed)
        return {"aggregate_code": self._code, "aggregates_failed": failed}

    def _make_key(self, scenario: int) -> bytes:
        own = self._spec.scenarios[scenario]
        parts = [
            *("aggregate", self._code, own.name, to_text(dict(own.parameters))),
            *(str(self._spec.ensemble.seed), repr(self._file.layout.row)),
            repr(self._spec.bands.levels),
            *(
                self._done[scenario].tobytes().hex(),
                self._sums[scenario].tobytes().hex(),
            ),
        ]
        return hashlib.sha256("\0".join(parts).encode()).digest()

    def _describe(self, name: str, array: NDArray[Any]) -> Output:
        dims = [f"aggregate_{name}_{axis}" for axis in range(array.ndim - 1)]
        aggregate = self._spec.aggregate
        pool = aggregate.pools.get(name) if aggregate else None
        if pool is not None and pool.kind == "quantiles" and pool.levels is None:
            dims[0] = "level"
        units = self._units(pool)
        return Output(name, tuple(dims), array.shape[1:], array.dtype.str, units=units)

    def _units(self, pool: Pool | None) -> str | None:
        if pool is None or pool.output is None or pool.kind == "count":
            return None
        if pool.kind in ("histogram", "density"):
            return None
        return self._file.layout.output(pool.output).units


def _contradict(made: Made, known: dict[str, int]) -> str:
    """Say where an array has not as many dimensions as before; note what is new."""
    for name, array in made.items():
        if (before := known.setdefault(name, array.ndim)) != array.ndim:
            what = f"aggregate {name!r} has {array.ndim} dimensions here"
            return f"{what}, and {before} in scenarios before this one"
    return ""


def stack(arrays: list[NDArray[Any] | None]) -> NDArray[Any]:
    """Return arrays of all scenarios as one, with NaN where one is shorter or none."""
    present = [array for array in arrays if array is not None]
    shapes = {array.shape for array in present}
    given = np.result_type(*(array.dtype for array in present))
    dtype = np.dtype(find_storage(given)[0])
    shape = tuple(max(sizes) for sizes in zip(*shapes, strict=True))
    if len(present) < len(arrays) or len(shapes) > 1:
        dtype = np.result_type(dtype, np.float64)
    whole = np.full((len(arrays), *shape), np.nan if dtype.kind == "f" else 0, dtype)
    for index, array in enumerate(arrays):
        if array is not None:
            part = tuple(map(slice, array.shape))
            whole[(slice(index, index + 1), *part)] = array
    return whole
