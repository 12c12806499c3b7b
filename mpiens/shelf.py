"""What scenarios' steps have made, kept beside a result file until it is complete.

Such things are of any size and known one by one, so they do not go into the result
file, whose datasets are laid down at once.  Each has a key that tells all that it was
made of: what is on the shelf is never taken for what another spec would make.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

SUFFIX = ".steps"
_HEAD = struct.Struct("<32sQI")  # key, bytes, and CRC-32 of both and the data


class Shelf:
    """A file that is only appended to; a last entry that is not whole is cut off."""

    def __init__(self, file: Path) -> None:
        self.path = _place(file)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._places: dict[bytes, tuple[int, int]] = {}
        self._end = 0
        while (entry := self._read_entry(self._end)) is not None:
            key, offset, size = entry
            self._places[key] = offset, size
            self._end = offset + size
        os.ftruncate(self._file, self._end)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places

    def put(self, key: bytes, data: bytes) -> None:
        """Keep what was made under a key of 32 bytes."""
        head = _HEAD.pack(key, len(data), _sum(key, data))
        view = memoryview(head + data)
        offset = self._end
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written
        self._places[key] = self._end + _HEAD.size, len(data)
        self._end = offset

    def get(self, key: bytes) -> bytes:
        """Return what was made under a key; KeyError where there is nothing."""
        offset, size = self._places[key]
        return self._read(offset, size)

    def close(self) -> None:
        """Give the file back."""
        os.close(self._file)

    def _read_entry(self, start: int) -> tuple[bytes, int, int] | None:
        """Return (key, offset, bytes) of the entry that begins there; None if cut."""
        head = self._read(start, _HEAD.size)
        if len(head) < _HEAD.size:
            return None
        key, size, expected = _HEAD.unpack(head)
        offset = start + _HEAD.size
        if offset + size > os.fstat(self._file).st_size:
            return None
        return (
            (key, offset, size)
            if _sum(key, self._read(offset, size)) == expected
            else None
        )

    def _read(self, offset: int, size: int) -> bytes:
        parts = []
        while size and (part := os.pread(self._file, size, offset)):
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)


def clear(file: Path) -> None:
    """Throw away what was kept beside a file."""
    _place(file).unlink(missing_ok=True)


def _place(file: Path) -> Path:
    return file.with_name(file.name + SUFFIX)


def _sum(key: bytes, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(key + len(data).to_bytes(8, "little")))
