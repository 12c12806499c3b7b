"""The child process in which a rank executes the model.

A runner is forked once the shared data is in place.  It gets ranges of tasks over a
socket and sends back, in order, what they left; it never touches MPI and leaves only
by ``os._exit``, so that whatever a model does costs its task and not the job.
"""

from __future__ import annotations

import faulthandler
import fcntl
import gc
import os
import pickle
import re
import resource
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mpiens import compilation, streams
from mpiens.child import (
    Cell,
    Channel,
    ChildDied,
    Ended,
    adopt_orphans,
    ask_child,
    children,
    collect_ended,
    end_children,
    end_like,
    fork,
    has_ended,
    on_standard_error,
    watch_parent,
)
from mpiens.model import Model, format_failure
from mpiens.outcome import (
    PRINTED,
    RECORD,
    Batch,
    Description,
    Failure,
    Inputs,
    StepResult,
    Tasks,
)
from mpiens.program import ProgramError, forget
from mpiens.row import Row, as_bytes, checksum, describe
from mpiens.spec import Spec, Step
from mpiens.steps import Steps
from mpiens.streams import Stream
from mpiens.trial import make_streams

Send = Callable[[int, bytes], None]
TAIL = 64 << 10  # bytes kept of what a model prints
PIPE_BYTES = 1 << 20  # Linux's limit for everybody
FLUSH_SECONDS = 0.02  # how long a finished row may wait in the runner
FLUSH_BYTES = 1 << 20
_MARK = b"\0task %d\0"
WHERE = signal.SIGUSR2  # a runner prints where it is, and ends
_OWN = re.compile(  # lines of a crash that lead to the model, and tell nothing of it
    rf'^ +File "(?:{re.escape(str(Path(__file__).parent))}/|<).*\n', re.MULTILINE
)
CLOSED_FILES = 113  # how a runner ends whose model has closed the runner's files
# kinds of frames; the first two go to a runner, the others come from it
ROW, TASKS, BATCH, FAILURE, DESCRIBE, STEP = range(6)


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

    def begin(self, task: int) -> None:
        """A task begins now."""
        self._cell.write(task)
        self._process = os.getpid()
        if self._files:  # so that what is printed can be told apart by task
            with suppress(OSError):
                os.write(1, _MARK % task)
        if self._memory is not None:
            limit = _data_bytes() + self._memory
            resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))

    def end(self) -> None:
        """A task has ended: without its files a runner cannot go on, and says so."""
        if os.getpid() != self._process:  # a fork of the model's that came back here
            os._exit(0)
        flush_standard()
        if self._memory is not None:
            unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_DATA, unlimited)
        for file, identity in self._files.items():
            if _identify(file) != identity:
                os._exit(CLOSED_FILES)

    def rest(self) -> None:
        """No task runs."""
        self._cell.clear()


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


