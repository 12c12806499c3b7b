"""Under fault tolerance a rank's death costs the others nothing but its tasks."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from conftest import Launch, Launcher, mpiexec_of, python_of

MODEL = """
import os
import time


def simulate(rng, replicate):
    log = os.open("begun", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, b".")
    os.close(log)
    time.sleep(0.02)
    return {"walk": rng.normal(size=50).cumsum()}
"""

SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 200
seed = 3

[scenarios.one]
[scenarios.two]

[outputs.walk]
dims = ["step"]
summaries = ["peak"]
"""
TASKS = 400
# mpiens, with a rank that stops itself while all ranks write together
STOPPED = """
import os
import signal
import sys

from mpiens import mpi, summary
from mpiens.__main__ import main

make = summary.make_bands


def stop_and_make(comm, *rest):
    if comm.rank == 1 and not os.path.exists("stopped"):
        open("stopped", "w").close()
        os.kill(os.getpid(), signal.SIGSTOP)
    return make(comm, *rest)


summary.make_bands = stop_and_make
sys.exit(main())
"""
RANKS = (b"OMPI_COMM_WORLD_RANK=", b"PMI_RANK=")


def supervisors(launch: Launch) -> dict[int, int]:
    """The processes that speak MPI, by the rank that they were started as."""
    found: dict[int, tuple[int, int]] = {}
    for pid in launch.pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            began = int(
                Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
            )
        except OSError:
            continue
        for entry in environment:
            if entry.startswith(RANKS) and b"mpiens" in command:
                rank = int(entry.partition(b"=")[2])
                # the runner is its child, hence younger
                found[rank] = min(found.get(rank, (began, pid)), (began, pid))
    return {rank: pid for rank, (_, pid) in found.items()}


def await_begun(launch: Launch, folder: Path, count: int) -> None:
    """Wait until so many tasks have been begun."""
    log, end = folder / "begun", time.monotonic() + 60
    while not log.exists() or log.stat().st_size < count:
        if launch.process.poll() is not None or time.monotonic() > end:
            launch.wait(0.1)
            pytest.fail(f"ended with {launch.code}: {launch.output}{launch.errors}")
        time.sleep(0.002)


def prepare(folder: Path) -> Launcher:
    (folder / "model.py").write_text(MODEL)
    (folder / "sweep.toml").write_text(SPEC)
    return Launcher(folder)


@pytest.fixture
def job(launcher: Launcher) -> Launcher:
    prepare(launcher.folder)
    return launcher


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> str:
    job = prepare(tmp_path_factory.mktemp("calm"))
    ran = job.mpiens("-n", "2", "sweep.toml")
    assert ran.code == 0, ran.errors
    return job.digest("sweep.h5")


