"""Random faults, again and again: never a wrong answer, a hang, or an orphan.

By itself, ``python tests/test_chaos.py 1000`` runs it that often and says how it went.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Launch, Launcher, describe, python_of

from mpiens.farewell import NAME

RUNS = 50  # in CI
SECONDS = 540.0  # the time that they may take there
LIMIT = 100.0  # of one command; a rank lost within MPI_Init is given up after 45 s
STAY = 30.0  # what is left of it has to end; within MPI_Init that takes up to 20 s
COMMANDS = 6  # the first, and at most five more
KINDS = ("mpich", "openmpi", "debian", "ulfm", "launcher")

# A task misbehaves as its stream decides, the same way whenever it is run.
MODEL = """
import ctypes
import os
import time

import numpy as np


def simulate(rng, scenario, replicate):
    open("begun", "w").close()
    time.sleep(0.03 * rng.random())
    good = {"walk": np.cumsum(rng.normal(size=200)), "luck": rng.integers(9)}
    mood = rng.integers(50) if scenario != "calm" else -1
    if mood == 0:
        raise ValueError("a fault of the model")
    if mood == 1:
        raise SystemExit(5)
    if mood == 2:
        os._exit(3)
    if mood == 3:
        ctypes.string_at(0)
    if mood == 4:
        good["walk"] = good["walk"][:7]
    if mood == 5:
        good["walk"][7] = np.nan
    if mood == 6:
        os.closerange(0, 4096)
    if mood == 7:
        os.write(1, bytes(1 << 24))
    if mood == 8:
        hoard = [np.ones(1 << 22) for _ in range(64)]
    if mood == 9 and scenario == "endless":
        while True:
            pass
    if mood == 10 and os.fork() == 0:
        time.sleep(2)
    return good
"""

SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 60
seed = 99

[scenarios.calm]
[scenarios.{name}]

[outputs.walk]
dims = ["step"]
summaries = ["final", "peak"]
finite = true

[bands]
baseline = "calm"

[limits]
heartbeat = 1.0
task_memory = 134217728
{limits}
"""
# a time limit in one of ten runs only: it takes its time, and a busy machine may err
SPECS = {
    "wild": SPEC.format(name="wild", limits=""),
    "endless": SPEC.format(name="endless", limits="task_seconds = 5.0"),
}
# what is sent to whom, and how often
FAULTS = {
    ("supervisor", signal.SIGKILL): 6,
    ("supervisor", signal.SIGSEGV): 3,
    ("supervisor", signal.SIGSTOP): 1,
    ("supervisor", signal.SIGTERM): 1,
    ("supervisor", signal.SIGUSR1): 1,
    ("supervisor", signal.SIGINT): 1,
    ("runner", signal.SIGKILL): 3,  # a crash would be the model's fault
    ("runner", signal.SIGTERM): 1,
    ("runner", signal.SIGSTOP): 1,
    ("launcher", signal.SIGKILL): 1,
    ("all", signal.SIGKILL): 1,
}


@dataclass
class Chaos:
    """One command, disturbed as a seed decides, until its file is complete."""

    launcher: Launcher
    seed: int
    told: list[str] = field(default_factory=list)
    hits: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.file = self.launcher.folder / f"chaos-{self.seed}.h5"
        self.kind = KINDS[self.seed % len(KINDS)]
        self.spec = "endless" if self.seed % 10 == 3 else "wild"
        self.ranks = self.dice.choice([2, 3, 4])

    def run(self) -> str:
        """Give the command until the file is complete; return its digest."""
        for number in range(COMMANDS):
            launch = self.start()
            if number < COMMANDS - 2:  # the last ones are left in peace
                self.disturb(launch)
            try:
                launch.wait(LIMIT)
            except pytest.fail.Exception as news:
                pytest.fail(f"seed {self.seed}: {self.told}\n{news}")
            orphans = launch.orphans(STAY)
            states = "\n".join(map(describe, launch.pids()))
            assert not orphans, (self.seed, self.told, orphans, states)
            self.told.append(f"code {launch.code}")
            if self.file.exists():
                return self.launcher.digest(self.file.name)
        pytest.fail(f"seed {self.seed}: not complete\n{self.told}\n{launch.errors}")

    def start(self) -> Launch:
        self.told.append(f"{self.kind} on {self.ranks} ranks")
        (self.launcher.folder / "begun").unlink(missing_ok=True)
        words = [f"{self.spec}.toml", "-o", self.file.name]
        if self.kind == "launcher":
            environment = self.dice.choice(["mpich", "openmpi", "debian"])
            mpiens = [python_of(environment), "-m", "mpiens"]
            return self.launcher.start([*mpiens, "-n", str(self.ranks), *words])
        tolerant = self.kind == "ulfm"
        environment = "openmpi" if tolerant else self.kind
        return self.launcher.start_ranks(
            environment, self.ranks, *words, tolerant=tolerant
        )

    def disturb(self, launch: Launch) -> None:
        """Send signals to some of the job's processes, each at a moment of its own."""
        for _ in range(self.dice.choice([0, 1, 1, 2, 3])):
            pause = self.dice.choice([0.02, 0.3, 1.0, 2.5]) * self.dice.random()
            with suppress(Exception):
                launch.process.wait(pause)
            [(whom, number)] = self.dice.choices([*FAULTS], [*FAULTS.values()])
            # before there is a queue who stops is noticed by the default heartbeat,
            # and who leaves by KeyboardInterrupt, under MPICH, after minutes only
            early = not (self.launcher.folder / "begun").exists()
            patient = number in (signal.SIGSTOP, signal.SIGINT) and early
            victims = sorted(find(launch, whom))
            if not victims or patient:
                continue
            if whom != "all":
                victims = [self.dice.choice(victims)]
            for victim in victims:
                with suppress(ProcessLookupError):
                    os.kill(victim, number)
            self.hits += 1
            self.told.append(f"{number.name} to {whom}")


