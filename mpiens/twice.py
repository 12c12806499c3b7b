"""Whether a task gives the same bits again: in one runner, and in another one.

A model whose answer depends on what an earlier task has left behind, or on anything
but its arguments, breaks the promise that ranks do not change an answer.  Each runner
is an interpreter of its own here, as each rank's is: what depends on the hashes of
strings differs between two of them.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpiens import window
from mpiens.child import Cell, on_standard_error
from mpiens.executor import Executor, Watch
from mpiens.outcome import BATCH, DESCRIBE, FAILURE, STEP, Batch, Inputs
from mpiens.pilot import settle_windows
from mpiens.reader import read
from mpiens.row import Row, settle
from mpiens.spec import Spec, Step
from mpiens.trial import make_example

SAME, UNLIKE = 0, 3
Rows = list[NDArray[np.void]]


class Failed(Exception):  # noqa: N818  (it brings the text of another one)
    """A task that was to be compared failed."""


def compare_twice(path: Path, spec: Spec) -> int:
    """Run a task in one runner and in two, tell whether it is the same, as exit code.

    In one runner the ensemble's last task is run in between, too.
    """
    first, last = 0, spec.tasks - 1
    try:
        one, again, *_, late = _run_apart(path, [first, first, last, first])
        [other] = _run_apart(path, [first])
    except Failed as failure:
        print(f"twice: a task failed\n{failure}", file=sys.stderr)
        return UNLIKE
    name = spec.scenarios[0].name
    what = f"twice: scenario {name}, replicate 0"
    if output := _differ(one, other):
        print(
            f"{what} differs between two runners in output {output!r}: it depends on "
            "more than its arguments, such as the time, files, or the order of a set"
        )
        return UNLIKE
    if output := _differ(one, again) or _differ(one, late):
        print(
            f"{what} differs within one runner in output {output!r}: something is left "
            'behind by tasks; [model] fresh = "task" gives each of them a clean runner'
        )
        return UNLIKE
    print(f"{what} is the same in one runner and in two")
    return SAME


def _run_apart(path: Path, numbers: list[int]) -> Rows:
    """Return the rows of tasks, run in this order by an interpreter of its own."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        words = [str(path), str(answer), *map(str, numbers)]
        command = [sys.executable, "-m", "mpiens.twice", *words]
        ended = subprocess.run(command, stdout=sys.stderr, check=False)
        if ended.returncode or not answer.exists():
            text = f"the model ended its process with exit code {ended.returncode}"
            raise Failed(text)
        answered: Rows | str = pickle.loads(answer.read_bytes())
    if isinstance(answered, str):
        raise Failed(answered)
    return answered


def run_in_turn(spec: Spec, numbers: list[int]) -> Rows:
    """Return the rows of tasks, as one runner runs them; Failed where one fails."""
    frames: list[tuple[int, bytes]] = []

    def take() -> tuple[int, bytes]:
        kind, data = frames.pop()
        if kind == FAILURE:
            raise Failed(pickle.loads(data).text)
        return kind, data

    executor = Executor(
        spec,
        lambda: window.hold(spec),
        lambda *frame: frames.append(frame),
        Watch(Cell()),
    )
    row: Row | None = None
    rows: Rows = []
    prepared: dict[int, bytes] = {}
    for number in numbers:
        scenario = spec.scenario_of(number)
        if spec.calibrate is not None:
            prepared[scenario] = pickle.dumps(make_example(spec))
        if spec.prepare is not None and scenario not in prepared:
            step = spec.step(Step.PREPARE, scenario)
            executor.execute(np.array([step]), 1, {})
            kind, data = take()
            prepared[scenario] = pickle.loads(data).data if kind == STEP else b""
        inputs: Inputs = prepared
        executor.execute(np.array([number]), 1, inputs)
        kind, data = take()
        if kind == DESCRIBE:
            row = settle(spec, pickle.loads(data).described)
            executor.settle(row)
            kind, data = take()
        if kind == BATCH and row is not None:
            rows.append(Batch.from_bytes(data, row).rows)
    return rows


def _differ(one: NDArray[np.void], other: NDArray[np.void]) -> str:
    """Return the first output whose bytes differ, or nothing."""
    for name in one.dtype.names or ():
        if one[name].tobytes() != other[name].tobytes():
            return name
    return ""


def _answer(path: str, answer: str, *numbers: str) -> None:
    """Run tasks in this interpreter, and leave their rows in a file."""
    spec = settle_windows(read(path)).require()
    rows: Rows | str
    with on_standard_error():
        try:
            rows = run_in_turn(spec, [int(number) for number in numbers])
        except Failed as failure:
            rows = str(failure)
    Path(answer).write_bytes(pickle.dumps(rows))


if __name__ == "__main__":
    _answer(*sys.argv[1:])
