"""Nothing finished is lost, whatever is killed, and the answer stays the same."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from conftest import ENVIRONMENTS, Launch, Launcher, wait_until, write

TASKS = 240
DONE = 1
LIMIT = 60

# Every start of a task leaves a line: who runs which, as which rank.
MODEL = """
import os
import time

import numpy as np

RANK = os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK") or "0"


def tell(replicate):
    line = f"{replicate} {os.getpid()} {os.getppid()} {RANK}\\n"
    log = os.open("executed", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, line.encode())
    os.close(log)


def simulate(rng, replicate, *, pause=0.0125):
    tell(replicate)
    time.sleep(pause * rng.uniform(0.4, 1.6))
    return {"walk": np.cumsum(rng.normal(size=50)), "luck": int(rng.integers(9))}


def murder(rng, replicate):
    tell(replicate)
    if replicate == 3:
        os.kill(os.getpid(), 9)
    return {"luck": int(rng.integers(9))}
"""

LOADER = """
import os
import time


def load():
    with open("loader", "w") as file:
        print(os.getpid(), os.getppid(), file=file)
    time.sleep(100)


def simulate(rng, shared):
    return {"luck": rng.normal()}
"""

SPEC = f"""
[ensemble]
model = "model.py:simulate"
replicates = {TASKS}
seed = 5

[outputs.walk]
dims = ["step"]
summaries = ["final", "peak"]
"""


class Execution(NamedTuple):
    """One start of a task, as the model has told it."""

    replicate: int
    runner: int
    supervisor: int
    rank: int


@dataclass(frozen=True)
class Moment:
    """When to kill: once so many tasks have been begun, and then a little later."""

    begun: int
    delay: float


def draw_moments(seed: int) -> list[Moment]:
    """Return one moment in every phase: start, first tasks, middle, last tasks, end."""
    rng = np.random.default_rng(seed)
    phases = [(0, 0), (1, 40), (60, 130), (150, TASKS - 1), (TASKS, TASKS)]
    delays = [(0.2, 1.0), (0.0, 0.1), (0.0, 0.1), (0.0, 0.1), (0.0, 0.4)]
    return [
        Moment(int(rng.integers(low, high + 1)), rng.uniform(soon, late))
        for (low, high), (soon, late) in zip(phases, delays, strict=True)
    ]


@dataclass
class Job:
    """One command that is given again and again, and what it leaves in its folder."""

    launcher: Launcher
    environment: str
    ranks: int = 3
    spec: str = "sweep.toml"

    @property
    def file(self) -> Path:
        return self.launcher.folder / f"{self.environment}.h5"

    @property
    def partial(self) -> Path:
        return self.file.with_name(f"{self.file.name}.partial")

    def start(self) -> Launch:
        words = [self.spec, "-o", self.file.name]
        return self.launcher.start_ranks(self.environment, self.ranks, *words)

    def executed(self) -> list[Execution]:
        """Return every start of a task so far, in order."""
        log = self.launcher.folder / "executed"
        text = log.read_text() if log.exists() else ""
        lines = text.split("\n")[:-1]  # the last one may be under way
        return [Execution(*map(int, line.split())) for line in lines]

    def begun(self) -> set[int]:
        """Return the replicates that have been begun so far."""
        return {execution.replicate for execution in self.executed()}

    def await_tasks(self, launch: Launch, count: int) -> None:
        """Wait until so many tasks have been begun, or the launch has ended."""
        wait_until(
            lambda: launch.process.poll() is not None or len(self.begun()) >= count
        )

    def kill(self, moment: Moment) -> None:
        """Run, and kill everything at that moment."""
        launch = self.start()
        self.await_tasks(launch, moment.begun)
        time.sleep(moment.delay)
        while launch.pids():  # mpiexec may have been starting ranks meanwhile
            launch.kill()
        launch.process.communicate(timeout=LIMIT)

    def finish(self) -> int:
        """Run to the end; return how many tasks were executed on the way."""
        before = len(self.executed())
        launch = self.start().wait(LIMIT)
        assert launch.code == 0, launch.errors
        assert self.file.exists()
        assert not self.partial.exists()
        assert launch.orphans() == []
        return len(self.executed()) - before

    def done(self) -> set[int]:
        """Return the replicates called done by the file, which holds all their rows."""
        path = self.partial if self.partial.exists() else self.file
        if not path.exists():
            return set()
        with h5py.File(path) as file:
            done = np.flatnonzero(file["tasks/status"][0] == DONE).tolist()
            rows = [file["series/walk"][0], file["series/luck"][0]]
            sums = file["tasks/checksum"][0]
        for replicate in done:
            row = b"".join(values[replicate].tobytes() for values in rows)
            expected = hashlib.sha256(row).digest()[:8]
            assert int(sums[replicate]) == int.from_bytes(expected, "little")
        return set(done)


@pytest.fixture
def job(launcher: Launcher) -> Callable[..., Job]:
    write(launcher.folder, "model.py", MODEL)
    write(launcher.folder, "sweep.toml", SPEC)
    return partial(Job, launcher)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the digest of a run that nothing disturbs."""
    launcher = Launcher(tmp_path_factory.mktemp("undisturbed"))
    write(launcher.folder, "model.py", MODEL)
    write(launcher.folder, "sweep.toml", SPEC)
    assert Job(launcher, "mpich", 4).finish() == TASKS
    return launcher.digest("mpich.h5")


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_job_killed_again_and_again_loses_nothing_and_gives_the_same_answer(
    job: Callable[..., Job], undisturbed: str, environment: str, seed: int
) -> None:
    own = job(environment)
    done: set[int] = set()
    partials = 0
    for moment in draw_moments(seed + 100 * ENVIRONMENTS.index(environment)):
        before = len(own.executed())
        own.kill(moment)
        again = {execution.replicate for execution in own.executed()[before:]}
        assert again & done == set()
        kept = own.done()
        assert kept >= done
        done = kept
        partials += own.partial.exists()
        in_flight = own.begun() - done
        assert len(in_flight) <= 16 * own.ranks  # of tasks that take 12 ms
    assert partials >= 2  # else no kill has met a file under way
    assert own.finish() == TASKS - len(done)
    assert own.launcher.digest(own.file.name) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("environment", ["mpich", "openmpi"])
