"""Laying a result file down: all its datasets at once, with their space reserved."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiens.contents import Contents, Place, describe, find_place
from mpiens.deadline import Look, look_away
from mpiens.layout import PENDING, UNUSED, Dataset, Layout

NEW = ".new"  # a file that is being laid down, and nothing yet
METADATA = 64 << 10  # bytes, at most, that HDF5 adds beside what is counted
BLOCK = 4 << 20  # bytes read or filled at once
LOOK_SECONDS = 0.02  # between two looks around during long work


def lay_down(
    path: Path,
    layout: Layout,
    attributes: Mapping[str, Any],
    *,
    slim: bool = False,
    look: Look = look_away,
) -> tuple[Path, Contents]:
    """Make the file with all its datasets under a name that says it is new.

    Returns that name, and what the file holds.  The whole size is reserved before
    anything is computed: a full disk is an OSError here and now.  A ``slim`` file has
    no rows of outputs that are not kept.
    """
    new = path.with_name(path.name + NEW)
    try:
        return new, _lay_down(new, layout, attributes, slim, look)
    except BaseException:
        new.unlink(missing_ok=True)  # on a full disk, others need the space
        raise


def _lay_down(
    new: Path, layout: Layout, attributes: Mapping[str, Any], slim: bool, look: Look
) -> Contents:
    datasets = list(layout.datasets(slim=slim))
    needed = sum(d.nbytes + 4096 for d in datasets if not _is_sparse(d, layout))
    reserve(new, needed + METADATA)
    with h5py.File(new, "w", locking=False) as file:
        told = describe(layout) | dict(attributes)
        for name, value in told.items():
            file.attrs[name] = value
        items = {}
        for dataset in datasets:
            look()
            items[dataset.path] = create(file, dataset)
        for dataset in datasets:
            look()
            attach(items, dataset)
        found = {path: find_place(item) for path, item in items.items()}
        places = {path: place for path, place in found.items() if place is not None}
    _reserve(new, datasets, places, layout, look)
    return Contents(layout, told, places)


def _is_sparse(dataset: Dataset, layout: Layout) -> bool:
    """Whether most of a dataset stays a hole in the file: a shard's rows."""
    return layout.shard is not None and dataset.path.startswith("/series/")


def create(file: h5py.File, dataset: Dataset) -> h5py.Dataset:
    """Create one dataset: contiguous, its space set aside, no time stamp."""
    if dataset.data is not None and np.dtype(dataset.dtype).kind == "O":
        item = file.create_dataset(
            dataset.path, data=list(dataset.data), dtype=h5py.string_dtype()
        )
    else:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.CONTIGUOUS)
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # filled in _reserve
        plist.set_obj_track_times(False)
        dtype = np.dtype(dataset.dtype)
        space = h5py.h5s.create_simple(dataset.shape)
        group = file.require_group(os.path.dirname(dataset.path) or "/")  # noqa: PTH120
        name = dataset.path.rpartition("/")[2].encode()
        kind = h5py.h5t.py_create(dtype, logical=True)
        identifier = h5py.h5d.create(group.id, name, kind, space, plist)
        item = h5py.Dataset(identifier)
        if dataset.fill is not None and dtype.kind != "S":
            item.attrs["_FillValue"] = np.array(dataset.fill, dtype)
    for attribute, value in dataset.attributes.items():
        item.attrs[attribute] = value
    return item


def attach(items: Mapping[str, Any], dataset: Dataset) -> None:
    """Name the dimensions of a dataset by the coordinates at the root."""
    item = items[dataset.path]
    if dataset.dims == (dataset.path.lstrip("/"),):
        item.make_scale(dataset.dims[0])
        return
    for axis, name in enumerate(dataset.dims):
        item.dims[axis].attach_scale(items[f"/{name}"])


def _reserve(
    path: Path,
    datasets: list[Dataset],
    places: Mapping[str, Place],
    layout: Layout,
    look: Look,
) -> None:
    """Reserve the file's space on disk and fill in what stands for nothing yet.

    Of a shard's rows only room for its share is asked for: it is not reserved, since
    the other shards' places stay holes.
    """
    handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if layout.shard is None:
            size = os.fstat(handle).st_size
            _allocate(handle, 0, size)
        else:
            own = sum(d.nbytes for d in datasets if _is_sparse(d, layout))
            free = os.fstatvfs(handle)
            if own // layout.shard.count > free.f_bavail * free.f_frsize:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            tasks = np.arange(layout.spec.tasks)
            status = np.where(layout.shard.owns(tasks), PENDING, UNUSED)
            own_status = status.astype(np.uint8).tobytes()
            os.pwrite(handle, own_status, places["/tasks/status"].offset)
        for dataset in datasets:
            place = places.get(dataset.path)
            if place is None or _is_sparse(dataset, layout):
                continue
            if dataset.data is not None:
                data = np.ascontiguousarray(dataset.data)
                os.pwrite(handle, data.tobytes(), place.offset)
            elif dataset.fill is not None:
                _fill(handle, place.offset, dataset, look)
    finally:
        os.close(handle)


def _fill(handle: int, offset: int, dataset: Dataset, look: Look) -> None:
    dtype = np.dtype(dataset.dtype)
    count = min(BLOCK, dataset.nbytes) // dtype.itemsize
    block = np.full(count, dataset.fill, dtype).tobytes()
    for start in now_and_then(range(0, dataset.nbytes, BLOCK), look):
        part = block[: min(BLOCK, dataset.nbytes - start)]
        os.pwrite(handle, part, offset + start)


def reserve(path: Path, nbytes: int) -> None:
    """See to it that a file has room to grow before HDF5 opens it.

    HDF5 that meets a full disk leaves the file damaged; here it is an OSError, and the
    file is as it was.  HDF5 cuts off what it does not need.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    size = os.fstat(handle).st_size
    try:
        _allocate(handle, size, nbytes)
    except OSError:
        os.ftruncate(handle, size)
        raise
    finally:
        os.close(handle)


def _allocate(handle: int, offset: int, nbytes: int) -> None:
    """Reserve space; a file system that cannot do that is taken as it is."""
    try:
        os.posix_fallocate(handle, offset, nbytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise


def now_and_then(steps: Iterable[int], look: Look) -> Iterator[int]:
    """Yield the steps of long work, and look around several times a second."""
    looked = time.monotonic()
    for step in steps:
        if (now := time.monotonic()) - looked > LOOK_SECONDS:
            looked = now
            look()
        yield step