def find(launch: Launch, whom: str) -> list[int]:
    """Return the processes of a launch that have a part in it."""
    pids = launch.pids()
    if whom == "all":
        return pids
    if whom == "launcher":
        return [launch.process.pid] if launch.process.poll() is None else []
    ranks = {pid for pid in pids if is_rank(pid)}
    runners = {pid for pid in ranks if parent_of(pid) in ranks}
    return [*(runners if whom == "runner" else ranks - runners)]


def is_rank(pid: int) -> bool:
    """Whether a process is a supervisor or a runner of mpiens, and no launcher."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        name = words[0].rpartition(b"/")[2]
        called = Path(f"/proc/{pid}/comm").read_bytes().strip()
        mpiens = name.startswith(b"python") and b"mpiens" in words
        return mpiens and b"-n" not in words and called != NAME
    return False


def parent_of(pid: int) -> int:
    """Return the parent of a process, or 0 where it has just ended."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return int(status.split()[1])
    return 0


def prepare(folder: Path) -> dict[str, str]:
    """Write model and specs, and return the digests of undisturbed runs."""
    (folder / "model.py").write_text(MODEL)
    launcher = Launcher(folder)
    digests = {}
    for name, text in SPECS.items():
        (folder / f"{name}.toml").write_text(text)
        ran = launcher.mpiens(f"{name}.toml", "-o", f"{name}.h5")
        assert ran.code == 3, ran.errors
        digests[name] = launcher.digest(f"{name}.h5")
    return digests


def tell_difference(calm: Path, file: Path) -> str:
    """Say which tasks of a file are not those of the undisturbed one, and why."""
    lines = []
    with h5py.File(calm) as expected, h5py.File(file) as found:
        pairs = [
            (f["tasks/status"][:], f["tasks/checksum"][:]) for f in (expected, found)
        ]
        differs = (pairs[0][0] != pairs[1][0]) | (pairs[0][1] != pairs[1][1])
        for task in np.flatnonzero(differs).tolist():
            for name, one in (("expected", expected), ("found", found)):
                status, seconds = (
                    one[f"tasks/{column}"][:].ravel()[task]
                    for column in ("status", "seconds")
                )
                told = one["failures/text"][:][one["failures/task"][:] == task]
                text = "".join(line.decode() for line in told)
                lines.append(f"task {task}, {name}: {status}, {seconds} s {text}")
    return "\n".join(lines)


def run_seed(launcher: Launcher, seed: int, calm: dict[str, str]) -> Chaos:
    """Run one seed to its end, which must be the undisturbed one."""
    chaos = Chaos(launcher, seed)
    if chaos.run() != calm[chaos.spec]:
        told = tell_difference(launcher.folder / f"{chaos.spec}.h5", chaos.file)
        pytest.fail(f"seed {seed}: another digest: {chaos.told}\n{told}")
    chaos.file.unlink()
    launcher.started.clear()
    return chaos


def test_the_answer_survives_whatever_happens(launcher: Launcher) -> None:
    calm = prepare(launcher.folder)
    end = time.monotonic() + SECONDS
    hits = 0
    for seed in range(RUNS):
        hits += run_seed(launcher, seed, calm).hits
        if time.monotonic() > end and seed + 1 < RUNS:
            pytest.fail(f"only {seed + 1} of {RUNS} runs in {SECONDS} s")
    assert hits >= RUNS / 2, "the processes were hit too seldom for a test"


def main(runs: int, first: int) -> None:
    """Run so many seeds, as far as all is well, and print one line per seed."""
    with tempfile.TemporaryDirectory() as name:
        launcher = Launcher(Path(name))
        calm = prepare(launcher.folder)
        begun = time.monotonic()
        for seed in range(first, first + runs):
            since = time.monotonic()
            chaos = run_seed(launcher, seed, calm)
            took, whole = time.monotonic() - since, time.monotonic() - begun
            story = ", ".join(chaos.told)
            print(f"{seed}: same in {took:.1f} s of {whole:.0f} s: {story}")
            sys.stdout.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
