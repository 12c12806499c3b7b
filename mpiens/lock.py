"""One writer at a time: a lock beside the result file, released by the kernel.

It is kept apart from HDF5's own locks, which would keep readers out.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from pathlib import Path

from mpiens.fault import Fault, SpecError

SUFFIX = ".lock"
_FLOCK = struct.Struct("@hhqqi4x")  # type, whence, start, length, process
_NONE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def is_held(file: Path) -> bool:
    """Whether a run is at work on a file, on whichever machine; nothing is locked."""
    try:
        handle = os.open(file.with_name(file.name + SUFFIX), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        told = fcntl.fcntl(handle, fcntl.F_GETLK, asked)
        return bool(_FLOCK.unpack(told)[0] != fcntl.F_UNLCK)
    except OSError:  # a file system without locks: the lock's file is all there is
        return True
    finally:
        os.close(handle)


class Lock:
    """Held from the moment a run looks at its file until it leaves it.

    A POSIX lock: a child that is forked does not hold it, and it is gone when its
    process is, however that ends.  Raises SpecError where another process holds it.
    """

    def __init__(self, file: Path) -> None:
        self._path = file.with_name(file.name + SUFFIX)
        while True:
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
            self._take(file)
            if self._is_current():
                break
            os.close(self._handle)  # its last holder has just taken it away
        holder = f"{socket.gethostname()}, process {os.getpid()}, since {time.ctime()}"
        with contextlib.suppress(OSError):  # on a full disk it is held all the same
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, holder.encode(), 0)

    def release(self) -> None:
        """Let others write."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        os.close(self._handle)

    def _take(self, file: Path) -> None:
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _NONE:  # this file system has no locks: go without
                return
            holder = os.pread(self._handle, 1024, 0).decode(errors="replace")
            os.close(self._handle)
            text = (
                f"is being written by another mpiens ({holder or 'just begun'}); wait "
                "for it, or write another file by -o"
            )
            raise SpecError([Fault("", text)], str(file)) from None

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._handle), self._path.stat())
        except FileNotFoundError:
            return False
