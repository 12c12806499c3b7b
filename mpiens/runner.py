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
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from mpiens.bell import Bell
from mpiens.child import (
    Cell,
    Channel,
    Ended,
    adopt_orphans,
    children,
    collect_ended,
    end_children,
    fork,
    has_ended,
    keep_memory,
    on_standard_error,
    take_long_turns,
)
from mpiens.executor import CLOSED_FILES, MARK, Executor, Watch, flush_standard
from mpiens.heartbeat import watch_parent
from mpiens.outcome import ROW
from mpiens.program import forget
from mpiens.spec import Spec

TAIL = 64 << 10  # bytes kept of what a model prints
PIPE_BYTES = 1 << 20  # Linux's limit for everybody
WHERE = signal.SIGUSR2  # a runner prints where it is, and ends
_OWN = re.compile(  # lines of a crash that lead to the model, and tell nothing of it
    rf'^ +File "(?:{re.escape(str(Path(__file__).parent))}/|<).*\n', re.MULTILINE
)


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
        self._loud = False  # the model prints so much that the pipe may fill

    def send(self, kind: int, data: bytes) -> None:
        """Give the runner something to do; what a dead one misses is done again."""
        with suppress(Ended):
            self.channel.send(kind, data)

    def poll(self) -> list[tuple[int, bytearray]]:
        """Return the runner's frames; Ended when it has gone."""
        self._loud = False
        self._drain()
        # not told by the socket alone: a fork of the model's may hold it open
        gone = has_ended(self.pid)
        frames = self.channel.poll()
        self._drain()  # what was printed before a frame was sent has come before it
        if gone and not frames:
            raise Ended
        return frames

    def wait(self, seconds: float, bell: Bell) -> bool:
        """Sleep until the runner has something to say or the bell rings: if it did."""
        files = [self.channel.socket.fileno()]
        if self._loud:  # else what is printed can wait, and would wake us at every task
            files.append(self.output)
        return bell.wait(seconds, *files)

    @property
    def processes(self) -> set[int]:
        """The runner, and its fork that runs the model, where there is one."""
        return {self.pid, self.cell.process or self.pid}

    def printed(self, task: int) -> str:
        """Return the end of what a task has printed."""
        _, mark, after = bytes(self.tail).rpartition(MARK % task)
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
                self._loud |= len(data) == TAIL
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

    def wait(self, seconds: float, bell: Bell) -> bool:
        """Sleep until the bell rings, unless there is something to do: if it did."""
        return not self._orders and bell.wait(seconds)

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
    take_long_turns()
    keep_memory()
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
