"""An undo journal for the moments in which HDF5 itself changes a result file.

While tasks run only raw data changes.  At the end HDF5 writes attributes, and a process
that is killed in the midst of that would leave a file that nobody can open.  So all
bytes of the file that are no raw data (a small part) are put aside first; the next run
puts them back if it finds them.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable
from pathlib import Path

SUFFIX = ".undo"


def protect(path: Path, raw: Iterable[tuple[int, int]]) -> None:
    """Put aside what HDF5 may change; ``raw`` is (offset, bytes) of all raw data."""
    size = path.stat().st_size
    kept = []
    with path.open("rb") as file:
        for start, stop in _gaps(sorted(raw), size):
            file.seek(start)
            kept.append((start, file.read(stop - start)))
    new = _journal(path).with_name(_journal(path).name + ".new")
    with new.open("wb") as journal:
        pickle.dump((size, kept), journal)
        journal.flush()
        os.fsync(journal.fileno())
    new.replace(_journal(path))  # whole, or not at all


def restore(path: Path) -> None:
    """Undo what a killed process has begun, if there is anything to undo."""
    journal = _journal(path)
    if journal.exists() and path.exists():
        size, kept = pickle.loads(journal.read_bytes())
        with path.open("r+b") as file:
            for start, data in kept:
                file.seek(start)
                file.write(data)
            file.truncate(size)
            file.flush()
            os.fsync(file.fileno())
    forget(path)


def forget(path: Path) -> None:
    """What was begun has been ended: there is nothing to undo."""
    _journal(path).unlink(missing_ok=True)


def _journal(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _gaps(raw: list[tuple[int, int]], size: int) -> Iterable[tuple[int, int]]:
    """Yield the pieces of a file that no raw data covers."""
    position = 0
    for offset, nbytes in [*raw, (size, 0)]:
        if offset > position:
            yield position, offset
        position = max(position, offset + nbytes)
