"""A stop keeps what is finished, and the same command goes on to the same answer."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Launch, Launcher, mpiexec_of, python_of, wait_until, write

TASKS = 60
PENDING, DONE = 0, 1
LIMIT = 60
SIGNALS = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]
MARGIN = 15  # seconds before the end of a Slurm job at which everything is kept

# A task begins and ends with a line.  Where the file "slow" says so it takes long.
MODEL = """
import os
import time
from pathlib import Path

import numpy as np

RANK = os.environ.get("PMI_RANK", "0")


def tell(what, replicate):
    line = f"{what} {replicate} {os.getppid()} {RANK}\\n"
    log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, line.encode())
    os.close(log)


def simulate(rng, replicate):
    tell("begin", replicate)
    slow = Path("slow")
    if slow.exists():
        soon, late = map(float, slow.read_text().split())
        time.sleep(soon if replicate < 12 else late)
    tell("end", replicate)
    return {"walk": np.cumsum(rng.normal(size=50)), "luck": int(rng.integers(9))}

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


@dataclass
class Job:
    """A job of slow tasks that is stopped, and the quick one that goes on with it."""

    launcher: Launcher

    @property
    def partial(self) -> Path:
        return self.launcher.folder / "sweep.h5.partial"

    def start(self, how: str, soon: float = 0.05, late: float = 0.05) -> Launch:
        """Start it alone, as three ranks, or by ``mpiens -n 3``."""
        self.slow_down(soon, late)
        if how.startswith("rank"):
            return self.launcher.start_ranks("mpich", 3, "sweep.toml")
        words = ["-n", "3"] if how == "launcher" else []
        return self.launcher.start(
            [sys.executable, "-m", "mpiens", "sweep.toml", *words]
        )

    def slow_down(self, soon: float, late: float) -> None:
        """Say what the first dozen of tasks takes, and what all others do."""
        (self.launcher.folder / "slow").write_text(f"{soon} {late}")

    def log(self, what: str) -> list[list[int]]:
        """Return (replicate, supervisor, rank) of the lines that begin with a word."""
        path = self.launcher.folder / "log"
        lines = [line.split() for line in path.read_text().split("\n")[:-1]]
        return [[int(word) for word in line[-3:]] for line in lines if line[0] == what]

    def begun(self) -> list[int]:
        return [replicate for replicate, _, _ in self.log("begin")]

    def supervisors(self) -> dict[int, int]:
        """Return the process of each rank whose model has been called."""
        return {rank: supervisor for _, supervisor, rank in self.log("begin")}

    def await_tasks(self, launch: Launch, count: int) -> None:
        """Wait until so many tasks have ended."""
        log = self.launcher.folder / "log"
        wait_until(
            lambda: (
                launch.process.poll() is not None
                or (log.exists() and len(self.log("end")) >= count)
            )
        )
        assert launch.process.poll() is None, launch.errors

    def finished(self) -> set[int]:
        """Return what is done by the partial file, all of whose rows are whole."""
        with h5py.File(self.partial) as file:
            done = np.flatnonzero(file["tasks/status"][0] == DONE).tolist()
            rows = [file["series/walk"][0], file["series/luck"][0]]
            sums = file["tasks/checksum"][0]
        for replicate in done:
            row = b"".join(values[replicate].tobytes() for values in rows)
            expected = hashlib.sha256(row).digest()[:8]
            assert int(sums[replicate]) == int.from_bytes(expected, "little")
        return set(done)

    def go_on(self, done: set[int]) -> str:
        """Complete the file by the tasks that were not done; return the digest."""
        (self.launcher.folder / "slow").unlink(missing_ok=True)
        before = len(self.begun())
        launch = self.launcher.mpiens("sweep.toml")
        assert launch.code == 0, launch.errors
        assert sorted(self.begun()[before:]) == sorted({*range(TASKS)} - done)
        return self.digest()

    def digest(self) -> str:
        assert not self.partial.exists()
        with h5py.File(self.launcher.folder / "sweep.h5") as file:
            return str(file.attrs["digest"])


def prepare(folder: Path) -> Job:
    write(folder, "model.py", MODEL)
    write(folder, "sweep.toml", SPEC)
    return Job(Launcher(folder))


