"""What a user sees while tasks run: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

PERIOD = 30.0  # seconds between two lines of a log; the first come sooner
FIRST = 5.0
_VARIABLE = "MPIENS_{}_COLUMNS"


@dataclass
class Tally:
    """How far an ensemble has come in this run."""

    total: int
    done: int  # finished before this run began
    ranks: int
    failed_before: int = 0
    finished: int = 0
    failed: int = 0
    busy: float = 0.0  # seconds that tasks took, over all ranks
    # what there is to say instead of how many tasks are done
    headline: Callable[[], str] | None = None
    since: float = field(default_factory=time.monotonic)

    def elapsed(self) -> float:
        """Seconds since the first task was dealt."""
        return max(time.monotonic() - self.since, 1e-9)

    def rate(self) -> float:
        """Tasks per minute of this run."""
        return 60 * self.finished / self.elapsed()

    def left(self) -> float | None:
        """Seconds until the end at this rate, or None while there is none."""
        missing = self.total - self.done - self.finished
        return 60 * missing / self.rate() if self.finished else None

    def utilisation(self) -> float:
        """Share of the ranks' time that went into tasks."""
        return min(1.0, self.busy / (self.ranks * self.elapsed()))

    def line(self) -> str:
        """Return the state in one line."""
        if self.headline is not None:
            busy = f"ranks {100 * self.utilisation():.0f}% busy"
            return f"{self.headline()}, {self.failed} tasks failed, {busy}"
        left = self.left()
        ready = self.done + self.finished
        share = 100 * ready / self.total if self.total else 100
        return ", ".join(
            [
                f"{ready} of {self.total} tasks ({share:.0f}%)",
                f"{self.failed} failed",
                f"{self.rate():,.0f} tasks/min",
                f"ranks {100 * self.utilisation():.0f}% busy",
                f"{format_seconds(left)} left" if left is not None else "starting",
            ]
        )


class Progress(Protocol):
    """Something that is told of progress."""

    def update(self, tally: Tally) -> None:
        """Called often; shows something when it is time to."""

    def close(self, tally: Tally) -> None:
        """Called at the end."""


class Log:
    """One plain line per period, for logs of batch jobs."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = time.monotonic() + FIRST
        self._period = FIRST

    def update(self, tally: Tally) -> None:
        """Write a line where the last one is long enough ago."""
        if time.monotonic() < self._next:
            return
        self._period = min(PERIOD, self._period * 2)
        self._next = time.monotonic() + self._period
        print(tally.line(), file=self._stream, flush=True)

    def close(self, tally: Tally) -> None:
        """Nothing is left to show; the run's last line is told by the run."""


class Bar:
    """A bar with rate, time left, failures and utilisation, for terminals."""

    def __init__(self, width: int) -> None:
        from rich.console import Console  # noqa: PLC0415  (only the root shows one)
        from rich.progress import BarColumn, Progress, TextColumn  # noqa: PLC0415

        self._bar: Any = Progress(
            BarColumn(bar_width=max(5, min(40, width - 80))),
            TextColumn("{task.description}"),
            console=Console(stderr=True, force_terminal=True, width=width),
            transient=True,
            auto_refresh=False,
        )
        self._line: Any = None
        self._next = 0.0

    def update(self, tally: Tally) -> None:
        """Redraw the bar, at most five times a second."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 0.2
        if self._line is None:
            self._bar.start()
            self._line = self._bar.add_task("", total=tally.total)
        ready = tally.done + tally.finished
        self._bar.update(self._line, completed=ready, description=tally.line())
        self._bar.refresh()

    def close(self, tally: Tally) -> None:
        """Take the bar away."""
        if self._line is not None:
            self._bar.stop()


def show_progress() -> Progress:
    """Return a bar where standard error ends at a terminal, else a log."""
    width = terminal_width("stderr")
    return Log(sys.stderr) if width is None else Bar(width)


def terminal_width(name: str) -> int | None:
    """Return the width of the terminal at which a standard stream ends, or None.

    A launcher puts a pipe, or a terminal without a size, between a rank and the user's
    terminal; ``mpiens -n`` therefore tells its ranks what it knows.
    """
    told = os.environ.get(_VARIABLE.format(name.upper()), "")
    if told.isdigit():
        return int(told)
    stream: TextIO = getattr(sys, name)
    try:
        columns = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        return None
    return columns or None


def tell_terminals() -> dict[str, str]:
    """Return the environment that tells ranks of this process's terminals."""
    widths = {name: terminal_width(name) for name in ("stdout", "stderr")}
    return {_VARIABLE.format(n.upper()): str(w) for n, w in widths.items() if w}


def format_seconds(seconds: float) -> str:
    """Write a duration as people say it."""
    if seconds < 1:
        return f"{seconds:.2g} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def format_bytes(count: float) -> str:
    """Write a number of bytes in the unit that suits it."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"
