"""Child processes of a rank: they die with it, and talk to it in frames."""

from __future__ import annotations

import ctypes
import faulthandler
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from mpiens.deadline import Look, look_away
from mpiens.fault import Fault, SpecError, place

_HEAD = struct.Struct("<qB")  # length and kind of a frame
_BUFFER = 1 << 20
_LONG = 1 << 16  # bytes of a frame that is worth memory of its own at once
TURN_SECONDS = 0.1  # on a core, and the most that the kernel allows
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, times
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274, "riscv64": 274, "ppc64le": 355}
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST_PIECE, MOST_KEPT = 32 << 20, 256 << 20  # bytes; the first is the most it takes
LOOK_SECONDS = 0.1  # between two looks while a child is waited for
ANSWER = 0  # the one kind of frame that ask_child knows


class Ended(Exception):  # noqa: N818  (it is news, not an error)
    """The other end of the socket has gone."""


class ChildDied(SpecError):  # noqa: N818  (it is news of a process)
    """A child ended and left no answer: with an exit code, or minus a signal."""

    def __init__(self, code: int) -> None:
        text = f"importing the model ended its process with code {code}"
        super().__init__([Fault(place("ensemble", "model"), text)])
        self.code = code


class Channel:
    """Frames over a socket; a reader that never blocks, a writer that may."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self._received = bytearray()
        self._long: tuple[int, bytearray, int] | None = None  # kind, frame, bytes there

    def send(self, kind: int, data: bytes | bytearray) -> None:
        """Send one frame, waiting until the other end has taken it."""
        self.send_raw(_HEAD.pack(len(data), kind))
        self.send_raw(data)

    def send_raw(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes as they are, waiting until the other end has taken them."""
        try:
            self.socket.sendall(data)
        except OSError as error:
            raise Ended from error

    def receive(self) -> tuple[int, bytearray]:
        """Wait for one frame."""
        while (frame := self._next()) is None:
            self._fill()
        return frame

    def poll(self) -> list[tuple[int, bytearray]]:
        """Return the frames that are there; Ended once all are read and none follow."""
        frames = []
        try:
            while True:
                try:
                    self._fill(socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                while (frame := self._next()) is not None:
                    frames.append(frame)
                if len(frames) > 16:  # let the caller look after other things
                    break
        except Ended:
            if not frames:
                raise
        return frames

    def wait(self, seconds: float) -> bool:
        """Wait until something has come, at most so long; whether it has."""
        if self._received:
            return True
        return bool(select.select([self.socket], [], [], seconds)[0])

    def receive_into(self, part: memoryview) -> None:
        """Wait for raw bytes that follow a frame, and put them straight into memory."""
        early = self._received[: len(part)]
        part[: len(early)] = early
        del self._received[: len(early)]
        part = part[len(early) :]
        while part:
            try:
                got = self.socket.recv_into(part)
            except OSError as error:
                raise Ended from error
            if got == 0:
                raise Ended
            part = part[got:]

    def _fill(self, flags: int = 0) -> None:
        try:
            if self._long is not None:  # straight into its place
                kind, frame, there = self._long
                got = self.socket.recv_into(memoryview(frame)[there:], 0, flags)
                self._long = kind, frame, there + got
            else:
                data = self.socket.recv(_BUFFER, flags)
                got = len(data)
                self._received += data
        except BlockingIOError:
            raise
        except OSError as error:
            raise Ended from error
        if not got:
            raise Ended

    def _next(self) -> tuple[int, bytearray] | None:
        if self._long is not None:
            kind, frame, there = self._long
            if there < len(frame):
                return None
            self._long = None
            return kind, frame
        if len(self._received) < _HEAD.size:
            return None
        length, kind = _HEAD.unpack_from(self._received)
        end = _HEAD.size + length
        if len(self._received) < end:
            if length > _LONG:
                frame, there = bytearray(length), len(self._received) - _HEAD.size
                frame[:there] = self._received[_HEAD.size :]
                self._received.clear()
                self._long = kind, frame, there
            return None
        frame = self._received[_HEAD.size : end]
        del self._received[:end]
        return kind, frame


def fork(body: Callable[[], None]) -> int:
    """Run the body in a child that dies with its parent; return the child's pid."""
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    if pid := os.fork():
        return pid
    code = 1
    try:
        die_with(parent)
        for number in (signal.SIGINT, signal.SIGUSR1):  # the supervisor decides
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # how pools end their workers
        body()
        code = 0
    except Ended:
        pass  # the supervisor has gone
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stderr.flush()
        os._exit(code)


def end_like(code: int) -> NoReturn:
    """End this process as another one ended: by an exit code, or minus a signal."""
    if code < 0:
        faulthandler.disable()  # that one has told where it was
        with suppress(OSError):  # some signals cannot be handled
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
        signal.pause()
    os._exit(code)


def ask_child(question: Callable[[], Any], look: Look = look_away) -> Any:
    """Return what a function returns in a child process, or raise its SpecError.

    For what runs a user's code where no runner does: it leaves nothing behind here.
    Raises ChildDied where the code ended the process.
    """
    mine, theirs = socket.socketpair()

    def body() -> None:
        mine.close()
        os.dup2(2, 1)  # what the user's code prints is no answer
        try:
            answer = question()
        except SpecError as error:
            answer = error
        Channel(theirs).send(ANSWER, pickle.dumps(answer))

    pid = fork(body)
    theirs.close()
    channel = Channel(mine)
    try:
        await_child(pid, channel, look)
        _, data = channel.receive()
    except Ended:
        _, status = os.waitpid(pid, 0)
        raise ChildDied(os.waitstatus_to_exitcode(status)) from None
    finally:
        mine.close()
    os.waitpid(pid, 0)
    answer = pickle.loads(data)
    if isinstance(answer, SpecError):
        raise answer
    return answer


def await_child(pid: int, channel: Channel, look: Look) -> None:
    """Wait until a child has begun to answer; what ``look`` raises ends the child."""
    try:
        while not channel.wait(LOOK_SECONDS):
            look()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        raise


def die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies."""
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def take_long_turns() -> None:
    """Ask the kernel to change between this process and others as seldom as it may.

    Where more simulations run than there are cores, each of them finds the caches full
    of another one's data after each change.  Who sleeps is woken as before.  Linux
    takes it since 6.12 (sched_setattr(2), the slice of EEVDF); others do not change.
    """
    call = _SCHED_SETATTR.get(os.uname().machine)
    if call is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    turn = int(TURN_SECONDS * 1e9)
    words = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, turn, 0, 0)
    with suppress(AttributeError):  # a C library without syscall()
        ctypes.CDLL(None).syscall(call, 0, words, 0)


def keep_memory() -> None:
    """Let the C library keep what a model gives back, for what it asks for next.

    What comes from the kernel instead are pages that it has to clear first, one by one,
    for every array that a step of a simulation makes.  The GNU library would come to
    the same limit for pieces by itself, once so large a piece has been given back; a
    larger one stays a mapping of its own, of which what is not touched costs nothing.
    Left alone where the user has said how memory is to be kept.
    """
    if any(n.startswith("MALLOC_") or n == "GLIBC_TUNABLES" for n in os.environ):
        return
    with suppress(AttributeError):  # another C library
        change = ctypes.CDLL(None).mallopt
        change(_MMAP_THRESHOLD, LARGEST_PIECE)
        change(_TRIM_THRESHOLD, MOST_KEPT)


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine is stopped, by a signal or a tracer."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] in ("T", "t")


def adopt_orphans() -> None:
    """Become the parent of what dead children leave behind, so that it can be ended."""
    set_child_subreaper = 36
    ctypes.CDLL(None).prctl(set_child_subreaper, 1)


def children() -> set[int]:
    """Return the children of this process, adopted ones too, also those that ended."""
    found: set[int] = set()
    for listed in Path("/proc/self/task").glob("*/children"):
        with suppress(OSError):
            found |= set(map(int, listed.read_text().split()))
    return found


def end_children(but: set[int]) -> None:
    """Kill and collect this process's children, and theirs, except for some."""
    while left := children() - but:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def has_ended(pid: int) -> bool:
    """Whether a child has ended; it is left to be collected."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, pid, flags) is not None


def collect_ended(but: int) -> None:
    """Collect adopted children that have ended by themselves."""
    flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
    with suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, flags)) and ended.si_pid != but:
            os.waitpid(ended.si_pid, 0)


class Cell:
    """Memory that a runner shares with its supervisor: which task runs since when.

    Each field is written whole, by one store of eight bytes, and the task last: a
    runner may be interrupted, or die, between any two of them.
    """

    def __init__(self) -> None:
        memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        self._whole = memory.cast("q")  # the task, -, its process, if it is a burst
        self._real = memory.cast("d")  # -, since when
        self.clear()

    def write(self, task: int, *, burst: bool = False) -> None:
        """A task begins now, in this process, or a burst of tasks."""
        self.clear()
        self._real[1] = time.monotonic()
        self._whole[2] = os.getpid()
        self._whole[3] = burst
        self._whole[0] = task

    def clear(self) -> None:
        """No task runs."""
        self._whole[0] = -1

    def read(self) -> tuple[int, float]:
        """Return (task or -1, when it began on the monotonic clock)."""
        while (task := self._whole[0]) >= 0:
            since = self._real[1]
            if self._whole[0] == task:
                return task, since
        return -1, 0.0

    @property
    def burst(self) -> bool:
        """Whether more than one task runs, and nobody knows which."""
        return self._whole[0] >= 0 and bool(self._whole[3])

    @property
    def process(self) -> int:
        """The process in which a task runs, or 0."""
        return self._whole[2] if self._whole[0] >= 0 else 0


@contextmanager
def on_standard_error() -> Iterator[None]:
    """Let what a user's code prints go to standard error; standard output is ours."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
