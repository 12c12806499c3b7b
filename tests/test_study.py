"""The study: several jobs on one PostgreSQL, a storage that fails, and replay."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import optuna
import pytest
from conftest import Launcher, wait_until
from test_calibrate import CURVE, DATA, MODEL, good, read, spec, states

from mpiens.confirm import place_of
from mpiens.study import derive_seed

SHOWN = "lie within [5%, 95%]"


def programs() -> Path:
    """The folder of Debian's PostgreSQL."""
    return max(Path("/usr/lib/postgresql").glob("*/bin"))


class Server:
    """A PostgreSQL of the test's own, on a socket in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"postgresql:///postgres?host={folder}&user=postgres"
        self.account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        if self.account is not None:
            shutil.chown(folder, self.account.pw_uid)
        self._run("initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = ["-D", f"{self.folder}/data", "-k", str(self.folder), "-h", ""]
        command = [str(programs() / "postgres"), *options, "-F"]
        self.process = subprocess.Popen(command, **self._how())
        ready = [str(programs() / "pg_isready"), "-q", "-h", str(self.folder)]
        wait_until(lambda: subprocess.run(ready, check=False).returncode == 0)

    def stop(self, number: int = signal.SIGINT) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(20)
            self.process = None

    def trials(self, study: str) -> list[optuna.trial.FrozenTrial]:
        """What the database says of a study."""
        url = self.url.replace("postgresql:", "postgresql+psycopg:")
        storage = optuna.storages.RDBStorage(url)
        try:
            return optuna.load_study(study_name=study, storage=storage).trials
        finally:
            storage.remove_session()
            storage.engine.dispose()

    def _run(self, name: str, *words: str) -> None:
        subprocess.run([str(programs() / name), *words], check=True, **self._how())

    def _how(self) -> dict[str, object]:
        user = {"user": self.account.pw_uid} if self.account is not None else {}
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        return {"cwd": "/", **user, **quiet}


@pytest.fixture
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="mpiens-pg-"))  # sockets want short paths
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fit(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "data.csv").write_text(DATA)
    return tmp_path


def test_three_jobs_work_on_one_study_in_a_database(
    fit: Path, launcher: Launcher, server: Server
) -> None:
    points = "enqueue = [{ a = 2.0, b = 0.5 }]"
    more = f'storage = "{server.url}"\nstudy = "shared"\n{points}'
    rest = f'{CURVE}\n[parameters]\npause = 0.05\nlog = "{fit}/log"'
    spec(fit, trials=24, more=more, rest=rest)
    files = [f"job{i}.h5" for i in range(3)]
    jobs = [launcher.start_ranks("mpich", 2, "fit.toml", "-o", f) for f in files]
    wait_until(
        lambda: (
            (fit / f"{files[1]}.partial").exists()
            and states(fit / f"{files[1]}.partial").count("complete") >= 2
        )
    )
    jobs[1].kill()  # it is the others who go on
    jobs[1].wait(20)
    for job in (jobs[0], jobs[2]):
        good(job.wait(120))
    good(launcher.ranks("mpich", 2, "fit.toml", "-o", files[1]))
    trials = server.trials("shared")
    assert {trial.state.name for trial in trials} == {"COMPLETE"}
    assert 24 <= len(trials) <= 26
    owners = [trial.user_attrs["mpiens"]["file"] for trial in trials]
    assert len(set(owners)) == 3

    good(launcher.ranks("mpich", 2, "merge", *files, "-o", "all.h5"))
    losses = read(fit / "all.h5", "trials/loss")
    assert [trial.value for trial in trials] == losses[: len(trials)].tolist()
    assert read(fit / "all.h5", "trials/parameter/a").tolist().count(2.0) == 1
    rows = [read(fit / "all.h5", f"series/{n}") for n in ("line", "curve")]
    flat = np.concatenate([r.reshape(len(r), -1) for r in rows], axis=1)
    assert len(np.unique(flat, axis=0)) >= 24  # no two trials met one stream
    replayed = launcher.mpiens("replay", "all.h5", "--trial", "7")
    assert good(replayed).output.count("bit-identical") == 4


def test_a_job_that_came_too_late_does_not_hinder_a_merge(
    fit: Path, launcher: Launcher
) -> None:
    spec(fit, trials=6, more='storage = "shared.log"\nstudy = "shared"')
    for name in ("first.h5", "late.h5"):
        good(launcher.mpiens("fit.toml", "-o", name))
    assert {*states(fit / "late.h5")} == {"pending"}
    for files in (["first.h5", "late.h5"], ["late.h5", "first.h5"]):
        good(launcher.mpiens("merge", *files, "-o", "all.h5", "--fresh"))
        losses = read(fit / "all.h5", "trials/loss")
        np.testing.assert_array_equal(losses, read(fit / "first.h5", "trials/loss"))


def test_jobs_that_asked_for_more_than_was_wanted_are_merged_whole(
    fit: Path, launcher: Launcher
) -> None:
    rest = "[scenarios.sine]\n[scenarios.cosine]\nwave = 'cosine'"
    spec(fit, trials=3, more='storage = "shared.log"', rest=rest)
    files = ["first.h5", "second.h5"]
    for file in files:
        good(launcher.mpiens("fit.toml", "-o", file))
        (fit / "shared.log").unlink()
    with h5py.File(fit / files[1], "r+") as file:  # as if both asked at one moment
        file["trials/stream"][:] += 3
        del file.attrs["digest"]
    good(launcher.mpiens("merge", *files, "-o", "all.h5"))
    shown = json.loads(good(launcher.mpiens("show", "all.h5", "--json")).output)
    assert len(shown["calibration"]["trials"]) == 6
    waves = [entry["parameters"]["wave"] for entry in shown["scenarios"]]
    assert waves == ["sine", "cosine"] * 6
    for name in ("parameters/a", "series/line"):
        parts = [read(fit / file, name) for file in files]
        np.testing.assert_array_equal(read(fit / "all.h5", name), np.concatenate(parts))


def test_a_storage_that_is_lost_costs_nothing_that_was_finished(
    fit: Path, launcher: Launcher, server: Server
) -> None:
    more = f'storage = "{server.url}"'
    spec(fit, trials=20, more=more, rest="[parameters]\npause = 0.05")
    launch = launcher.start_ranks("mpich", 2, "fit.toml")
    partial = fit / "fit.h5.partial"
    wait_until(lambda: partial.exists() and states(partial).count("complete") >= 3)
    server.stop()
    launch.wait(60)
    assert "Traceback" not in launch.errors
    assert "the study" in launch.errors
    assert "run the same command again" in launch.errors
    before = read(partial, "trials/loss")
    refused = launcher.mpiens("fit.toml")
    assert refused.code == 75
    assert "Traceback" not in refused.errors
    server.start()
    good(launcher.ranks("mpich", 2, "fit.toml"))
    after = read(fit / "fit.h5", "trials/loss")
    known = ~np.isnan(before)
    assert np.array_equal(before[known], after[known])
    assert states(fit / "fit.h5") == ["complete"] * 20


def test_a_journal_that_cannot_be_written_ends_the_run_with_a_sentence(
    fit: Path, launcher: Launcher
) -> None:
    spec(fit, more='storage = "missing/journal"')
    refused = launcher.ranks("mpich", 2, "fit.toml")
    assert refused.code == 75
    assert "Traceback" not in refused.errors
    assert "missing/journal" in refused.errors


def test_the_best_trials_are_confirmed_by_an_ensemble(
    fit: Path, launcher: Launcher
) -> None:
    points = "enqueue = [{ a = 2.0, b = 0.5 }]"
    confirm = "[calibrate.confirm]\ntop = 2\nreplicates = 40"
    spec(fit, trials=6, more=points, rest=confirm)
    shown = good(launcher.ranks("mpich", 2, "fit.toml"))
    file = place_of(fit / "fit.h5")
    losses = read(fit / "fit.h5", "trials/loss")
    names = [name.decode() for name in read(file, "scenario")]
    assert names == [f"trial={trial}" for trial in np.argsort(losses)[:2]]
    assert read(file, "series/line").shape == (2, 40, 6)
    assert np.allclose(read(file, "observed/line"), [2 + 0.5 * t for t in range(6)])
    assert f"trial=0, line: 6 of 6 observed values {SHOWN}" in shown.output
    again = good(launcher.mpiens("fit.toml"))
    assert again.errors.count("nothing to do") == 2


def test_a_posterior_is_drawn_by_likelihood(fit: Path, launcher: Launcher) -> None:
    confirm = "[calibrate.confirm]\nposterior = true\ntop = 8\nreplicates = 3"
    points = "enqueue = [{ a = 2.0, b = 0.5 }]"
    rest = f"{confirm}\n[calibrate.targets.curve]\noutput = 'curve'\n"
    rest += "data = 'data.csv'\ncolumn = 'curve'\nloss = 'gaussian'\nsigma = 0.05"
    spec(fit, trials=6, more=points, rest=rest)
    shown = good(launcher.ranks("mpich", 2, "fit.toml"))
    names = [n.decode() for n in read(place_of(fit / "fit.h5"), "scenario")]
    assert names == [f"draw={i},trial=0" for i in range(8)]
    assert f"posterior, line: 6 of 6 observed values {SHOWN}" in shown.output


def test_a_trial_is_replayed_bit_for_bit(fit: Path, launcher: Launcher) -> None:
    spec(fit, trials=4, rest=CURVE)
    good(launcher.ranks("mpich", 2, "fit.toml"))
    replayed = good(launcher.mpiens("replay", "fit.h5", "--trial", "2"))
    assert replayed.output.count(": bit-identical") == 3
    total = read(fit / "fit.h5", "trials/loss")[2]
    assert f"trial 2: loss {float(total)!r}, bit-identical" in replayed.output
    good(launcher.mpiens("replay", "fit.h5", "trial=2", "1"))
    (fit / "model.py").write_text(MODEL.replace("1e-3", "2e-3"))
    changed = launcher.mpiens("replay", "fit.h5", "--trial", "2")
    assert changed.code == 3
    assert "NOT bit-identical" in changed.output
    assert launcher.mpiens("replay", "fit.h5", "--trial", "9").code == 2


def test_a_calibration_is_shown_with_its_best_trials_and_times(
    fit: Path, launcher: Launcher
) -> None:
    spec(fit, trials=12, more="enqueue = [{ a = 2.0, b = 0.5 }]")
    run = good(launcher.ranks("mpich", 2, "fit.toml"))
    assert "12 trials, best " in run.errors
    assert "per minute" in run.errors
    shown = good(launcher.mpiens("show", "fit.h5"))
    assert "12 trials of 12 at most: 12 complete, 0 failed" in shown.output
    assert "best loss after so many trials: 1: " in shown.output
    for phase in ("ask", "simulate", "score", "tell", "idle"):
        assert f"{phase} " in shown.output
    assert "% busy" in shown.output


def test_optuna_is_loaded_by_the_root_alone(fit: Path, launcher: Launcher) -> None:
    (fit / "run.py").write_text(
        "import sys\n"
        "import mpiens.mpi as mpi\n"
        "finish = mpi.finish\n"
        "def told(comm, code):\n"
        "    loaded = 'optuna' in sys.modules\n"
        "    sys.stderr.write(f'rank {comm.rank} {loaded}\\n')\n"  # in one piece
        "    finish(comm, code)\n"
        "mpi.finish = told\n"
        "from mpiens.__main__ import main\n"
        "main(['fit.toml'])\n"
    )
    spec(fit, trials=3)
    mpiexec = str(Path(sys.executable).parent / "mpiexec")
    launch = launcher.run([mpiexec, "-n", "3", sys.executable, "run.py"])
    told = [line for line in launch.errors.splitlines() if line.startswith("rank ")]
    assert sorted(told) == ["rank 0 True", "rank 1 False", "rank 2 False"]


def test_seeds_of_asks_differ_by_seed_and_stream() -> None:
    seeds = {derive_seed(seed, stream) for seed in range(20) for stream in range(50)}
    assert len(seeds) == 1000
