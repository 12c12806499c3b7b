"""Who sleeps is woken: by a ring, by a file, or at last by time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from mpiens.bell import Bell

LONG = 20.0  # seconds that nobody here sleeps to their end


@pytest.fixture
def pair() -> Iterator[tuple[Bell, Bell]]:
    """Two bells that know of each other by the numbers 0 and 1."""
    first, second = Bell(), Bell()
    first.know({1: second.hang()})
    second.know({0: first.hang()})
    yield first, second
    first.close()
    second.close()


def wait(bell: Bell, seconds: float, *files: int) -> tuple[bool, bool]:
    """Return whether the bell rang, and whether it was waited to the end."""
    begun = time.monotonic()
    rang = bell.wait(seconds, *files)
    return rang, time.monotonic() - begun > seconds * 0.9


def test_a_ring_wakes_and_is_heard_once(pair: tuple[Bell, Bell]) -> None:
    first, second = pair
    assert first.ring(1)
    assert first.ring(1)
    assert wait(second, LONG) == (True, False)
    assert wait(second, 0.05) == (False, True)


def test_a_file_wakes(pair: tuple[Bell, Bell]) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"x")
    assert wait(pair[0], LONG, reading) == (False, False)
    assert wait(Bell(), LONG, reading) == (False, False)  # that hangs nowhere
    os.close(reading)
    os.close(writing)


def test_who_is_rung_all_the_time_does_not_hold_up_others(
    pair: tuple[Bell, Bell],
) -> None:
    assert all(pair[0].ring(1) for _ in range(10_000))


def test_a_bell_that_is_gone_or_unknown_is_told(pair: tuple[Bell, Bell]) -> None:
    first, second = pair
    assert not second.ring(7)
    assert not Bell().ring(0)
    second.close()
    assert not first.ring(1)
