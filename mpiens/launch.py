"""``mpiens -n N``: N ranks on this machine, asked to stop and started again."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType

from mpiens.child import die_with
from mpiens.deadline import BEGUN, STOP_FILE
from mpiens.fault import SpecError
from mpiens.lock import is_held
from mpiens.progress import tell_terminals
from mpiens.store import PARTIAL, Store

PATIENCE = 10.0  # seconds, for ranks to notice that their launcher has gone
TRIES = 20  # how often a job that loses ranks is started again, at most
OWN_CODES = (0, 2, 3, 4, 75)  # of ranks that end by themselves
_ONCE = ("--fresh", "--retry-failed")  # what a second start must not do again
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# Where Open MPI keeps a job's files.  A launcher that is killed leaves them, and one
# that is given the same process number later would fail to start because of them.
_SESSIONS = ("PRTE_MCA_prte_tmpdir_base", "OMPI_MCA_orte_tmpdir_base")


@dataclass
class Launch:
    """A command that starts ranks, run until their file is complete.

    The launcher of the MPI runs in a session of its own, so that what a user types at
    the terminal reaches only this process, which then asks the ranks to stop.
    """

    command: list[str]
    environment: dict[str, str]
    file: Path | None  # None where one start is all there is
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _stop: Path = field(default=Path(), init=False)

    def run(self) -> int:
        """Run to the end; return the ranks' exit code, or the launcher's own."""
        before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        try:
            with tempfile.TemporaryDirectory(prefix="mpiens-") as folder:
                self._stop = Path(folder) / "stop"
                return self._run_until_complete()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run_until_complete(self) -> int:
        code = self._run_once()
        for _ in range(TRIES if self.file is not None else 0):
            done = self._count_done()
            complete = done == sys.maxsize
            ended_by_itself = code in OWN_CODES and (code != 0 or complete)
            if ended_by_itself or self._stop.exists():
                break
            print(
                f"mpiens: the ranks were lost (exit code {code}) with {done} tasks "
                "done: starting them again",
                file=sys.stderr,
                flush=True,
            )
            if self._stop.with_name(BEGUN).exists():
                self.command = [word for word in self.command if word not in _ONCE]
            self._await_end()
            code = self._run_once()
            if code not in OWN_CODES and self._count_done() <= done:
                break  # no progress: it would go on like that
        return code

    def _run_once(self) -> int:
        sessions = dict.fromkeys(_SESSIONS, str(self._stop.with_name("sessions")))
        environment = self.environment | sessions | tell_terminals()
        with subprocess.Popen(
            self.command,
            env=environment | {STOP_FILE: str(self._stop)},
            start_new_session=True,
            preexec_fn=partial(die_with, os.getpid()),  # noqa: PLW1509  (no threads)
        ) as self._process:
            code = self._process.wait()
        return code if code >= 0 else 128 - code

    def _await_end(self) -> None:
        """Wait for ranks that outlive their launcher by a moment, and hold the file."""
        end = time.monotonic() + PATIENCE
        while self.file is not None and is_held(self.file) and time.monotonic() < end:
            time.sleep(0.02)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number == signal.SIGINT and self._stop.exists() and self._process:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._stop.touch()

    def _count_done(self) -> int:
        """Return how many tasks are finished; the file tells, and no exit code does."""
        if self.file is None or self.file.exists():
            return sys.maxsize
        try:
            store = Store(self.file.with_name(self.file.name + PARTIAL))
        except SpecError:
            return 0
        store.close()
        return store.finished
