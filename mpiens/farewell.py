"""What a rank has to do with its launcher: to end with it, and to see it off.

Open MPI's launcher, told to tolerate faults, hangs in a lock of its own at the end of
about one of 300 jobs (5.0.11): all ranks have ended, the file is complete, and the
allocation would be held to the end of its time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NAME = b"mpiens-farewell"  # of the process that sees a launcher off
LAUNCHERS = ("prterun", "mpirun", "mpiexec", "orterun")
PATIENCE = 10.0  # seconds that a launcher may take when none of its children is left
LOOK_SECONDS = 0.25
LAUNCHER = os.getppid()  # what has started this process, be it a launcher or not
_SET_PARENT_DEATH_SIGNAL, _SET_NAME = 1, 15
_control = ctypes.CDLL(None).prctl


@contextmanager
def tied(ranks: int) -> Iterator[None]:
    """Let one of several ranks end with its launcher, should that end meanwhile.

    For while MPI starts and ends: a rank whose launcher is killed then may wait for
    ever, and in between MPI itself tells.  Not for longer, since what the kernel takes
    for a launcher is the thread of it that has started this process.
    """
    if ranks == 1:  # whoever has started it may go
        yield
        return
    _control(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != LAUNCHER:  # it has gone already
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        yield
    finally:
        _control(_SET_PARENT_DEATH_SIGNAL, 0)


def see_off(patience: float = PATIENCE) -> None:
    """Start a process that ends the launcher, where that does not end itself.

    It also ends ranks that somebody has stopped, which a launcher would wait for.  It
    is for ranks that a launcher on this machine has started, and does nothing
    elsewhere.  What it starts ends with the launcher, and holds nothing open.
    """
    launcher = os.getppid()
    state = _read_state(launcher)
    if state is None or state[0] not in LAUNCHERS or os.fork():
        return
    with suppress(BaseException):
        _control(_SET_NAME, NAME)
        os.setsid()
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))
        _wait_and_end(launcher, state, patience)
    os._exit(0)


def _wait_and_end(launcher: int, state: tuple[str, ...], patience: float) -> None:
    busy = time.monotonic()  # when a child of the launcher was last seen at work
    while (found := _read_state(launcher)) is not None and found[:2] == state[:2]:
        children = _read_children(launcher)
        if any(told[2] not in "tT" for told in children.values()):
            busy = time.monotonic()
        elif time.monotonic() - busy > patience:
            for pid in children or [launcher]:  # the stopped ones first
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)


def _read_state(pid: int) -> tuple[str, str, str] | None:
    """Return name, start, and state of a process that lives, or None."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, _, rest = status.partition("(")[2].rpartition(")")
    fields = rest.split()
    return None if fields[0] in "ZX" else (name, fields[19], fields[0])


def _read_children(pid: int) -> dict[int, tuple[str, str, str]]:
    """Return the children of a process that live, and their states."""
    found = {}
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in map(int, listed.read_text().split()):
                if (state := _read_state(child)) is not None:
                    found[child] = state
    return found
