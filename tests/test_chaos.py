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

import pytest
from conftest import Launch, Launcher

RUNS = 50  # in CI
SECONDS = 540.0  # after which CI begins no further run beyond the first 50
LIMIT = 100.0  # of one command; a rank lost within MPI_Init is given up after 45 s
COMMANDS = 6  # the first, and at most five more

MODEL = """
import os
import time

import numpy as np


def simulate(rng, replicate):
    time.sleep(0.03 * rng.random())
    if replicate % 17 == 3:
        raise ValueError("a fault of the model")
    if replicate % 19 == 5:
        os._exit(3)
    return {"walk": np.cumsum(rng.normal(size=200)), "luck": rng.integers(9)}
"""

SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 60
seed = 20261122

[scenarios.one]
[scenarios.two]

[outputs.walk]
dims = ["step"]
summaries = ["final", "peak"]

[bands]
baseline = "one"
"""


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
        kinds = ["mpich", "openmpi", "debian", "ulfm"]
        self.kind = kinds[self.seed % len(kinds)]
        self.ranks = self.dice.choice([2, 3, 4])

    def run(self) -> str:
        """Give the command until the file is complete; return its digest."""
        for number in range(COMMANDS):
            launch = self.start()
            if number < COMMANDS - 2:  # the last ones are left in peace
                self.disturb(launch)
            launch.wait(LIMIT)
            orphans = launch.orphans()
            assert not orphans, (self.seed, self.told, orphans)
            self.told.append(f"code {launch.code}")
            if self.file.exists():
                return self.launcher.digest(self.file.name)
        pytest.fail(f"seed {self.seed}: not complete\n{self.told}\n{launch.errors}")

    def start(self) -> Launch:
        tolerant = self.kind == "ulfm"
        environment = "openmpi" if tolerant else self.kind
        self.told.append(f"{self.kind} on {self.ranks} ranks")
        words = ["sweep.toml", "-o", self.file.name]
        return self.launcher.start_ranks(
            environment, self.ranks, *words, tolerant=tolerant
        )

    def disturb(self, launch: Launch) -> None:
        """Kill some of the job's processes, each at a moment of its own."""
        for _ in range(self.dice.choice([0, 1, 1, 2, 3])):
            pause = self.dice.choice([0.02, 0.3, 1.0, 2.5]) * self.dice.random()
            with suppress(Exception):
                launch.process.wait(pause)
            victims = [pid for pid in sorted(launch.pids()) if is_rank(pid)]
            if not victims:
                continue
            victim = self.dice.choice(victims)
            number = signal.SIGKILL
            if parent_of(victim) not in victims:  # in a runner it is the model's fault
                number = self.dice.choice([signal.SIGKILL, signal.SIGSEGV])
            with suppress(ProcessLookupError):
                os.kill(victim, number)
                self.hits += 1
                self.told.append(f"{number.name} to {victim}")


def is_rank(pid: int) -> bool:
    """Whether a process is a supervisor or a runner of mpiens, and no launcher."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b"python" in words[0] and b"mpiens" in words
    return False


def parent_of(pid: int) -> int:
    """Return the parent of a process, or 0 where it has just ended."""
    with suppress(OSError):
        status = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
        return int(status.split()[1])
    return 0


def prepare(folder: Path) -> str:
    """Write model and spec, and return the digest of an undisturbed run."""
    (folder / "model.py").write_text(MODEL)
    (folder / "sweep.toml").write_text(SPEC)
    launcher = Launcher(folder)
    ran = launcher.mpiens("sweep.toml", "-o", "calm.h5")
    assert ran.code == 3, ran.errors
    return launcher.digest("calm.h5")


def test_the_answer_survives_whatever_is_killed(launcher: Launcher) -> None:
    calm = prepare(launcher.folder)
    end = time.monotonic() + SECONDS
    hits = 0
    for seed in range(RUNS):
        chaos = Chaos(launcher, seed)
        assert chaos.run() == calm, (seed, chaos.told)
        chaos.file.unlink()
        hits += chaos.hits
        if time.monotonic() > end and seed + 1 < RUNS:
            pytest.fail(f"only {seed + 1} of {RUNS} runs in {SECONDS} s")
    assert hits >= RUNS / 2, "the processes were hit too seldom for a test"


def main(runs: int, first: int) -> None:
    """Run so many seeds and print one line per seed."""
    with tempfile.TemporaryDirectory() as name:
        launcher = Launcher(Path(name))
        calm = prepare(launcher.folder)
        begun = time.monotonic()
        for seed in range(first, first + runs):
            since = time.monotonic()
            chaos = Chaos(launcher, seed)
            digest = chaos.run()
            verdict = "same" if digest == calm else f"WRONG: {digest}"
            took, whole = time.monotonic() - since, time.monotonic() - begun
            story = ", ".join(chaos.told)
            print(f"{seed}: {verdict} in {took:.1f} s of {whole:.0f} s: {story}")
            sys.stdout.flush()
            chaos.file.unlink()
            launcher.started.clear()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