@pytest.fixture
def job(launcher: Launcher) -> Job:
    prepare(launcher.folder)
    return Job(launcher)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the digest of a run that nothing disturbs."""
    job = prepare(tmp_path_factory.mktemp("undisturbed"))
    launch = job.launcher.mpiens("sweep.toml")
    assert launch.code == 0, launch.errors
    return job.digest()


def send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)


def assert_stopped(job: Job, launch: Launch, reason: str) -> set[int]:
    """Code 75 and one line that says how far it came; return what is done."""
    assert launch.code == 75, launch.errors
    assert launch.output == ""
    told = [line for line in launch.errors.splitlines() if "stopped early" in line]
    assert len(told) == 1, launch.errors
    assert "Traceback" not in launch.errors
    done = job.finished()
    assert 0 < len(done) < TASKS
    assert re.fullmatch(
        rf"mpiens: stopped early \({reason}\): {len(done)} of {TASKS} tasks are done "
        "and kept; run the same command again to go on",
        told[0],
    )
    assert not (job.launcher.folder / "sweep.h5").exists()
    assert launch.orphans() == []
    return done


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("how", ["alone", "ranks", "launcher"])
def test_a_signal_stops_a_job_and_the_same_command_goes_on(
    job: Job, undisturbed: str, how: str, number: signal.Signals
) -> None:
    launch = job.start(how)
    job.await_tasks(launch, 10)
    reason = rf"{number.name} was received( by rank \d)?"
    if how == "ranks":
        wait_until(lambda: len(job.supervisors()) == 3)
        send(job.supervisors().values(), number)
    else:
        send([launch.process.pid], number)
        if how == "launcher":
            reason = "a stop was asked for( by rank \\d)?"
    done = assert_stopped(job, launch.wait(LIMIT), reason)
    # what runs when the signal comes is brought to its end and kept
    assert {replicate for replicate, _, _ in job.log("end")} == done == {*job.begun()}
    assert job.go_on(done) == undisturbed


def test_a_signal_to_one_rank_stops_them_all(job: Job, undisturbed: str) -> None:
    launch = job.start("ranks")
    job.await_tasks(launch, 10)
    wait_until(lambda: 2 in job.supervisors())
    send([job.supervisors()[2]], signal.SIGUSR1)
    reason = "SIGUSR1 was received by rank 2"
    done = assert_stopped(job, launch.wait(LIMIT), reason)
    assert job.go_on(done) == undisturbed


@pytest.mark.parametrize("how", ["alone", "launcher"])
def test_a_second_interrupt_ends_a_job_at_once(
    job: Job, undisturbed: str, how: str
) -> None:
    launch = job.start(how, late=100)
    wait_until(lambda: job.partial.exists() and job.finished() == {*range(12)})
    send([launch.process.pid], signal.SIGINT)
    time.sleep(0.3)
    assert launch.process.poll() is None  # tasks under way have some time
    while launch.process.poll() is None:  # two that come too soon are seen as one
        send([launch.process.pid], signal.SIGINT)
        time.sleep(0.3)
    launch.wait(LIMIT)
    # a third one may come when the second has done its work: a shell says 130 too
    ends = (128 + signal.SIGINT, 128 + signal.SIGKILL, -signal.SIGINT)
    assert launch.code in ends
    assert "Traceback" not in launch.errors
    assert launch.orphans() == []
    done = job.finished()
    assert done == {*range(12)}
    assert job.go_on(done) == undisturbed


def test_no_task_is_dealt_that_cannot_end_before_the_job_does(job: Job) -> None:
    end = int(time.time()) + MARGIN + 7
    job.slow_down(2, 2)
    command = [sys.executable, "-m", "mpiens", "sweep.toml"]
    launch = job.launcher.start(command, SLURM_JOB_END_TIME=str(end))
    done = assert_stopped(job, launch.wait(LIMIT), "the job's time is nearly over")
    assert time.time() < end
    assert sorted(job.log("begin")) == sorted(job.log("end"))
    assert done == {*job.begun()}


def start_under_slurm(job: Job, ranks: int, end: int, **variables: str) -> Launch:
    """Start ranks beside a squeue by which their job ends then."""
    folder = job.launcher.folder
    script = f"#!/bin/sh\necho $$ >>{folder}/asked\necho 7 {end}\n"
    write(folder, "squeue", script).chmod(0o755)
    own = {"SLURM_JOB_ID": "7", "PATH": f"{folder}:{os.environ['PATH']}", **variables}
    # else mpiexec itself would believe in Slurm
    words = ["env", *(f"{name}={value}" for name, value in own.items())]
    command = [*words, sys.executable, "-m", "mpiens", "sweep.toml"]
    if ranks > 1:
        command = [*mpiexec_of("mpich"), "-n", str(ranks), *command]
    return job.launcher.start(command)


@pytest.mark.parametrize("ranks", [1, 3])
def test_one_rank_asks_slurm_for_the_end_of_a_job(
    job: Job, undisturbed: str, ranks: int
) -> None:
    end = int(time.time()) + MARGIN + 6
    job.slow_down(0.6, 0.6)
    launch = start_under_slurm(job, ranks, end)
    done = assert_stopped(job, launch.wait(LIMIT), "the job's time is nearly over")
    assert time.time() < end
    assert done == {*job.begun()}
    assert len((job.launcher.folder / "asked").read_text().splitlines()) == 1
    assert job.go_on(done) == undisturbed


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_task_that_takes_too_long_does_not_hold_up_the_end(
    job: Job, undisturbed: str, ranks: int
) -> None:
    end = int(time.time()) + MARGIN + 6
    job.slow_down(0.05, 100)
    launch = start_under_slurm(job, ranks, end)
    done = assert_stopped(job, launch.wait(LIMIT), "the job's time is nearly over")
    assert time.time() < end
    assert done == {*range(12)}
    assert job.go_on(done) == undisturbed


def test_a_job_whose_end_was_put_off_goes_on(job: Job, undisturbed: str) -> None:
    now = int(time.time())
    job.slow_down(0.1, 0.1)
    told = str(now + MARGIN + 3)  # by the environment, when the job began
    launch = start_under_slurm(job, 1, now + 600, SLURM_JOB_END_TIME=told)
    assert launch.wait(LIMIT).code == 0, launch.errors
    assert time.time() > now + 5
    assert job.digest() == undisturbed


def test_ranks_that_were_lost_are_started_again(job: Job, undisturbed: str) -> None:
    launch = job.start("launcher")
    job.await_tasks(launch, 20)
    wait_until(lambda: len(job.supervisors()) == 3)
    victim = job.supervisors()[1]
    send([victim], signal.SIGKILL)
    assert launch.wait(LIMIT).code == 0, launch.errors
    assert "starting them again" in launch.errors
    assert victim not in job.supervisors().values()  # they have all been replaced
    assert len(job.begun()) <= TASKS + 16 * 3  # but for what was in flight
    assert job.digest() == undisturbed
    assert launch.orphans() == []


def test_a_launcher_that_was_killed_leaves_no_files(job: Job, undisturbed: str) -> None:
    job.slow_down(0.05, 0.05)
    scratch = job.launcher.folder / "scratch"
    scratch.mkdir()
    command = [python_of("openmpi"), "-m", "mpiens", "sweep.toml", "-n", "3"]
    launch = job.launcher.start(command, TMPDIR=str(scratch))
    job.await_tasks(launch, 20)
    children = Path(f"/proc/{launch.process.pid}/task/{launch.process.pid}/children")
    [launcher] = map(int, children.read_text().split())
    assert [*scratch.rglob(f"*{launcher}*")]
    os.kill(launcher, signal.SIGKILL)
    assert launch.wait(LIMIT).code == 0, launch.errors
    assert "starting them again" in launch.errors
    assert job.digest() == undisturbed
    kept = scratch.glob("mpiens-numba-*")  # what is compiled is for later runs too
    assert {*scratch.iterdir()} == {*kept}


LOADING = """
import os
import time


