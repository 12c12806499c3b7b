"""What is shown while tasks run: numbers, plain lines, a bar where a terminal is."""

from __future__ import annotations

import fcntl
import io
import os
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import pytest

from mpiens import progress
from mpiens.progress import (
    Bar,
    Log,
    Tally,
    format_seconds,
    show_progress,
    tell_terminals,
    terminal_width,
)


@pytest.fixture(autouse=True)
def _nobody_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STDOUT", "STDERR"):
        monkeypatch.delenv(f"MPIENS_{name}_COLUMNS", raising=False)


def make(seconds: float, **counts: float) -> Tally:
    """Return a tally that has run for so long."""
    tally = Tally(total=100, done=20, ranks=4, since=time.monotonic() - seconds)
    for name, count in counts.items():
        setattr(tally, name, count)
    return tally


def test_rate_time_left_and_utilisation_have_their_closed_form() -> None:
    tally = make(600, finished=20, busy=1800.0)
    assert tally.rate() == pytest.approx(2, rel=0.01)  # tasks per minute
    assert tally.left() == pytest.approx(60 * 60 / 2, rel=0.01)
    assert tally.utilisation() == pytest.approx(1800 / (4 * 600), rel=0.01)


def test_a_run_that_has_just_begun_has_numbers_too() -> None:
    tally = Tally(total=100, done=0, ranks=4)
    assert tally.rate() == 0
    assert tally.left() is None
    assert "0 of 100 tasks (0%)" in tally.line()
    assert "starting" in tally.line()


def test_utilisation_is_never_more_than_all() -> None:
    assert make(10, finished=1, busy=1e6).utilisation() == 1


def test_a_line_says_it_all() -> None:
    line = make(600, finished=20, failed=3, busy=1800.0).line()
    for part in ("40 of 100 tasks (40%)", "3 failed", "2 tasks/min", "75% busy"):
        assert part in line
    assert "30 min 0" in line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0.0, "0 s"), (0.25, "0.25 s"), (1.0, "1.0 s"), (59.4, "59.4 s")),
        *((60.0, "1 min 00 s"), (61.4, "1 min 01 s"), (119.6, "2 min 00 s")),
        *((3599.7, "1 h 00 min"), (7262.0, "2 h 01 min"), (90000, "25 h 00 min")),
        (59.97, "1 min 00 s"),
    ],
)
def test_durations_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_log_has_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.0)
    stream = io.StringIO()
    log = Log(stream)
    for finished in (1, 2):
        log.update(make(60, finished=finished))
    log.close(make(60, finished=2))
    lines = stream.getvalue().split("\n")
    assert [line.split(" of")[0] for line in lines] == ["21", "22", ""]
    assert "\r" not in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_a_log_is_silent_between_its_periods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 3600.0)
    stream = io.StringIO()
    log = Log(stream)
    for _ in range(3):
        log.update(make(60, finished=1))
    assert stream.getvalue() == ""


def test_a_bar_shows_the_line_and_goes_away(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar(160)
    tally = make(600, finished=20, busy=1800.0)
    bar.update(tally)
    bar.update(tally)
    bar.close(tally)
    shown = capsys.readouterr()
    assert shown.out == ""  # standard output carries the answer only
    assert "40 of 100 tasks (40%)" in shown.err
    assert shown.err.rstrip().endswith("\x1b[2K")  # the last thing is an erased line


def test_a_bar_that_was_never_drawn_closes(capsys: pytest.CaptureFixture[str]) -> None:
    Bar(160).close(make(1))
    assert capsys.readouterr().err == ""


@contextmanager
def terminal(columns: int) -> Iterator[TextIO]:
    """A terminal of that width; 0 is one of no known size."""
    controller, end = os.openpty()
    fcntl.ioctl(end, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    with open(controller, "rb"), open(end, "w") as stream:  # noqa: PTH123
        yield stream


def test_a_terminal_gets_a_bar_and_a_log_gets_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with terminal(120) as stream:
        monkeypatch.setattr("sys.stderr", stream)
        assert terminal_width("stderr") == 120
        assert isinstance(show_progress(), Bar)
    with terminal(0) as stream:
        monkeypatch.setattr("sys.stderr", stream)
        assert terminal_width("stderr") is None
        assert isinstance(show_progress(), Log)
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert terminal_width("stderr") is None
    assert isinstance(show_progress(), Log)


def test_ranks_are_told_of_the_terminal_behind_their_pipes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with terminal(97) as stream:
        monkeypatch.setattr("sys.stderr", stream)
        monkeypatch.setattr("sys.stdout", io.StringIO())
        told = tell_terminals()
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert terminal_width("stderr") is None
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    assert terminal_width("stderr") == 97
    assert terminal_width("stdout") is None
    assert isinstance(show_progress(), Bar)
