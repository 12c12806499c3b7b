"""How a rank sees its launcher off, which may stay for ever when all ranks have gone.

Open MPI's launcher, told to tolerate faults, hangs in a lock of its own at the end of
about one of 300 jobs (5.0.11): all ranks have ended, the file is complete, and the
allocation would be held to the end of its time.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

LAUNCHERS = ("prterun", "mpirun", "mpiexec", "orterun")
PATIENCE = 10.0  # seconds that a launcher may take when none of its children is left
LOOK_SECONDS = 0.25


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
