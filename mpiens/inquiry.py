"""Asking Slurm when a job ends, while other work goes on."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
import time
from collections.abc import Generator
from contextlib import suppress
from datetime import datetime

LIMIT = 10.0  # seconds that a command may take; a busy controller needs some


def inquire(job: str) -> Generator[float | None, None, None]:
    """Yield None while Slurm is being asked, and at last when a job ends.

    That is in seconds since the epoch; where Slurm cannot tell, nothing follows.  To
    close the iterator ends the command that is under way.
    """
    own = re.escape(job)  # an array's id is one element's too, and brings them all
    squeue = ["squeue", "--noheader", f"--job={job}", "--format=%A %e"]
    scontrol = ["scontrol", "--oneliner", "show", "job", job]
    ways = [(squeue, rf"^{own} (\S+)"), (scontrol, rf"^JobId={own} .* EndTime=(\S+)")]
    for command, pattern in ways:
        answer = yield from _run(command)
        told = re.search(pattern, answer, re.MULTILINE)
        if told and (end := _parse(told[1])) is not None:
            yield end
            return


def _run(command: list[str]) -> Generator[None, None, str]:
    """Yield while a command runs; return what it printed, or nothing if it failed."""
    with tempfile.TemporaryFile() as output:  # a pipe might fill up
        try:
            process = subprocess.Popen(
                command,
                env=os.environ | {"SLURM_TIME_FORMAT": "%s"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            return ""
        try:
            since = time.monotonic()
            while process.poll() is None and time.monotonic() - since < LIMIT:
                yield
        finally:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
        output.seek(0)
        return output.read().decode(errors="replace") if process.returncode == 0 else ""


def _parse(text: str) -> float | None:
    """Read a time as Slurm writes it; None where it is none, such as ``N/A``."""
    if text.isdigit():
        return float(text) or None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None
