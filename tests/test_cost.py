"""What a run costs: shared data is in memory once, and waiting takes no time."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Launch, Launcher, write

MIB = 1 << 20
LIMIT = 90

HOLDER = """
import time
from pathlib import Path

import numpy as np


def load(mebibytes):
    rows = mebibytes * 256
    return {"halves": [np.ones(rows * 2048, np.uint8) for _ in range(2)]}


def simulate(replicate, shared):
    touched = sum(int(half[::64].sum()) for half in shared["halves"])
    Path(f"holds-{replicate}").touch()
    while not Path("enough").exists():
        time.sleep(0.05)
    return {"touched": touched}
"""

HOLDER_SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 8
seed = 1

[shared]
loader = "model.py:load"
kwargs = {{ mebibytes = {mebibytes} }}
"""

SLEEPER = """
import os
import time


def simulate():
    log = os.open("began", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, b".")
    time.sleep(1)
    return {"slept": 1.0}
"""

SLEEPER_SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 88
seed = 1
"""


def await_file(launch: Launch, path: Path, size: int = 0) -> None:
    """Wait until a file is there and has so many bytes."""
    end = time.monotonic() + LIMIT
    while not (path.exists() and path.stat().st_size >= size):
        assert launch.process.poll() is None, launch.wait(1).errors
        assert time.monotonic() < end, f"no {path.name} of {size} bytes in {LIMIT} s"
        time.sleep(0.02)


def proportional_bytes(launch: Launch) -> int:
    """Return the memory of all processes, each page counted once in all."""
    total = 0
    for pid in launch.pids():
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) << 10
    return total


def hold(launcher: Launcher, environment: str, mebibytes: int) -> int:
    """Return the memory of 8 ranks that all hold shared data of that size."""
    folder = launcher.folder / f"{mebibytes}"
    folder.mkdir()
    write(folder, "model.py", HOLDER)
    write(folder, "sweep.toml", HOLDER_SPEC.format(mebibytes=mebibytes))
    own = Launcher(folder)
    launch = own.start_ranks(environment, 8, "sweep.toml")
    launcher.started.append(launch)
    for replicate in range(8):  # one on every rank, for none ends before all began
        await_file(launch, folder / f"holds-{replicate}")
    held = proportional_bytes(launch)
    (folder / "enough").touch()
    assert launch.wait(LIMIT).code == 0, launch.errors
    return held


@pytest.mark.parametrize("environment", ["mpich", "openmpi"])
def test_shared_data_is_in_memory_once(launcher: Launcher, environment: str) -> None:
    more = hold(launcher, environment, 512) - hold(launcher, environment, 1)
    assert 0.95 * 511 * MIB < more < 1.10 * 511 * MIB


def rank_of(pid: int) -> str | None:
    """Return the rank that a process belongs to; mpiexec's own belong to none."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            name, _, value = entry.decode(errors="replace").partition("=")
            if name in ("PMI_RANK", "OMPI_COMM_WORLD_RANK"):
                return value
    return None


def cpu_seconds(launch: Launch) -> dict[str, float]:
    """Return the CPU time of each rank so far: supervisor and runner together."""
    seconds: dict[str, float] = {}
    for pid in launch.pids():
        if (rank := rank_of(pid)) is not None:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks = int(stat[11]) + int(stat[12])
            seconds[rank] = seconds.get(rank, 0) + ticks / os.sysconf("SC_CLK_TCK")
    return seconds


def test_waiting_ranks_burn_no_core(launcher: Launcher) -> None:
    launches = {}
    for environment in ("mpich", "openmpi"):
        folder = launcher.folder / environment
        folder.mkdir()
        write(folder, "model.py", SLEEPER)
        write(folder, "sweep.toml", SLEEPER_SPEC)
        launch = Launcher(folder).start_ranks(environment, 4, "sweep.toml")
        launcher.started.append(launch)
        launches[environment] = launch

    def measure(began: int) -> Iterator[tuple[float, dict[str, float]]]:
        for environment, launch in launches.items():
            await_file(launch, launcher.folder / environment / "began", began)
            yield time.monotonic(), cpu_seconds(launch)

    # from when every rank is past its first task until shortly before the last ones
    starts, ends = list(measure(8)), list(measure(84))
    for (since, before), (until, after) in zip(starts, ends, strict=True):
        assert sorted(before) == ["0", "1", "2", "3"]
        shares = {r: (after[r] - before[r]) / (until - since) for r in after}
        assert max(shares.values()) < 0.05, shares
