"""Starting a command and measuring it from outside: seconds, CPU time, memory."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
LIMIT = 300.0  # seconds that one run may take
LOOK_SECONDS = 0.05  # between two looks at memory
LINES = 30  # of what a failed run said


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    began: float  # when, as seconds since the epoch
    seconds: float
    cpu: float  # seconds, of all its processes
    memory: float  # MiB at most of all its processes, shared pages counted once
    root_peak: float  # MiB at most of its first rank
    output: str


def launch(
    command: Sequence[str],
    folder: Path,
    *,
    path: Sequence[str] = (),
    tolerant: bool = False,
    watch: bool = False,
) -> Usage:
    """Run a command; its whole group is killed when its time is over.

    What memory it takes is told where one is to ``watch``.  Raises RuntimeError, with
    the last of what it said, where it fails, and TimeoutExpired.
    """
    variables = os.environ | {
        "PYTHONPATH": os.pathsep.join([*path, os.environ.get("PYTHONPATH", "")]),
        **dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"], "1"),
    }
    variables.pop("PYTHONDONTWRITEBYTECODE", None)  # start as users do
    used = _read_children()
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        began = time.time()
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=errors,
            start_new_session=True,
        )
        total, peak = 0.0, 0.0
        try:
            while watch and process.poll() is None and time.time() - began < LIMIT:
                family = find_family(process.pid)
                total = max(total, sum(map(_read_share, family)))
                peak = max([peak, *map(_read_peak, filter(_is_root, family))])
                time.sleep(LOOK_SECONDS)
            process.wait(max(0.0, began + LIMIT - time.time()))
        finally:
            seconds = time.time() - began
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        output = said.read()
        if process.returncode != 0 and not (tolerant and output):
            errors.seek(0)
            told = "\n".join(errors.read().splitlines()[-LINES:])
            raise RuntimeError(f"{command} ended with {process.returncode}:\n{told}")
    return Usage(began, seconds, _read_children() - used, total, peak, output)


def find_family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    family, found = [pid], []
    while family:
        found.append(family.pop())
        family += children.get(found[-1], [])
    return found


def _read_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _read_share(pid: int) -> float:
    """Return the MiB of a process, of shared pages its share."""
    return _read_field(Path(f"/proc/{pid}/smaps_rollup"), "Pss")


def _read_peak(pid: int) -> float:
    return _read_field(Path(f"/proc/{pid}/status"), "VmHWM")


def _read_field(file: Path, name: str) -> float:
    with suppress(OSError):
        for line in file.read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _is_root(pid: int) -> bool:
    """Whether a process is the first rank of an MPI, or its runner."""
    with suppress(OSError):
        ranks = {b"PMI_RANK=0", b"PMIX_RANK=0", b"OMPI_COMM_WORLD_RANK=0"}
        return bool(ranks & {*Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")})
    return False