class Executor:
    """Runs tasks one by one and hands on what they leave; knows of no process."""

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

    def execute(self, tasks: Tasks, attempts: int, inputs: Inputs) -> None:
        """Run a range of tasks, or of scenarios' steps."""
        numbers = tasks.tolist()
        batch = _Packer(self._row, len(tasks), self._send) if self._row else None
        made: Iterator[Stream | None] = streams.of(self._spec, numbers)
        if self._spec.calibrate is not None:
            made = make_streams(self._spec, numbers, inputs)
        turn = ExitStack()
        for task, stream in zip(numbers, made, strict=True):
            step, _ = self._spec.step_of(task)
            given = inputs.get(self._spec.input_of(task), b"")
            if step not in self._met:  # it may compile
                self._met.add(step)
                turn.enter_context(compilation.turn())
            start = time.perf_counter()
            try:
                returned = self._call(task, stream, given)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # also SystemExit: it is the model's fault
                self._fail(task, attempts, time.perf_counter() - start, error)
                continue
            finally:
                turn.close()
            seconds = time.perf_counter() - start
            if step is not None:
                done = StepResult(task, attempts, seconds, returned)
                self._send(STEP, pickle.dumps(done))
            elif batch is None:
                self._hold(task, attempts, seconds, returned)
            else:
                self._pack(batch, task, attempts, seconds, returned)
        self._watch.rest()
        if batch is not None:
            batch.flush()

    def _call(self, task: int, stream: Stream | None, given: bytes) -> Any:
        """Run one task, be it in a fork that ends with all the model leaves behind."""

        step, scenario = self._spec.step_of(task)

        def act() -> Any:
            self._watch.begin(task)
            try:
                if step is Step.SCORE:
                    return self._steps.score(given)
                if stream is None:
                    raise RuntimeError("only what is scored has no stream")
                if step is not None:
                    return self._steps.run(step, scenario, stream, given)
                return self.model.run(task, stream, given)
            finally:
                self._watch.end()

        if not self._spec.fresh:
            return act()
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
        room = max(1, min(count, FLUSH_BYTES // size))
        self._rows = np.zeros(room, dtype=row.dtype)
        self._bytes = as_bytes(self._rows) if row.outputs else memoryview(b"")
        self._records = np.zeros(room, dtype=RECORD)
        self._filled = 0
        self._since = time.perf_counter()

    def add(self, task: int, attempts: int, seconds: float, returned: Any) -> None:
        index = self._filled
        self._row.fill(self._rows[index], returned)
        size = self._row.dtype.itemsize
        own = self._bytes[index * size : (index + 1) * size]
        self._records[index] = (task, checksum(own), seconds, attempts)
        self._filled += 1
        late = time.perf_counter() - self._since > FLUSH_SECONDS
        if late or self._filled == len(self._rows):
            self.flush()

    def flush(self) -> None:
        if self._filled:
            count = slice(0, self._filled)
            batch = Batch(self._records[count], self._rows[count])
            self._send(BATCH, batch.to_bytes())
            self._filled = 0
        self._since = time.perf_counter()


@dataclass
class Process:
    """A runner in a child process, as its supervisor sees it."""

    spec: Spec
    shared: Callable[[], Any]
    watching: bool = False  # whether the runner looks after a supervisor that is alone
    cell: Cell = field(default_factory=Cell)

    def __post_init__(self) -> None:
        mine, theirs = socket.socketpair()
        self.output, theirs_out = os.pipe()
        with suppress(OSError):  # a model that prints much need not wait so often
            fcntl.fcntl(theirs_out, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        os.set_blocking(self.output, False)

        adopt_orphans()
        self._others = children()  # an MPI may have some of its own

        def body() -> None:
            mine.close()
            os.close(self.output)
            _redirect(theirs_out)
            _tell_where()
            if self.watching:
                watch_parent(self.spec.limits.heartbeat)
            serve(Channel(theirs), self.spec, self.shared, self.cell)

        self.pid = fork(body)
        theirs.close()
        os.close(theirs_out)
        self.channel = Channel(mine)
        self.tail = bytearray()

    def send(self, kind: int, data: bytes) -> None:
        """Give the runner something to do; what a dead one misses is done again."""
        with suppress(Ended):
            self.channel.send(kind, data)

    def poll(self) -> list[tuple[int, bytearray]]:
        """Return the runner's frames; Ended when it has gone."""
        self._drain()
        # not told by the socket alone: a fork of the model's may hold it open
        gone = has_ended(self.pid)
        frames = self.channel.poll()
        self._drain()  # what was printed before a frame was sent has come before it
        if gone and not frames:
            raise Ended
        return frames

    def wait(self, seconds: float) -> None:
        """Sleep until the runner has something to say, at most so long."""
        ends = [self.channel.socket.fileno(), self.output]
        with suppress(OSError, ValueError):
            select.select(ends, [], [], seconds)

    @property
    def processes(self) -> set[int]:
        """The runner, and its fork that runs the model, where there is one."""
        return {self.pid, self.cell.process or self.pid}

    def printed(self, task: int) -> str:
        """Return the end of what a task has printed."""
        _, mark, after = bytes(self.tail).rpartition(_MARK % task)
        own = re.split(rb"\0task \d+\0", after if mark else bytes(self.tail))[0]
        return _OWN.sub("", own.decode(errors="replace"))

    def kill(self) -> None:
        """End the runner at once."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """End the runner once it has printed where it is, be it in a C function."""
        with suppress(ProcessLookupError):
            os.kill(self.cell.process or self.pid, WHERE)

    def tidy(self) -> None:
        """Collect what the model started, left alone, and has ended."""
        collect_ended(self.pid)

    def bury(self) -> int:
        """Collect the dead runner and end what its model has started.

        Returns the runner's exit code, or minus its signal.
        """
        self._drain()
        _, status = os.waitpid(self.pid, 0)
        end_children(self._others)
        self.channel.socket.close()
        os.close(self.output)
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        """End a runner that is no longer needed."""
        self.kill()
        self.bury()
        forget(self.cell.read()[0])

    def _drain(self) -> None:
        """Keep the end of what the model prints."""
        with suppress(BlockingIOError, OSError):
            for _ in range(64):
                data = os.read(self.output, TAIL)
                if not data:
                    break
                self.tail += data
                del self.tail[:-TAIL]


@dataclass
class Inline:
    """A runner without a process: the model runs in the supervisor itself."""

    spec: Spec
    shared: Callable[[], Any]
    cell: Cell = field(default_factory=Cell)

    def __post_init__(self) -> None:
        self._frames: deque[tuple[int, bytearray]] = deque()
        self._orders: deque[tuple[int, bytes]] = deque()
        self.processes = {os.getpid()}
        watch = Watch(self.cell)
        with on_standard_error():
            self._executor = Executor(self.spec, self.shared, self._collect, watch)

    def _collect(self, kind: int, data: bytes) -> None:
        self._frames.append((kind, bytearray(data)))

    def send(self, kind: int, data: bytes) -> None:
        """Remember what is to be done."""
        self._orders.append((kind, data))

    def poll(self) -> list[tuple[int, bytearray]]:
        """Do one thing, if there is any, and return its frames."""
        if self._orders:
            with on_standard_error():
                obey(self._executor, *self._orders.popleft())
        frames = list(self._frames)
        self._frames.clear()
        return frames

    def wait(self, seconds: float) -> None:
        """Sleep, unless there is something to do."""
        if not self._orders:
            time.sleep(seconds)

    def close(self) -> None:
        """Nothing is left to end."""

    def printed(self, task: int) -> str:
        """Nothing is kept: what the model prints is on standard error already."""
        del task
        return ""

    def tidy(self) -> None:
        """What the model started is its own affair."""

    def end(self) -> NoReturn:
        """Not to be had without a process."""
        raise RuntimeError("a model without a process of its own cannot be ended")

    def kill(self) -> NoReturn:
        """Not to be had without a process."""
        raise RuntimeError("a model without a process of its own cannot be ended")

    def bury(self) -> NoReturn:
        """Not to be had without a process."""
        raise RuntimeError("a model without a process of its own does not end")


Runner = Process | Inline


def obey(executor: Executor, kind: int, data: bytes | bytearray) -> None:
    """Do what a frame from the supervisor says."""
    order = pickle.loads(data)
    if kind == ROW:
        executor.settle(order)
    else:
        executor.execute(*order)


def serve(channel: Channel, spec: Spec, shared: Callable[[], Any], cell: Cell) -> None:
    """Run what the supervisor asks for, until it has gone."""
    gc.freeze()  # what the supervisor holds is no garbage of ours
    watch = Watch(cell, (1, 2, channel.socket.fileno()), spec.limits.task_memory)
    executor = Executor(spec, shared, channel.send, watch)
    while True:
        obey(executor, *channel.receive())
        flush_standard()


def tell_end(code: int) -> str:
    """Say how a model's process ended: an exit code, or minus a signal."""
    if code < 0:
        name = f"signal {-code}"
        with suppress(ValueError):  # real-time signals have no name
            name = signal.Signals(-code).name
        return f"the model's process was ended by {name}"
    if code == CLOSED_FILES:
        return "the model closed files that are not its own, and its process ended"
    return f"the model ended its own process with exit code {code}"


def tell_overdue(limit: float | None) -> str:
    """Say that a task took too long."""
    return f"the task took longer than task_seconds = {limit} and was ended"


def _tell_where() -> None:
    """Let crashes, and the signal of a supervisor, print the model's lines at last.

    The signal ends the runner from within its handler: a model that went on might take
    an interrupted call for a finished one.
    """
    signal.signal(WHERE, signal.SIG_DFL)
    faulthandler.enable(file=2)
    faulthandler.register(WHERE, file=2, chain=True)


def flush_standard() -> None:
    """Flush what Python holds back of what was printed."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # a model may have closed or replaced them
            stream.flush()


def _redirect(end: int) -> None:
    """Send what the model prints to the supervisor, which keeps the end of it."""
    os.dup2(end, 1)
    os.dup2(end, 2)
    os.close(end)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    sys.stdout = open(1, "w", buffering=8192, closefd=False, errors="replace")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="replace")  # noqa: SIM115
