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

LAUNCHERS = ("prterun", "mpirun", "mpiexec", "orterun")
PATIENCE = 10.0  # seconds that a launcher may take when none of its children is left
LOOK_SECONDS = 0.25
LAUNCHER = os.getppid()  # what has started this process, be it a launcher or not


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
    set_parent_death_signal = 1
    control = ctypes.CDLL(None).prctl
    control(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != LAUNCHER:  # it has gone already
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        yield
    finally:
        control(set_parent_death_signal, 0)


def see_off(patience: float = PATIENCE) -> None:
    """Leave a process behind that ends the launcher, where that does not end itself.

    It is for ranks that a launcher on this machine has started, and does nothing
    elsewhere.  What it leaves behind ends with the launcher, and holds nothing open.
    """
    launcher = os.getppid()
    state = _read_state(launcher)
    if state is None or state[0] not in LAUNCHERS or os.fork():
        return
    with suppress(BaseException):
        os.setsid()
        os.closerange(0, os.sysconf("SC_OPEN_MAX"))
        _wait_and_end(launcher, state, patience)
    os._exit(0)


def _wait_and_end(launcher: int, state: tuple[str, str], patience: float) -> None:
    idle = time.monotonic()
    while _read_state(launcher) == state:
        if _has_children(launcher):
            idle = time.monotonic()
        elif time.monotonic() - idle > patience:
            os.kill(launcher, signal.SIGKILL)
        time.sleep(LOOK_SECONDS)


def _read_state(pid: int) -> tuple[str, str] | None:
    """Return name and start of a process that lives, or None."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    name, _, rest = status.partition("(")[2].rpartition(")")
    fields = rest.split()
    return None if fields[0] in "ZX" else (name, fields[19])


def _has_children(pid: int) -> bool:
    """Whether a process has children that live."""
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            for child in listed.read_text().split():
                if _read_state(int(child)) is not None:
                    return True
    return False