def test_a_runner_killed_from_outside_costs_nothing_but_time(
    job: Callable[..., Job], undisturbed: str, environment: str, number: int
) -> None:
    own = job(environment)
    launch = own.start()
    killed = set()
    for count in (20, 70, 120, 170):
        own.await_tasks(launch, count)
        pid = own.executed()[-1].runner
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        killed.add(pid)
    assert launch.wait(LIMIT).code == 0, launch.errors
    assert len(killed) > 1
    assert own.launcher.digest(own.file.name) == undisturbed
    with h5py.File(own.file) as file:
        assert (file["tasks/status"][:] == DONE).all()
    assert launch.orphans() == []


def test_a_task_whose_runner_is_always_killed_fails_after_four_times(
    job: Callable[..., Job],
) -> None:
    own = job("mpich", ranks=2, spec="murder.toml")
    text = SPEC.partition("[outputs.walk]")[0].replace(":simulate", ":murder")
    write(own.launcher.folder, "murder.toml", text)
    launch = own.start().wait(LIMIT)
    assert launch.code == 3, launch.errors
    assert [e.replicate for e in own.executed()].count(3) == 4
    with h5py.File(own.file) as file:
        assert np.flatnonzero(file["tasks/status"][0] != DONE).tolist() == [3]
        assert "SIGKILL" in file["failures/text"][0].decode()


def test_the_death_of_a_supervisor_takes_its_runner_with_it(
    job: Callable[..., Job],
) -> None:
    own = job("mpich")
    text = SPEC + "\n[parameters]\npause = 100.0\n"
    write(own.launcher.folder, "sweep.toml", text)
    # without a launcher, which would end the runner as well
    launch = own.launcher.start([sys.executable, "-m", "mpiens", "sweep.toml"])
    own.await_tasks(launch, 1)
    first = own.executed()[0]
    assert {first.runner, first.supervisor} <= set(launch.pids())
    os.kill(first.supervisor, signal.SIGKILL)
    assert launch.orphans() == []


def test_the_death_of_the_root_takes_a_loader_with_it(launcher: Launcher) -> None:
    write(launcher.folder, "model.py", LOADER)
    own = SPEC.partition("[outputs.walk]")[0] + '[shared]\nloader = "model.py:load"\n'
    write(launcher.folder, "sweep.toml", own)
    launch = launcher.start([sys.executable, "-m", "mpiens", "sweep.toml"])
    pids = launcher.folder / "loader"
    wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    loader, supervisor = map(int, pids.read_text().split())
    assert {loader, supervisor} <= set(launch.pids())
    os.kill(supervisor, signal.SIGKILL)
    assert launch.orphans() == []


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_lost_rank_loses_nothing(
    job: Callable[..., Job], undisturbed: str, environment: str, rank: int
) -> None:
    own = job(environment)
    launch = own.start()
    own.await_tasks(launch, TASKS // 2)
    victim = next(e.supervisor for e in own.executed() if e.rank == rank)
    os.kill(victim, signal.SIGKILL)
    launch.wait(LIMIT)
    assert launch.orphans() == []
    assert launch.code != 0
    done = own.done()
    assert done
    assert own.finish() == TASKS - len(done)
    assert own.launcher.digest(own.file.name) == undisturbed