@pytest.mark.parametrize(
    ("ranks", "kills"),
    [
        (4, [(2, 40)]),
        (4, [(0, 40)]),  # the root
        (2, [(0, 40)]),  # one is left
        (4, [(1, 1)]),  # the first tasks
        (4, [(3, TASKS - 12)]),  # the last ones
        (5, [(0, 40), (1, 120)]),  # the root, and the next root
        (5, [(3, 60), (2, 60), (0, 60)]),  # all at once: during recovery
    ],
    ids=str,
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_survivors_complete_the_file(
    job: Launcher,
    calm: str,
    ranks: int,
    kills: list[tuple[int, int]],
    number: signal.Signals,
) -> None:
    launch = job.start_ranks("openmpi", ranks, "sweep.toml", tolerant=True)
    for rank, begun in kills:
        await_begun(launch, job.folder, begun)
        os.kill(supervisors(launch)[rank], number)
    launch.wait(60)
    assert launch.code == 0, launch.errors
    assert "ranks lost, going on with" in launch.errors
    assert job.digest("sweep.h5") == calm
    assert not launch.orphans()
    # at most what was in flight is done again: two short ranges a rank at most
    assert (job.folder / "begun").stat().st_size < TASKS + 60


@pytest.mark.parametrize("rank", [0, 2])
def test_survivors_run_as_many_replicates_as_it_takes(job: Launcher, rank: int) -> None:
    spec = SPEC.replace("replicates = 200", "replicates = 20")
    spec += """
    [precision]
    output = "walk"
    summary = "peak"
    width = 2.0
    batch = 20
    max_replicates = 200
    """
    (job.folder / "sweep.toml").write_text(spec)
    whole = job.mpiens("-n", "2", "sweep.toml", "-o", "whole.h5")
    assert whole.code == 0, whole.errors
    took = (job.folder / "begun").stat().st_size
    assert 80 < took < TASKS, "some were not needed"
    (job.folder / "begun").unlink()
    launch = job.start_ranks("openmpi", 4, "sweep.toml", tolerant=True)
    await_begun(launch, job.folder, 60)
    os.kill(supervisors(launch)[rank], signal.SIGKILL)
    launch.wait(60)
    assert launch.code == 0, launch.errors
    assert "1 of 4 ranks lost, going on with 3" in launch.errors
    assert job.digest("sweep.h5") == job.digest("whole.h5")


@pytest.mark.parametrize("rank", [0, 2])
def test_a_stopped_rank_is_ended_and_the_others_go_on(
    job: Launcher, calm: str, rank: int
) -> None:
    spec = job.folder / "sweep.toml"
    spec.write_text(SPEC + "[limits]\nheartbeat = 1.0\n")
    launch = job.start_ranks("openmpi", 4, "sweep.toml", tolerant=True)
    await_begun(launch, job.folder, 40)
    os.kill(supervisors(launch)[rank], signal.SIGSTOP)
    launch.wait(60)
    assert launch.code == 0, launch.errors
    assert "has been stopped for 1.0 s: ending it" in launch.errors
    assert "1 of 4 ranks lost, going on with 3" in launch.errors
    assert job.digest("sweep.h5") == calm
    assert not launch.orphans()


@pytest.mark.parametrize("environment", ["mpich", "debian"])
def test_without_fault_tolerance_a_stopped_rank_does_not_hold_up_the_job(
    job: Launcher, calm: str, environment: str
) -> None:
    spec = job.folder / "sweep.toml"
    spec.write_text(SPEC + "[limits]\nheartbeat = 1.0\n")
    launch = job.start_ranks(environment, 3, "sweep.toml")
    await_begun(launch, job.folder, 40)
    os.kill(supervisors(launch)[1], signal.SIGSTOP)
    launch.wait(60)
    assert launch.code != 0
    assert not launch.orphans()
    again = job.ranks(environment, 3, "sweep.toml")
    assert again.code == 0, again.errors
    assert job.digest("sweep.h5") == calm


@pytest.mark.parametrize("environment", ["openmpi", "debian"])
@pytest.mark.parametrize("work", ["run", "run without processes", "merge"])
def test_a_rank_that_stops_while_all_write_together_is_ended(
    job: Launcher, calm: str, environment: str, work: str
) -> None:
    spec = SPEC + "[limits]\nheartbeat = 1.0\n"
    if work == "run without processes":
        spec += 'isolation = "none"\n'
    (job.folder / "sweep.toml").write_text(spec)
    (job.folder / "stopped.py").write_text(STOPPED)
    words = ["sweep.toml"]
    if work == "merge":
        for shard in ("0/2", "1/2"):
            part = job.mpiens("sweep.toml", "--shard", shard, environment=environment)
            assert part.code == 0, part.errors
        shards = sorted(path.name for path in job.folder.glob("*.h5"))
        words = ["merge", *shards, "-o", "sweep.h5"]
    python = [python_of(environment), "stopped.py", *words]
    launch = job.start([*mpiexec_of(environment), "-n", "3", *python])
    launch.wait(60)
    assert launch.code != 0
    assert "has been stopped for" in launch.errors
    assert not launch.orphans()
    again = job.ranks(environment, 3, *words)
    assert again.code == 0, again.errors
    assert job.digest("sweep.h5") == calm
