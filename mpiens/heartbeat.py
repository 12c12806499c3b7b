"""Who has stopped without dying: noticed by the ranks around, and ended.

A stopped process (SIGSTOP, a debugger) holds up everybody for ever, since no MPI tells
of it.  The ranks of its node see it in the kernel's books and kill it, whereupon it is
a lost rank like any other; where a rank is alone on its node its runner does so, and
where all may wait in a library that does not look around, a child of each.  The root
hears when a rank is silent that nobody could kill.  A rank that computes is neither
stopped nor silent: its supervisor always answers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from mpiens.child import fork, is_stopped

SILENT = 3  # heartbeats after which a rank that nobody could kill is given up


@dataclass
class Stillness:
    """How long processes of this machine have been stopped, as far as was looked."""

    seconds: float  # for so long, and it is too long
    clock: Callable[[], float] = time.monotonic
    _since: dict[int, float] = field(default_factory=dict)
    _looked: float = float("-inf")

    def is_due(self) -> bool:
        """Whether it is time for a look; who stood still himself forgets the others."""
        now = self.clock()
        if now - self._looked < self.seconds / 6:
            return False
        if now - self._looked > self.seconds / 2:
            self._since.clear()
        self._looked = now
        return True

    def lasts(self, pid: int) -> bool:
        """Whether a process has been stopped for too long."""
        if not is_stopped(pid):
            self._since.pop(pid, None)
            return False
        now = self.clock()
        return now - self._since.setdefault(pid, now) >= self.seconds

    def end(self, pids: Iterable[int]) -> None:
        """Kill those that have been stopped for too long; cheap between looks."""
        if not self.is_due():
            return
        for pid in filter(self.lasts, pids):
            text = f"process {pid} has been stopped for {self.seconds} s: ending it"
            print(f"mpiens: {text}", file=sys.stderr, flush=True)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def watch_parent(seconds: float) -> None:
    """Kill the parent, from a thread, once it has been stopped for so long."""
    threading.Thread(target=_watch, args=(os.getppid(), seconds), daemon=True).start()


@contextmanager
def guarded(seconds: float) -> Iterator[None]:
    """Let a child kill this process, should it be stopped for so long meanwhile.

    For calls in which the others wait for it and look after nobody.
    """
    guarded_one = os.getpid()

    def guard() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it is for who decides
        _watch(guarded_one, seconds)

    pid = fork(guard)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _watch(pid: int, seconds: float) -> None:
    """Kill a process once it has been stopped for so long; never returns."""
    stillness = Stillness(seconds)
    while True:
        stillness.end([pid])
        time.sleep(seconds / 5)


@dataclass
class Heartbeat:
    """Looks after the processes of this node, and remembers who was heard when."""

    seconds: float
    mates: tuple[int, ...] = ()  # the other supervisors on this node, by pid
    clock: Callable[[], float] = time.monotonic
    _heard: dict[int, float] = field(default_factory=dict)
    _asked: float = float("-inf")
    _searched: float = float("-inf")
    _beaten: float = float("-inf")

    def __post_init__(self) -> None:
        self._stillness = Stillness(self.seconds, self.clock)

    def look(self) -> None:
        """Kill the mates that have been stopped for too long; cheap between looks."""
        self._stillness.end(self.mates)

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
        if now - self._asked > self.seconds / 2:  # it was we who stood still
            self._heard.clear()
        self._asked = now
        if now - self._searched < self.seconds / 10:  # there may be thousands
            return []
        self._searched = now
        limit = SILENT * self.seconds
        return [r for r in ranks if now - self._heard.setdefault(r, now) > limit]
