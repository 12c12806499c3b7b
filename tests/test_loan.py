"""A loan: what one process lends, another copies, and the lender gives back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from multiprocessing import Pipe
from pathlib import Path

import numpy as np
import pytest
from conftest import wait_until

from mpiens import loan
from mpiens.loan import BLOCK, Lender, Loan

SIZES = (3 * BLOCK + 5, 0, 1, 2 * BLOCK, BLOCK - 1)


def make() -> tuple[list[np.ndarray], list[int]]:
    """Buffers of several lengths, and where each is to be, with gaps between."""
    rng = np.random.default_rng(4)
    places = np.concatenate([[0], np.cumsum(np.array(SIZES[:-1]) + 64)])
    return [rng.bytes(size) for size in SIZES], places.tolist()


@contextmanager
def lending(buffers: list[object], places: list[int]) -> Iterator[Loan]:
    """A child that lends buffers, and gives back what has been read."""
    mine, theirs = Pipe()
    pid = os.fork()
    if not pid:
        with suppress(BaseException):
            lender = Lender(buffers, places)
            theirs.send(lender.loan)
            while True:
                lender.give_back()
                time.sleep(0.002)
        os._exit(1)
    try:
        yield mine.recv()
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def present(process: int, address: int, size: int) -> int:
    """Bytes of a process's memory that it really has, of so many from an address."""
    page = os.sysconf("SC_PAGE_SIZE")
    first, last = address // page, -(-(address + size) // page)
    with Path(f"/proc/{process}/pagemap").open("rb") as file:
        file.seek(8 * first)
        entries = np.frombuffer(file.read(8 * (last - first)), np.uint64)
    return int((entries >> np.uint64(63)).sum()) * page


@pytest.mark.parametrize("readers", [1, 3])
def test_every_byte_is_copied_to_its_place_and_none_beside(readers: int) -> None:
    buffers, places = make()
    expected = bytearray(places[-1] + SIZES[-1])
    for buffer, place in zip(buffers, places, strict=True):
        expected[place : place + len(buffer)] = buffer
    window = bytearray(len(expected))
    with lending(buffers, places) as lent:
        assert lent.can_be_read()
        for reader in reversed(range(readers)):
            lent.read_into(memoryview(window), reader, readers)
    assert window == expected


def test_what_was_read_is_given_back_and_the_rest_is_kept() -> None:
    array = np.full(32 * BLOCK, 7, np.uint8)
    window = memoryview(bytearray(len(array)))
    with lending([array.data], [0]) as lent:
        address, _, _ = lent.parts[0]
        lent.read_into(window, 1, 2)
        wait_until(lambda: present(lent.process, address, len(array)) <= 18 * BLOCK)
        assert present(lent.process, address, len(array)) >= 16 * BLOCK
        lent.read_into(window, 0, 2)  # is there still
        assert window == bytes(array)
        wait_until(lambda: present(lent.process, address, len(array)) <= BLOCK)


def test_memory_of_several_arrays_is_kept_until_all_are_read() -> None:
    whole = np.arange(1 << 20, dtype=np.float64)
    half = whole[1 << 19 :]
    window = memoryview(bytearray(whole.nbytes + half.nbytes))
    with lending([whole.data.cast("B"), half.data.cast("B")], [0, whole.nbytes]) as it:
        it.read_into(window, 0, 1)
        time.sleep(0.02)
        it.read_into(window, 0, 1)
    told = np.frombuffer(window, np.float64)
    np.testing.assert_array_equal(told, np.concatenate([whole, half]))


def test_another_process_of_that_number_is_not_read() -> None:
    with lending([bytes(BLOCK)], [0]) as lent, lending([bytes(BLOCK)], [0]) as other:
        assert not replace(lent, process=os.getpid()).can_be_read()
        assert not replace(lent, process=other.process).can_be_read()
        assert not replace(lent, parts=((8, BLOCK, 0),)).can_be_read()


def test_a_lender_that_has_gone_is_an_error() -> None:
    with lending([bytes(BLOCK)], [0]) as lent:
        pass
    assert not lent.can_be_read()
    with pytest.raises(ProcessLookupError):
        lent.read_into(memoryview(bytearray(BLOCK)), 0, 1)


def test_a_system_without_the_call_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with lending([bytes(BLOCK)], [0]) as lent:
        monkeypatch.setattr(loan.ctypes, "CDLL", lambda *_, **__: object())
        assert not lent.can_be_read()


def test_thousands_of_little_arrays_are_not_worth_it() -> None:
    few, many = [bytes(BLOCK)] * 3, [bytes(100)] * 3000
    assert Lender(few, [0, BLOCK, 2 * BLOCK]).loan is not None
    assert Lender(many, [*range(0, 128 * 3000, 128)]).loan is None


def test_pieces_are_all_bytes_in_order() -> None:
    buffers, places = make()
    window = bytearray(places[-1] + SIZES[-1])
    for piece, place in Lender([bytearray(b) for b in buffers], places).pieces():
        window[place : place + len(piece)] = piece.tobytes()
    for buffer, place in zip(buffers, places, strict=True):
        assert window[place : place + len(buffer)] == buffer
