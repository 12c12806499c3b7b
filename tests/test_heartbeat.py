"""Who has stopped, and who is silent: by a clock that the test turns."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from mpiens.child import is_stopped
from mpiens.heartbeat import SILENT, Heartbeat


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def mate() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"]
    ) as mate:
        yield mate
        mate.kill()


def stop(mate: subprocess.Popen[bytes]) -> None:
    os.kill(mate.pid, signal.SIGSTOP)
    end = time.monotonic() + 10
    while not is_stopped(mate.pid):
        assert time.monotonic() < end
        time.sleep(0.01)


def look_for(heartbeat: Heartbeat, clock: Clock, seconds: float) -> None:
    """Look once a second, as often as that."""
    for _ in range(int(seconds)):
        clock.now += 1
        heartbeat.look()


def test_a_mate_that_is_stopped_for_too_long_is_killed(
    mate: subprocess.Popen[bytes],
) -> None:
    clock = Clock()
    heartbeat = Heartbeat(6.0, (mate.pid,), clock)
    heartbeat.look()
    stop(mate)
    look_for(heartbeat, clock, 6)
    assert mate.poll() is None
    look_for(heartbeat, clock, 1)
    assert mate.wait(10) == -signal.SIGKILL


def test_a_mate_that_goes_on_is_left_alone(mate: subprocess.Popen[bytes]) -> None:
    clock = Clock()
    heartbeat = Heartbeat(6.0, (mate.pid,), clock)
    stop(mate)
    look_for(heartbeat, clock, 5)
    os.kill(mate.pid, signal.SIGCONT)
    while is_stopped(mate.pid):
        time.sleep(0.01)
    look_for(heartbeat, clock, 1)
    stop(mate)
    look_for(heartbeat, clock, 5)
    assert mate.poll() is None


def test_who_stood_still_himself_judges_nobody(mate: subprocess.Popen[bytes]) -> None:
    clock = Clock()
    heartbeat = Heartbeat(6.0, (mate.pid,), clock)
    heartbeat.hear(1)
    stop(mate)
    heartbeat.look()
    clock.now += 1000  # a suspended job: everybody was stopped
    heartbeat.look()
    assert mate.poll() is None
    assert heartbeat.silent([1]) == []


def listen(heartbeat: Heartbeat, clock: Clock, seconds: float) -> list[int]:
    """Ask every half a second who is silent, for so long."""
    silent: list[int] = []
    for _ in range(int(2 * seconds)):
        clock.now += 0.5
        silent = heartbeat.silent([1, 2])
    return silent


def test_a_rank_is_silent_after_some_beats() -> None:
    clock = Clock()
    heartbeat = Heartbeat(2.0, (), clock)
    assert heartbeat.silent([1, 2]) == []
    assert listen(heartbeat, clock, 2.0 * SILENT) == []
    heartbeat.hear(2)
    assert listen(heartbeat, clock, 0.5) == [1]


def test_who_stood_still_himself_calls_nobody_silent() -> None:
    clock = Clock()
    heartbeat = Heartbeat(2.0, (), clock)
    assert heartbeat.silent([1, 2]) == []
    clock.now += 1000
    assert heartbeat.silent([1, 2]) == []
    assert listen(heartbeat, clock, 2.0 * SILENT) == []
    assert listen(heartbeat, clock, 0.5) == [1, 2]


def test_a_beat_is_due_once_in_a_while() -> None:
    clock = Clock()
    heartbeat = Heartbeat(3.0, (), clock)
    assert heartbeat.is_due()
    assert not heartbeat.is_due()
    clock.now += 1
    assert heartbeat.is_due()
