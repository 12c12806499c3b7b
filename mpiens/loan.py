"""A loan: memory of a process that others of its node copy straight into their own.

The kernel copies from one process to another (process_vm_readv(2)), for several
readers at once, and without the second copy that a socket takes.  Each notes on the
lender's board what it has, so that the lender gives memory back while others read.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK = 1 << 20  # bytes that are read, and given back, at once
_TOKEN = 16  # bytes
COARSE = 1 << 16  # bytes a part on average, since each takes a call of its own
_ALLOW_READERS, _ANY = 0x59616D61, -1  # of prctl(2), where Yama is strict


@dataclass(frozen=True)
class Loan:
    """What readers have to know of memory that is lent."""

    process: int
    board: int  # the address of the token and of what has been read, a byte a block
    token: bytes
    parts: tuple[tuple[int, int, int], ...]  # address, bytes, place in the window

    def blocks(self) -> Iterator[tuple[int, int, int]]:
        """Yield (address, bytes, place in the window) of every block."""
        for address, size, place in self.parts:
            for start in range(0, size, BLOCK):
                yield address + start, min(BLOCK, size - start), place + start

    def can_be_read(self) -> bool:
        """Whether this process may read it: a number may be another process's here."""
        told = bytearray(_TOKEN)
        try:
            self._copy("process_vm_readv", told, self.board)
            for address, size, _ in self.parts:
                for end in (0, size - 1):
                    self._copy("process_vm_readv", bytearray(1), address + end)
        except (OSError, AttributeError):  # AttributeError: of another system
            return False
        return bytes(told) == self.token

    def read_into(self, window: memoryview, first: int, step: int) -> None:
        """Copy every ``step``-th block from the ``first`` on, or raise OSError."""
        for index, (address, size, place) in enumerate(self.blocks()):
            if index % step == first:
                part = window[place : place + size]
                self._copy("process_vm_readv", part, address)
                seen = self.board + _TOKEN + index
                self._copy("process_vm_writev", bytearray(b"\x01"), seen)

    def _copy(self, call: str, mine: bytearray | memoryview, theirs: int) -> None:
        """Copy between this process and the lender, as the system's call says."""
        function = getattr(ctypes.CDLL(None, use_errno=True), call)
        function.restype = ctypes.c_ssize_t
        size, done = len(mine), 0
        address = ctypes.addressof(ctypes.c_char.from_buffer(mine))
        while done < size:
            here = (ctypes.c_size_t * 2)(address + done, size - done)
            there = (ctypes.c_size_t * 2)(theirs + done, size - done)
            one, nothing = ctypes.c_ulong(1), ctypes.c_ulong(0)
            got = function(self.process, here, one, there, one, nothing)
            if got <= 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
            done += got


class Lender:
    """The memory's owner, which gives back what everybody has.

    ``loan`` is None where there are many parts for their size.
    """

    def __init__(self, buffers: list[Any], places: list[int]) -> None:
        arrays = [np.frombuffer(buffer, np.uint8) for buffer in buffers]
        whole = zip(arrays, places, strict=True)
        parts = [(own.ctypes.data, len(own), place) for own, place in whole if len(own)]
        token = secrets.token_bytes(_TOKEN)
        count = sum(-(-size // BLOCK) for _, size, _ in parts)
        self._board = np.zeros(_TOKEN + count, np.uint8)
        self._board[:_TOKEN] = np.frombuffer(token, np.uint8)
        loan = Loan(os.getpid(), self._board.ctypes.data, token, tuple(parts))
        self._arrays = [own for own in arrays if len(own)]
        self._blocks = [*loan.blocks()]
        self._apart = _are_apart(parts)  # else memory is read again as part of others
        self._returned = np.zeros(count, bool)
        coarse = sum(size for _, size, _ in parts) >= COARSE * len(parts)
        self.loan = loan if coarse else None
        none = ctypes.c_ulong(0)
        ctypes.CDLL(None).prctl(_ALLOW_READERS, ctypes.c_ulong(_ANY), none, none, none)

    def give_back(self) -> None:
        """Give memory back that has been read, so that no node holds it twice."""
        read = self._board[_TOKEN:].astype(bool) & ~self._returned
        for index in np.flatnonzero(read).tolist():
            self._forget(index)
        self._returned |= read

    def pieces(self) -> Iterator[tuple[Any, int]]:
        """Yield (bytes, place in the window) of every block, and give it back then."""
        views = (
            array[start : start + BLOCK]
            for array in self._arrays
            for start in range(0, len(array), BLOCK)
        )
        for index, view in enumerate(views):
            yield view, self._blocks[index][2]
            self._forget(index)

    def _forget(self, index: int) -> None:
        if self._apart:
            address, size, _ = self._blocks[index]
            _forget(address, size)


def _forget(start: int, size: int) -> None:
    """Give back whole pages that will never be looked at again."""
    first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    nbytes = (start + size - first) // mmap.PAGESIZE * mmap.PAGESIZE
    if nbytes > 0:  # where it cannot be done it is no harm
        arguments = ctypes.c_void_p(first), ctypes.c_size_t(nbytes)
        ctypes.CDLL(None).madvise(*arguments, mmap.MADV_DONTNEED)


def _are_apart(parts: list[tuple[int, int, int]]) -> bool:
    """Whether no two parts have memory in common."""
    ends = 0
    for start, size, _ in sorted(parts):
        if start < ends:
            return False
        ends = max(ends, start + size)
    return True
