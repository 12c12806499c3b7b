"""Files in memory, which vanish with the last process that holds them."""

from __future__ import annotations

import fcntl
import io
import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from mpiens.row import as_bytes

Part = bytes | memoryview
NAME = "shared"  # of what a task's folder shows


def as_files(value: Any) -> dict[str, list[Part]]:
    """Return what a loader has made as files: their names, and their bytes in parts.

    Bytes are a file as it is, an array is an NPY file, and a mapping of names to
    those is a folder.  All parts but the last are a multiple of 64 bytes long.
    Raises ValueError where it is none of these.
    """
    if not isinstance(value, Mapping):
        suffix, parts = _as_file(value)
        return {f"{NAME}{suffix}": parts}
    files = {}
    for name, own in value.items():
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name:
            raise ValueError(f"{name!r} is no name of a file")
        suffix, parts = _as_file(own)
        files[f"{NAME}/{name}{suffix}"] = parts
    if not files:
        raise ValueError("an empty mapping is no folder of files")
    return files


def _as_file(value: Any) -> tuple[str, list[Part]]:
    if isinstance(value, bytes | bytearray | memoryview):
        return "", [memoryview(value).cast("B")]
    if not isinstance(value, np.ndarray) or value.dtype.hasobject:
        kind = type(value).__name__
        raise ValueError(
            f"{kind} is no file: a program's loader returns bytes, an array of "
            "numbers, or a mapping of names to those"
        )
    array = np.asarray(value, order="C")
    head = io.BytesIO()  # which numpy fills up to a multiple of 64 bytes
    description = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(head, description)
    return ".npy", [head.getvalue(), as_bytes(array)]


def create(name: str, size: int) -> int:
    """Make a file in memory; return its descriptor."""
    file = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size)
    return file


def reopen(process: int, file: int) -> int:
    """Open, to read it, the file of another process of this node."""
    return os.open(f"/proc/{process}/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)


@contextmanager
def writing(files: list[int]) -> Iterator[list[memoryview]]:
    """Map files to be filled."""
    maps = [mmap.mmap(f, 0) if os.fstat(f).st_size else None for f in files]
    views = [memoryview(m) if m else memoryview(bytearray()) for m in maps]
    try:
        yield views
    finally:
        for view, mapped in zip(views, maps, strict=True):
            view.release()
            if mapped:
                mapped.close()


def seal(file: int, size: int) -> None:
    """Cut a file to its size, and let nobody change it any more."""
    os.ftruncate(file, size)
    fixed = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fixed | fcntl.F_SEAL_SEAL)
