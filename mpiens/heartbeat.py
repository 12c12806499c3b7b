"""Who has stopped without dying: noticed by the ranks around, and ended.

A stopped process (SIGSTOP, a debugger) holds up everybody for ever, since no MPI tells
of it.  The ranks of its node see it in the kernel's books and kill it, whereupon it is
a lost rank like any other; where a rank is alone on its node its runner does so.  The
root hears when a rank is silent that nobody could kill.  A rank that computes is
neither stopped nor silent: its supervisor always answers.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from mpiens.child import is_stopped

SILENT = 3  # heartbeats after which a rank that nobody could kill is given up


@dataclass
class Heartbeat:
    """Looks after the processes of this node, and remembers who was heard when."""

    seconds: float
    mates: tuple[int, ...] = ()  # the other supervisors on this node, by pid
    clock: Callable[[], float] = time.monotonic
    _stopped: dict[int, float] = field(default_factory=dict)  # since when
    _heard: dict[int, float] = field(default_factory=dict)
    _looked: float = float("-inf")
    _beaten: float = float("-inf")

    def look(self) -> None:
        """Kill the mates that have been stopped for too long; cheap between looks."""
        now = self.clock()
        if now - self._looked < self.seconds / 6:
            return
        if now - self._looked > self.seconds / 2:  # it was we who stood still
            self._stopped.clear()
            self._heard.clear()
        self._looked = now
        for pid in self.mates:
            if not is_stopped(pid):
                self._stopped.pop(pid, None)
            elif now - self._stopped.setdefault(pid, now) >= self.seconds:
                text = f"process {pid} has been stopped for {self.seconds} s: ending it"
                print(f"mpiens: {text}", file=sys.stderr, flush=True)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def is_due(self) -> bool:
        """Whether it is time to let the others hear from us; once per beat."""
        due = self.clock() - self._beaten >= self.seconds / 3
        if due:
            self._beaten = self.clock()
        return due

    def hear(self, rank: int) -> None:
        """Something came from a rank."""
        self._heard[rank] = self.clock()

    def silent(self, ranks: Iterable[int]) -> list[int]:
        """Return the ranks of these that have been silent for too long."""
        now = self.clock()
        limit = SILENT * self.seconds
        return [r for r in ranks if now - self._heard.setdefault(r, now) > limit]
