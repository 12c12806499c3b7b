"""When to stop dealing tasks: the job's end, a signal, or a request in a file."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from mpiens.inquiry import inquire

MARGIN = 15.0  # seconds kept for flushing the file before the job is killed
GRACE = 20.0  # seconds that running tasks get after a signal; Slurm kills after 30
STOP_FILE = "MPIENS_STOP_FILE"  # the variable that names the file of a request
BEGUN = "begun"  # a file beside it
_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
AGAIN = 60.0  # seconds between two questions to Slurm, and left when it is asked again
_LOOK = 0.2  # seconds between two looks at the file


Look = Callable[[], None]
"""What long work calls now and then; it may raise Stopped, or that a rank is lost."""


def look_away() -> None:
    """Let nothing interrupt long work."""


class Stopped(Exception):  # noqa: N818  (it is news, not an error)
    """Long work has been given up: a stop was asked for, or the time is over."""


@dataclass
class Deadline:
    """Says when to stop, and how long running tasks may still take.

    ``end`` is on the clock, which counts seconds since the epoch.
    """

    end: float | None = None
    stop_file: Path | None = None
    clock: Callable[[], float] = time.time
    _asked: float | None = field(default=None, init=False)
    _reason: str = field(default="", init=False)
    _looked: float = field(default=0.0, init=False)
    _job: str = field(default="", init=False)  # whom to ask Slurm for
    _inquiry: Generator[float | None, None, None] | None = field(
        default=None, init=False
    )
    _inquired: float = field(default=float("-inf"), init=False)

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Deadline:
        """Return the deadline of this job, as its environment tells it."""
        told = environment.get("SLURM_JOB_END_TIME", "")
        end = float(told) - MARGIN if told.isdigit() else None
        file = environment.get(STOP_FILE)
        return cls(end, Path(file) if file else None)

    @staticmethod
    def mark_begun(environment: Mapping[str, str]) -> None:
        """Tell a launcher that starts ranks again that these have found their file."""
        if file := environment.get(STOP_FILE):
            with suppress(OSError):
                Path(file).with_name(BEGUN).touch()

    def ask_slurm(self, environment: Mapping[str, str]) -> None:
        """Find out from Slurm when the job ends, where its environment does not say.

        For one rank of a job only: Slurm would suffer from the questions of all.  Work
        goes on meanwhile, and a job whose end cannot be learnt has no deadline.
        """
        self._job = environment.get("SLURM_JOB_ID", "")
        if self.end is None:
            self.doubt()

    def doubt(self) -> bool:
        """Ask Slurm whether the job's end has been moved, at most once a minute.

        Whether the answer is still to come.
        """
        if self._job and self.clock() - self._inquired >= AGAIN:
            self.close()
            self._inquired = self.clock()
            self._inquiry = inquire(self._job)
        self._hear_slurm()
        return self._inquiry is not None

    def close(self) -> None:
        """Wait no longer for an answer of Slurm."""
        if self._inquiry is not None:
            self._inquiry.close()
            self._inquiry = None

    def listen(self) -> None:
        """Take SIGTERM, SIGUSR1, SIGINT as requests; a second SIGINT ends at once."""
        for number in _SIGNALS:
            signal.signal(number, self._hear)

    def ask(self, reason: str) -> None:
        """Ask for a stop."""
        if self._asked is None:
            self._asked = self.clock()
            self._reason = reason

    @property
    def asked(self) -> bool:
        """Whether somebody has asked for a stop."""
        now = self.clock()
        if self._asked is None and self.stop_file and now - self._looked >= _LOOK:
            self._looked = now
            if self.stop_file.exists():
                self.ask("a stop was asked for")
        return self._asked is not None

    @property
    def reason(self) -> str:
        """Why the run stops."""
        return self._reason or "the job's time is nearly over"

    def remaining(self) -> float | None:
        """Return the seconds that a task may still take; None where nothing limits it.

        After a request no new task is dealt, whatever this says.
        """
        self._hear_slurm()
        if self.end is not None and self.end - self.clock() < AGAIN:
            self.doubt()
        ends = [] if self.end is None else [self.end]
        if self._asked is not None:
            ends.append(self._asked + GRACE)
        return max(0.0, min(ends) - self.clock()) if ends else None

    def look(self) -> None:
        """Raise Stopped once somebody has asked for it, or no time is left."""
        if self.asked or self.remaining() == 0:
            raise Stopped(self.reason)

    def _hear_slurm(self) -> None:
        if self._inquiry is None:
            return
        try:
            end = next(self._inquiry)
        except StopIteration:  # who could not tell is not asked again
            self._job = ""
            self.close()
            return
        if end is not None:
            self.end = end - MARGIN
            self.close()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._reason == "SIGINT was received":
            os._exit(128 + number)  # what is finished is in the file already
        self.ask(f"{signal.Signals(number).name} was received")
