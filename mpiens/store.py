"""The result file on disk, which is also the checkpoint.

The root lays every dataset down at once, contiguous and with its space reserved, and
closes HDF5.  While tasks run only raw data changes, written at the datasets' own
offsets: first a row, then its checksum, then its status.  So the file is a valid HDF5
file at any moment and after any kill, and other programs can read it meanwhile.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpiens import journal
from mpiens.contents import (
    Contents,
    Place,
    describe_extension,
    find_place,
    read_contents,
)
from mpiens.deadline import Look, look_away
from mpiens.fault import Fault, SpecError
from mpiens.foundation import BLOCK, METADATA, attach, create, now_and_then, reserve
from mpiens.layout import (
    DONE,
    FAILED,
    FAILURE_BYTES,
    PENDING,
    UNUSED,
    Layout,
)
from mpiens.outcome import Batch, Failure, Ranks, find_ends
from mpiens.row import as_bytes, checksum

PARTIAL = ".partial"
SYNC_SECONDS = 1e-3  # between two looks around while a disk takes its time
_COLUMNS = ("checksum", "seconds", "ended", "attempts", "rank")


class Store:
    """A result file opened by the root, read and written at its datasets' offsets."""

    def __init__(
        self, path: Path, contents: Contents | None = None, *, writable: bool = False
    ) -> None:
        """Open a file; what it holds is asked of it where it is not known."""
        self.path = path
        self._protected = False
        known = contents or read_contents(path)
        self.layout, self.attributes = known.layout, known.attributes
        self._places = known.places
        flags = os.O_RDWR if writable else os.O_RDONLY
        self._file = os.open(path, flags | os.O_CLOEXEC)
        self.status = self.read("/tasks/status").reshape(-1)

    @property
    def finished(self) -> int:
        """How many tasks are done or have failed."""
        return int(np.isin(self.status, (DONE, FAILED)).sum())

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)

    def __contains__(self, path: str) -> bool:
        return path in self._places

    def read(self, path: str) -> NDArray[Any]:
        """Read a whole dataset of fixed size."""
        place = self._places[path]
        data = b"".join(self._blocks(place))
        return np.frombuffer(bytearray(data), place.dtype).reshape(place.shape)

    def write_all(self, path: str, values: NDArray[Any]) -> None:
        """Write a whole dataset of fixed size."""
        place = self._places[path]
        if values.shape != place.shape:
            raise ValueError(f"{path} has shape {place.shape}, not {values.shape}")
        self._write(np.ascontiguousarray(values, place.dtype), place.offset)

    def write_entry(self, path: str, index: int, value: Any) -> None:
        """Write one entry of a dataset of one dimension."""
        self._write_tasks(path, index, np.array([value], self._places[path].dtype))

    def read_scenario(self, path: str, scenario: int) -> NDArray[Any]:
        """Read one scenario's part of a dataset."""
        place = self._places[path]
        part = np.empty(place.shape[1:], place.dtype)
        self._read_into(part, place.offset + scenario * part.nbytes)
        return part

    def read_steps(self, path: str, part: slice) -> NDArray[Any]:
        """Read a slab of the last axis of a dataset (scenario, step)."""
        place = self._places[path]
        scenarios, steps = place.shape
        read = np.empty((scenarios, part.stop - part.start), place.dtype)
        for scenario, own in enumerate(read):
            first = scenario * steps + part.start
            self._read_into(own, place.offset + first * place.dtype.itemsize)
        return read

    def write(self, batch: Batch, ranks: Ranks) -> None:
        """Keep finished tasks: rows, then what is known of them, then their status."""
        tasks = batch.records["task"]
        ended = find_ends(batch.records["seconds"], ranks, time.time())
        breaks = (np.flatnonzero(np.diff(tasks) != 1) + 1).tolist()
        for start, end in pairwise([0, *breaks, len(tasks)]):
            records, rows = batch.records[start:end], batch.rows[start:end]
            first = int(records["task"][0])
            for output in self.layout.row.stored:
                self._write_tasks(f"/series/{output.name}", first, rows[output.name])
            for name in ("seconds", "attempts", "checksum"):
                self._write_tasks(f"/tasks/{name}", first, records[name])
            self._write_tasks("/tasks/ended", first, ended[start:end])
            self._write_tasks("/tasks/rank", first, ranks[start:end])
            self._set_status(first, len(rows), DONE)

    def fail(self, failure: Failure, rank: int) -> None:
        """Keep a failed task, and its text while there is room in the table."""
        for output in self.layout.row.stored:
            fill = np.full((1, *output.shape), output.fill, dtype=output.dtype)
            self._write_tasks(f"/series/{output.name}", failure.task, fill)
        values = {"seconds": failure.seconds, "attempts": failure.attempts}
        values |= {"ended": time.time(), "rank": rank, "checksum": 0}
        for name, value in values.items():
            self._write_tasks(f"/tasks/{name}", failure.task, np.array([value]))
        self.write_failure(failure.task, failure.text)
        self._set_status(failure.task, 1, FAILED)

    def write_failure(self, task: int, text: str) -> None:
        """Add a line to the table of failures, or replace the task's own."""
        numbers = self.read("/failures/task")
        free = np.flatnonzero((numbers == task) | (numbers < 0))
        if len(free) == 0:
            return
        line = int(free[0])
        kept = text.encode(errors="backslashreplace")
        if len(kept) > FAILURE_BYTES:  # both ends tell more than the middle
            half = FAILURE_BYTES // 2 - 8
            ends = (kept[:half], kept[-half:])  # perhaps cut within a character
            kept = "\n...\n".join(e.decode(errors="ignore") for e in ends).encode()
        self._write_tasks("/failures/text", line, np.array([kept], f"S{FAILURE_BYTES}"))
        self._write_tasks("/failures/task", line, np.array([task]))

    def failures(self) -> Iterator[tuple[int, str]]:
        """Yield (task, text) of the failures in the table that still are failures."""
        texts = self.read("/failures/text")
        tasks = self.read("/failures/task")
        for line in np.argsort(tasks, kind="stable").tolist():
            task = int(tasks[line])
            step = task >= len(self.status)
            if step or (task >= 0 and self.status[task] == FAILED):
                yield task, texts[line].decode(errors="replace")

    def forget_steps(self, first: int) -> None:
        """Take the failures of scenarios' steps, from one on, out of the table."""
        for line in np.flatnonzero(self.read("/failures/task") >= first):
            self._write_tasks("/failures/task", int(line), np.array([-1]))

    def forget(self, tasks: NDArray[np.int64]) -> None:
        """Call tasks pending again."""
        for task in tasks.tolist():
            self._set_status(task, 1, PENDING)

    def leave_out(self, tasks: NDArray[np.int64]) -> None:
        """Call tasks unused: they are not to be run."""
        for task in tasks.tolist():
            self._set_status(task, 1, UNUSED)

    def row(self, task: int) -> NDArray[np.void]:
        """Read the row of one task; shape (1,)."""
        row = np.zeros(1, self.layout.row.dtype)
        for output in self.layout.row.stored:
            place = self._places.get(f"/series/{output.name}")
            if place is None:
                text = f"rows of {output.name!r} are not kept in this file"
                raise SpecError([Fault("", text)], str(self.path))
            part = np.empty(output.shape, output.dtype)
            self._read_into(part, place.offset + task * part.nbytes)
            row[output.name] = part
        return row

    def broken(self, look: Look = look_away) -> NDArray[np.int64]:
        """Return the tasks called done whose row does not have its checksum."""
        sums = self.read("/tasks/checksum").reshape(-1)
        done = np.flatnonzero(self.status == DONE).tolist()
        wrong = [
            task
            for task in now_and_then(done, look)
            if checksum(self.row(task).tobytes()) != int(sums[task])
        ]
        return np.array(wrong, dtype=np.int64)

    def copy_tasks(
        self, old: Store, same: Mapping[int, int], look: Look = look_away
    ) -> None:
        """Take over finished rows of an older file.

        ``same`` maps scenarios of this file to those of the older one.  A row whose
        checksum does not hold is left out, hence run again.
        """
        before, now = old.layout.spec, self.layout.spec
        both = range(min(before.replicates, now.replicates))
        pairs = {
            before.number(former, replicate): now.number(scenario, replicate)
            for scenario, former in same.items()
            for replicate in both
        }
        self.take(old, pairs, look)

    def take(
        self, old: Store, pairs: Mapping[int, int], look: Look = look_away
    ) -> list[int]:
        """Take over finished tasks: ``pairs`` maps the other file's to this one's.

        Tasks that are not this file's own are left out.  Returns those of the other
        file that are left out since their rows do not have their checksums.
        """
        columns = {name: old.read(f"/tasks/{name}").reshape(-1) for name in _COLUMNS}
        texts = dict(old.failures())
        broken = []
        for source in now_and_then(pairs, look):
            target, state = pairs[source], int(old.status[source])
            if state not in (DONE, FAILED) or self.status[target] == UNUSED:
                continue
            if state == DONE:
                row = old.row(source)
                if checksum(row.tobytes()) != int(columns["checksum"][source]):
                    broken.append(source)
                    continue
                for output in self.layout.row.stored:
                    path = f"/series/{output.name}"
                    self._write_tasks(path, target, row[output.name])
            for name in _COLUMNS:
                value = columns[name][source : source + 1]
                self._write_tasks(f"/tasks/{name}", target, value)
            if source in texts:
                self.write_failure(target, texts[source])
            self._set_status(target, 1, state)
        return broken

    def copy_all(self, old: Store) -> None:
        """Take over every dataset of another file with the same layout."""
        for path, place in self._places.items():
            offset = place.offset
            for block in old._blocks(old._places[path]):
                self._write(np.frombuffer(block, np.uint8), offset)
                offset += len(block)
        self.status = self.read("/tasks/status").reshape(-1)

    def digest(self) -> str:
        """Return the SHA-256 of what the answer is, as 64 lowercase hex digits."""
        whole = hashlib.sha256()
        entered = (
            *("/scenario", "/level", "/parameters/", "/bands/", "/summary/"),
            *("/aggregate/", "/tasks/status", "/windows/", "/joined/"),
            *("/trials/state", "/trials/stream", "/trials/loss", "/trials/target/"),
        )
        for dataset in self.layout.datasets():
            if dataset.path.startswith(entered):
                _enter(whole, dataset.path, dataset.dims, dataset.dtype, dataset.shape)
                if dataset.data is not None:
                    whole.update(json.dumps(dataset.data.tolist()).encode())
                else:
                    for block in self._blocks(self._places[dataset.path]):
                        whole.update(block)
        for output in self.layout.row.stored:
            path = f"/series/{output.name}"
            _enter(whole, path, output.dims, output.dtype, output.shape)
        sums = self.read("/tasks/checksum").reshape(-1)
        whole.update(np.where(self.status == DONE, sums, 0).tobytes())
        return whole.hexdigest()

    def extend(self, layout: Layout, made: Mapping[str, Any]) -> None:
        """Add what a layout has beyond this file's, each array by its path.

        A kill in the midst is undone by restore.
        """
        self._protect()
        known = {dataset.path for dataset in self.layout.extension()}
        datasets = [d for d in layout.extension() if d.path not in known]
        self.layout = layout
        needed = sum(dataset.nbytes + 4096 for dataset in datasets)
        reserve(self.path, needed + METADATA)
        with h5py.File(self.path, "r+", locking=False) as file:
            for name, value in describe_extension(layout).items():
                file.attrs[name] = value
            for dataset in datasets:
                item = create(file, dataset)
                file.flush()
                if (place := find_place(item)) is not None:
                    self._places[dataset.path] = place
            for dataset in datasets:
                attach(file, dataset)
                file.flush()
        for dataset in datasets:
            if dataset.path in self._places:  # text has been written already
                own = dataset.data is None
                data = made[dataset.path] if own else dataset.data
                self.write_all(dataset.path, data)

    def complete(self, attributes: Mapping[str, Any]) -> None:
        """Write the last attributes; a kill in the midst of it is undone by restore."""
        self._protect()
        set_attributes(self.path, attributes)
        self.sync()

    def _protect(self) -> None:
        """Put aside once what HDF5 may change from now on."""
        if not self._protected:
            raw = [place.extent for place in self._places.values()]
            journal.protect(self.path, raw)
        self._protected = True

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        os.fsync(self._file)

    def _write_tasks(self, path: str, first: int, values: NDArray[Any]) -> None:
        """Write entries of a dataset that has one per task (or per failure)."""
        place = self._places[path]
        data = np.ascontiguousarray(values, place.dtype)
        size = data.nbytes // len(data)
        self._write(data, place.offset + first * size)

    def _set_status(self, first: int, count: int, status: int) -> None:
        self.status[first : first + count] = status
        values = np.full(count, status, np.uint8)
        self._write_tasks("/tasks/status", first, values)

    def _write(self, data: NDArray[Any], offset: int) -> None:
        view = as_bytes(data)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written

    def _read_into(self, data: NDArray[Any], offset: int) -> None:
        view = as_bytes(data)
        while view:
            got = os.preadv(self._file, [view], offset)
            if got == 0:
                raise OSError(errno.EIO, "the file is shorter than it was", self.path)
            view, offset = view[got:], offset + got

    def _blocks(self, place: Place) -> Iterator[bytes]:
        offset, left = place.extent
        while left > 0:
            block = os.pread(self._file, min(left, BLOCK), offset)
            if not block:
                raise OSError(errno.EIO, "the file is shorter than it was", self.path)
            left, offset = left - len(block), offset + len(block)
            yield block


