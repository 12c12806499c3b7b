"""What a runner does with the tasks that it is given: one by one, or in bursts.

Around every task stands some care, so that whatever it does costs that task alone:
what is global is seeded, what it prints is told apart, and the files of the runner are
looked after.  Where tasks are so short that this would take most of the time they are
run in bursts, without it.  Afterwards it can be told whether anything of a burst was
unusual; then nothing of the burst counts, and its tasks are run again with all care.
"""

from __future__ import annotations

import os
import pickle
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpiens import compilation, generators, streams
from mpiens.child import Cell, ChildDied, ask_child, end_like
from mpiens.model import Model, format_failure
from mpiens.outcome import (
    BATCH,
    DESCRIBE,
    FAILURE,
    PRINTED,
    RECORD,
    STEP,
    Batch,
    Description,
    Failure,
    Inputs,
    StepResult,
    Tasks,
)
from mpiens.program import ProgramError
from mpiens.row import Row, as_bytes, checksums, describe
from mpiens.spec import Spec, Step
from mpiens.steps import Steps
from mpiens.streams import Stream
from mpiens.trial import make_streams

Send = Callable[[int, bytes], None]
Run = Callable[[int, Any], Any]
"""What runs a task, or a step, given its place among those that have a scenario in
common, and its stream."""

FLUSH_SECONDS = 0.02  # how long a finished row may wait in the runner
FLUSH_BYTES = 1 << 20
MARK = b"\0task %d\0"  # stands before what a task prints
CLOSED_FILES = 113  # how a runner ends whose model has closed the runner's files
# what tasks may take in the mean to be run in bursts: seconds, and seconds of a core
BRIEF, SHORT = FLUSH_SECONDS / 2, 5e-4
PROBATION = 8  # tasks, after a first, that are run one by one before that is known


class Told(Exception):  # noqa: N818  (it brings the text of another one)
    """A model's exception in a process of its own, as text."""


class Watch:
    """What is done around every task: tell which one runs, bound its memory, and see
    that it has not closed the files through which the runner speaks.
    """

    def __init__(
        self, cell: Cell, files: tuple[int, ...] = (), memory: int | None = None
    ) -> None:
        self._cell = cell
        self._files = {file: _identify(file) for file in files}
        self._process = os.getpid()
        self._memory = memory

    def begin(self, task: int, *, burst: bool = False) -> None:
        """A task begins now, or a burst of them."""
        self._cell.write(task, burst=burst)
        self._process = os.getpid()
        if self._files:  # so that what is printed can be told apart by task
            with suppress(OSError):
                os.write(1, MARK % task)
        if self._memory is not None:
            limit = _data_bytes() + self._memory
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))

    def end(self) -> None:
        """It has ended: without its files a runner cannot go on, and says so."""
        self.end_forks()
        flush_standard()
        if self._memory is not None:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_DATA, unlimited)
        for file, identity in self._files.items():
            if _identify(file) != identity:
                os._exit(CLOSED_FILES)

    def end_forks(self) -> None:
        """End this process if it is a fork of the model's that has come back."""
        if os.getpid() != self._process:
            os._exit(0)

    def rest(self) -> None:
        """No task runs."""
        self._cell.clear()


class Trust:
    """Whether tasks may be run in bursts, which they earn by being short and plain.

    They are plain if they draw from no global generator.  It is lost for good: bursts
    that are in vain cost more than they gain.
    """

    def __init__(self, spec: Spec) -> None:
        careful = spec.fresh or spec.limits.task_memory is not None
        self._possible = not (careful or spec.calibrate or spec.model.command)
        self._short = False
        self._tasks, self._seconds = -1, 0.0  # since that was judged last
        self._busy = time.thread_time()

    @property
    def probing(self) -> bool:
        """Whether one wants to know more of the tasks that are run."""
        return self._possible and not self._short

    @property
    def earned(self) -> bool:
        """Whether the next tasks may be run in a burst."""
        return self._possible and self._short

    def note(self, seconds: float, *, tasks: int = 1, drew: bool = False) -> None:
        """Note what tasks took, and whether they drew from a global generator."""
        self._possible &= not drew
        self._tasks, self._seconds = self._tasks + tasks, self._seconds + seconds
        if self._tasks == 0:  # a first one may import and compile
            self._seconds, self._busy = 0.0, time.thread_time()
        if self._tasks >= PROBATION:
            busy = time.thread_time()  # by the clock alone a busy machine has none
            means = np.array([self._seconds, busy - self._busy]) / self._tasks
            self._short = bool((means < (BRIEF, SHORT)).all())
            self._tasks, self._seconds, self._busy = 0, 0.0, busy

    def lose(self) -> None:
        """Run no more bursts."""
        self._possible = False


