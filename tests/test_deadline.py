"""When to stop: by a clock that the test turns, by signals, by a file."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpiens.deadline import GRACE, MARGIN, STOP_FILE, Deadline


class Clock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def handlers() -> Iterator[None]:
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_without_a_job_nothing_limits_a_task() -> None:
    deadline = Deadline.of({})
    assert deadline.remaining() is None
    assert not deadline.asked


def test_the_end_of_a_job_leaves_time_to_flush() -> None:
    clock = Clock()
    deadline = Deadline.of({"SLURM_JOB_END_TIME": "1100"})
    deadline.clock = clock
    assert deadline.remaining() == 100 - MARGIN
    clock.now = 1090
    assert deadline.remaining() == 0
    assert not deadline.asked


def test_a_request_leaves_running_tasks_some_grace() -> None:
    clock = Clock()
    deadline = Deadline(clock=clock)
    deadline.ask("somebody wants it")
    clock.now += GRACE / 4
    assert deadline.asked
    assert deadline.remaining() == GRACE * 3 / 4
    assert deadline.reason == "somebody wants it"
    deadline.ask("another too")
    assert deadline.reason == "somebody wants it"


def test_the_job_may_end_before_the_grace_does() -> None:
    clock = Clock()
    deadline = Deadline(end=1005.0, clock=clock)
    deadline.ask("x")
    assert deadline.remaining() == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
@pytest.mark.usefixtures("handlers")
def test_a_signal_is_a_request(number: signal.Signals) -> None:
    deadline = Deadline()
    deadline.listen()
    os.kill(os.getpid(), number)
    assert deadline.asked
    assert number.name in deadline.reason


def test_a_file_is_a_request(tmp_path: Path) -> None:
    clock = Clock()
    deadline = Deadline.of({STOP_FILE: str(tmp_path / "stop")})
    deadline.clock = clock
    assert not deadline.asked
    (tmp_path / "stop").touch()
    clock.now += 1
    assert deadline.asked
