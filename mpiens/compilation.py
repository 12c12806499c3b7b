"""Models that numba compiles: a node's ranks share one cache, and compile in turn.

Numba keeps what ``cache=True`` has compiled; without more, ranks that begin at the same
moment all find the cache empty, and all compile.  So the first runner of a node runs
the first of its tasks before the others begin, or until it compiles no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import importlib.util
import os
import stat
import sys
import tempfile
import time
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

VARIABLE = "NUMBA_CACHE_DIR"
QUIET = (
    1.0  # seconds without compiling, after which nobody waits for the first any more
)
LONGEST = 60.0  # seconds that are waited for anybody
POLL = 0.02
_LOCK = "mpiens.lock"
_IDLE, _BUSY = b"0", b"1"


def share_cache(environment: MutableMapping[str, str]) -> None:
    """Let numba keep what it compiles in a folder of this user, node and Python.

    Nothing is done where there is no numba, where the user has chosen a folder, or
    where that of this name is not the user's own: what is in it would be run.
    """
    if VARIABLE in environment or importlib.util.find_spec("numba") is None:
        return
    key = hashlib.sha256(f"{sys.prefix} {sys.version}".encode()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"mpiens-numba-{os.getuid()}-{key}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        foreign = status.st_uid != os.getuid() or status.st_mode & 0o022
        if stat.S_ISDIR(status.st_mode) and not foreign:
            environment[VARIABLE] = str(folder)


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Do what compiles, as the first one of this node, or once that has compiled.

    Only where the model has loaded numba, and there is a folder for what it compiles.
    """
    folder = os.environ.get(VARIABLE)
    if "numba" not in sys.modules or not folder:
        yield
        return
    try:
        file = os.open(
            Path(folder) / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
    except OSError:
        yield
        return
    try:
        if _take(file, fcntl.LOCK_EX):
            with _telling(file):
                yield
            return
        _await(file)
    finally:
        with contextlib.suppress(OSError):  # a model may have closed it
            os.close(file)
    yield


def _await(file: int) -> None:
    """Wait until the first one is done, or has compiled nothing for a while."""
    since = time.monotonic()
    while time.monotonic() - since < LONGEST and not _take(file, fcntl.LOCK_SH):
        quiet = time.time() - os.fstat(file).st_mtime
        if os.pread(file, 1, 0) != _BUSY and quiet > QUIET:
            return
        time.sleep(POLL)


def _take(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _telling(file: int) -> Iterator[None]:
    """Tell the others, by the file that is locked, whether numba is compiling."""
    event: Any = importlib.import_module("numba.core.event")

    class Listener(event.Listener):  # type: ignore[misc]
        """Notes in the file when compiling begins and when it ends."""

        depth = 0  # what is compiled has others compiled

        def on_start(self, event: object) -> None:
            self.depth += 1
            os.pwrite(file, _BUSY, 0)

        def on_end(self, event: object) -> None:
            self.depth -= 1
            if not self.depth:
                os.pwrite(file, _IDLE, 0)

    os.pwrite(file, _IDLE, 0)
    listener = Listener()
    event.register("numba:compile", listener)
    try:
        yield
    finally:
        event.unregister("numba:compile", listener)