class Executor:
    """Runs tasks and hands on what they leave; knows of no process."""

    def __init__(
        self,
        spec: Spec,
        shared: Callable[[], Any],
        send: Send,
        watch: Watch,
    ) -> None:
        self._spec = spec
        self._send = send
        self._watch = watch
        self._row: Row | None = None
        self._held: list[tuple[Any, ...]] = []
        self._met: set[Step | None] = set()  # kinds of what has been run
        self._trust = Trust(spec)
        self.model = Model(spec, shared)
        self._steps = Steps(spec, self.model)

    def settle(self, row: Row) -> None:
        """The layout is known now: hand on what has been held back for it."""
        self._row = row
        batch = _Packer(row, len(self._held), self._send)
        for task, attempts, seconds, returned in self._held:
            self._pack(batch, task, attempts, seconds, returned)
        batch.flush()
        self._held = []

    def execute(
        self, tasks: Tasks, attempts: int, inputs: Inputs, careful: bool = False
    ) -> None:
        """Run a range of tasks, or of scenarios' steps; ``careful``: one by one."""
        if careful:
            self._trust.lose()
        numbers = tasks.tolist()
        batch = _Packer(self._row, len(tasks), self._send) if self._row else None
        made: Iterator[Stream | None] = streams.of(self._spec, numbers)
        if self._spec.calibrate is not None:
            made = make_streams(self._spec, numbers, inputs)
        todo = list(zip(numbers, made, strict=True))
        own, run = self._bind(numbers[0], inputs) if numbers else (range(0), None)
        done = 0
        while run is not None and done < len(todo):
            task, stream = todo[done]
            if task not in own:
                own, run = self._bind(task, inputs)
            brief = self._trust.earned and task < self._spec.tasks
            if batch is not None and brief and attempts == 1:
                part = todo[done : done + batch.room]
                done += self._burst(batch, attempts, run, own, part)
            else:
                act = partial(run, task - own.start, stream)
                self._run_one(batch, task, attempts, act, stream)
                done += 1
        self._watch.rest()
        if batch is not None:
            batch.flush()

    def _bind(self, number: int, inputs: Inputs) -> tuple[range, Run]:
        """Return which numbers have a scenario, or a step, in common, and what runs it.

        Every function that runs one leaves what is global unseeded, but for steps.
        """
        step, scenario = self._spec.step_of(number)
        given = inputs.get(self._spec.input_of(number), b"")
        if step is None:
            first = self._spec.number(scenario, 0)
            own = range(first, first + self._spec.replicates)
            return own, self.model.bind(scenario, given)
        own = range(number, number + 1)
        if step is Step.SCORE:
            return own, lambda _, __: self._steps.score(given)
        return own, lambda _, stream: self._steps.run(step, scenario, stream, given)

    def _burst(
        self,
        batch: _Packer,
        attempts: int,
        run: Run,
        own: range,
        todo: Sequence[tuple[int, Stream | None]],
    ) -> int:
        """Run tasks of one scenario without care; return how many of them count."""
        returned: list[Any] = []
        first, process = own.start, os.getpid()
        getpid, clock = os.getpid, time.perf_counter  # looked up once
        times = [clock()]
        end = times[0] + FLUSH_SECONDS
        before = generators.look()
        self._watch.begin(todo[0][0], burst=True)
        try:
            for task, stream in todo:
                if task not in own or times[-1] > end:
                    break
                returned.append(run(task - first, stream))
                if getpid() != process:
                    self._watch.end_forks()
                times.append(clock())
            self._watch.end()
            if generators.look() != before:
                raise RuntimeError("a global generator was drawn from")
            tasks = [task for task, _ in todo[: len(returned)]]
            batch.add_all(tasks, attempts, np.diff(times), returned)
        except KeyboardInterrupt:
            raise
        except BaseException:  # with care it will be told what was wrong
            self._watch.end_forks()
            self._trust.lose()
            return 0
        self._trust.note(times[-1] - times[0], tasks=len(returned))
        return len(returned)

    def _run_one(
        self,
        batch: _Packer | None,
        task: int,
        attempts: int,
        run: Callable[[], Any],
        stream: Stream | None,
    ) -> None:
        """Run one task, or one step, with all care."""
        step, _ = self._spec.step_of(task)
        drew = False

        def act() -> Any:
            nonlocal drew
            self._watch.begin(task)
            try:
                if step is None and stream is not None:
                    generators.seed(stream.seed)
                before = generators.look() if self._trust.probing else None
                returned = run()
                drew = before is not None and before != generators.look()
                return returned
            finally:
                self._watch.end()

        turn = ExitStack()
        if step not in self._met:  # it may compile
            self._met.add(step)
            turn.enter_context(compilation.turn())
        start = time.perf_counter()
        try:
            returned = self._call_apart(act) if self._spec.fresh else act()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # also SystemExit: it is the model's fault
            self._fail(task, attempts, time.perf_counter() - start, error)
            return
        finally:
            turn.close()
        seconds = time.perf_counter() - start
        if step is not None:
            done = StepResult(task, attempts, seconds, returned)
            self._send(STEP, pickle.dumps(done))
            return
        self._trust.note(seconds, drew=drew)
        if batch is None:
            self._hold(task, attempts, seconds, returned)
        else:
            self._pack(batch, task, attempts, seconds, returned)

    def _call_apart(self, act: Callable[[], Any]) -> Any:
        """Run one task in a fork that ends with all the model leaves behind."""
        try:
            returned, told = ask_child(lambda: self._answer(act))
        except ChildDied as news:
            end_like(news.code)  # for the supervisor to say why, and whose fault it is
        if told is not None:
            raise Told(told)
        return pickle.loads(returned)

    def _answer(self, act: Callable[[], Any]) -> tuple[bytes, str | None]:
        """Return what a task returned, pickled, or the text of what it raised."""
        try:
            return pickle.dumps(act()), None
        except BaseException as error:
            return b"", self._tell(error)

    def _hold(self, task: int, attempts: int, seconds: float, returned: Any) -> None:
        try:
            described = describe(self._spec, returned)
        except ValueError as error:
            self._fail(task, attempts, seconds, error)
            return
        kept = {
            name: np.array(value) for name, value in returned.items()
        }  # it may reuse
        self._held.append((task, attempts, seconds, kept))
        nbytes = sum(value.nbytes for value in kept.values())
        news = Description(task, described, nbytes, seconds)
        self._send(DESCRIBE, pickle.dumps(news))

    def _pack(
        self, batch: _Packer, task: int, attempts: int, seconds: float, returned: Any
    ) -> None:
        try:
            batch.add(task, attempts, seconds, returned)
        except ValueError as error:
            self._fail(task, attempts, seconds, error)

    def _fail(
        self, task: int, attempts: int, seconds: float, error: BaseException
    ) -> None:
        self._trust.lose()  # a burst with such a task would be in vain
        flush_standard()  # what it printed is part of what happened
        stray = isinstance(error, ProgramError) and error.stray
        failure = Failure(task, attempts, seconds, self._tell(error), stray)
        self._send(FAILURE, pickle.dumps(failure))

    def _tell(self, error: BaseException) -> str:
        """Return the text of a failure."""
        if isinstance(error, Told):
            return str(error)
        text = format_failure(error)
        limit = self._spec.limits.task_memory
        if isinstance(error, MemoryError) and limit is not None:
            text += f"the task may allocate task_memory = {limit} bytes\n"
        if isinstance(error, ProgramError) and error.said:
            text += f"\n{PRINTED}\n{error.said}"
        return text