def load():
    with open("loading", "w") as file:
        print(os.getpid(), file=file)
    time.sleep(100)


def simulate(rng, shared):
    return {"luck": rng.normal()}
"""


@pytest.mark.parametrize("how", ["alone", "launcher"])
def test_a_stop_while_shared_data_is_loaded_is_heard(
    launcher: Launcher, how: str
) -> None:
    write(launcher.folder, "model.py", LOADING)
    spec = '[ensemble]\nmodel = "model.py:simulate"\nreplicates = 3\nseed = 1\n'
    write(launcher.folder, "sweep.toml", spec + '[shared]\nloader = "model.py:load"\n')
    words = ["-n", "2"] if how == "launcher" else []
    launch = launcher.start([sys.executable, "-m", "mpiens", "sweep.toml", *words])
    wait_until((launcher.folder / "loading").exists)
    since = time.monotonic()
    send([launch.process.pid], signal.SIGTERM)
    launch.wait(LIMIT)
    assert time.monotonic() - since < 10
    assert launch.code == 75, launch.errors
    [line] = [text for text in launch.errors.splitlines() if "mpiens" in text]
    assert re.fullmatch(
        r"mpiens: stopped early \(.*\): what is finished is kept; run the same command "
        "again to go on",
        line,
    )
    assert launch.orphans() == []


# the slow scenario comes first, and its tasks are known to take two seconds
UNEVEN = """
import os
import time


def simulate(rng, *, pause):
    log = os.open("log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"begin {pause} 0 0\\n".encode())
    time.sleep(pause / 100)
    return {"luck": rng.normal()}
"""


def test_what_earlier_runs_took_tells_what_will_not_fit(launcher: Launcher) -> None:
    write(launcher.folder, "model.py", UNEVEN)
    spec = """
        [ensemble]
        model = "model.py:simulate"
        replicates = 1
        seed = 1
        [scenarios.slow]
        pause = 800
        [scenarios.quick]
        pause = 1
        """
    write(launcher.folder, "sweep.toml", spec)
    job = Job(launcher)
    command = [sys.executable, "-m", "mpiens", "sweep.toml"]
    assert launcher.run(command).code == 0
    write(launcher.folder, "sweep.toml", spec.replace("= 1\n", "= 3\n", 1))
    before = len(job.log("begin"))
    end = int(time.time()) + MARGIN + 8  # less than the slow ones would need
    launch = launcher.start(command, SLURM_JOB_END_TIME=str(end))
    assert launch.wait(LIMIT).code == 75, launch.errors
    begun = [pause for pause, _, _ in job.log("begin")[before:]]
    assert begun == [1] * 2
    assert launcher.mpiens("sweep.toml").code == 0