def _enter(whole: Any, path: str, dims: Any, dtype: Any, shape: Any) -> None:
    """Enter name, dimensions, type and shape of something into a digest."""
    kind = "text" if np.dtype(dtype).kind == "O" else np.dtype(dtype).str
    whole.update(json.dumps([path, list(dims), kind, list(shape)]).encode())


def replace(source: Path, target: Path, look: Look = look_away) -> None:
    """Rename a file, once it is on the disk, and see to it that its name is too.

    Disks take their time, in which ``look`` is called again and again.
    """
    _sync(source, look)
    source.replace(target)
    with contextlib.suppress(OSError):  # some file systems sync no folders
        _sync(target.parent, look)


def _sync(path: Path, look: Look) -> None:
    failures: list[OSError] = []

    def act() -> None:
        try:
            os.fsync(handle)
        except OSError as error:
            failures.append(error)

    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    thread = threading.Thread(target=act)
    thread.start()
    try:
        while thread.is_alive():
            look()
            thread.join(SYNC_SECONDS)
    finally:
        thread.join()
        os.close(handle)
    if failures:
        raise failures[0]


def set_attributes(path: Path, attributes: Mapping[str, Any]) -> None:
    """Write attributes of the root group."""
    reserve(path, METADATA + 4 * sum(len(str(v)) for v in attributes.values()))
    with h5py.File(path, "r+", locking=False) as file:
        for name, value in attributes.items():
            file.attrs[name] = value