class _Packer:
    """Collects rows and sends them when they are many, or have waited long enough."""

    def __init__(self, row: Row, count: int, send: Send) -> None:
        self._row = row
        self._send = send
        size = max(row.dtype.itemsize, 1)
        places = max(1, min(count, FLUSH_BYTES // size))
        self._rows = np.zeros(places, dtype=row.dtype)
        self._bytes = as_bytes(self._rows) if row.outputs else memoryview(b"")
        self._records = np.zeros(places, dtype=RECORD)
        self._filled = 0
        self._since = time.perf_counter()

    @property
    def room(self) -> int:
        """How many more rows are taken before any is sent."""
        return len(self._rows) - self._filled

    def add(self, task: int, attempts: int, seconds: float, returned: Any) -> None:
        """Take what a task returned; OutputError where that is wrong."""
        index = self._filled
        self._row.fill(self._rows[index], returned)
        [own] = checksums(self._bytes, self._row.dtype.itemsize, [index])
        self._records[index] = (task, own, seconds, attempts)
        self._count(1)

    def add_all(
        self,
        tasks: Sequence[int],
        attempts: int,
        seconds: Any,
        returned: Sequence[Any],
    ) -> None:
        """Take what tasks returned, or none of it: OutputError where some is wrong."""
        indices = range(self._filled, self._filled + len(tasks))
        own = slice(indices.start, indices.stop)
        self._row.fill_all(self._rows[own], returned)
        records = self._records[own]
        records["task"], records["seconds"] = tasks, seconds
        records["attempts"] = attempts
        records["checksum"] = checksums(self._bytes, self._row.dtype.itemsize, indices)
        self._count(len(tasks))

    def flush(self) -> None:
        """Send what there is."""
        if self._filled:
            count = slice(0, self._filled)
            batch = Batch(self._records[count], self._rows[count])
            self._send(BATCH, batch.to_bytes())
            self._filled = 0
        self._since = time.perf_counter()

    def _count(self, more: int) -> None:
        self._filled += more
        late = time.perf_counter() - self._since > FLUSH_SECONDS
        if late or not self.room:
            self.flush()


def flush_standard() -> None:
    """Flush what Python holds back of what was printed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a model may have closed or replaced them
            stream.flush()


def _identify(file: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _data_bytes() -> int:
    """Return the memory that RLIMIT_DATA counts: what this process may write to."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
