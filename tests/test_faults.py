"""A model's fault is the task's fault: recorded, never fatal, never silent."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Launch, Launcher, write

from mpiens.store import Store

PENDING, DONE, FAILED = range(3)
SEED = 20260529
COUNT = 16
LEVELS = (0.1, 0.5, 0.9)

MODEL = """
import ctypes, os, signal, sys, time
import numpy as np


def raises(good):
    raise ValueError("no luck at all")

def exits(good):
    sys.exit(5)

def leaves(good):
    os._exit(6)

def crashes(good):
    ctypes.string_at(0)

def loops(good):
    while True:
        pass

def sleeps_with_the_gil(good):
    ctypes.PyDLL(None).sleep(1000)

def grows(good):
    hoard = [np.ones(1 << 22) for _ in range(64)]

def is_not_finite(good):
    return good | {"wave": good["wave"] * [1, 1, np.nan, 1, 1]}

def is_good(good):
    return good

def has_wrong_shape(good):
    return good | {"wave": good["wave"][:3]}

def has_wrong_type(good):
    return good | {"wave": ["high", "low"]}

def is_no_mapping(good):
    return 17

def closes_all_files(good):
    os.closerange(0, 4096)

def prints(good):
    for _ in range(64):
        os.write(1, bytes(1 << 20))
    return good

def is_killed(good):
    os.kill(os.getpid(), signal.SIGKILL)

def interrupts(good):
    raise KeyboardInterrupt


WAYS = [raises, exits, leaves, crashes, loops, sleeps_with_the_gil, grows,
    is_not_finite, is_good, has_wrong_shape, has_wrong_type, is_no_mapping,
    closes_all_files, prints, is_killed, interrupts]


def simulate(rng, replicate, *, mood):
    good = {"wave": rng.normal(size=5), "luck": int(rng.integers(99))}
    return WAYS[replicate](good) if mood == "wild" else good
"""
# the wild scenario is first, so that no layout is known when its tasks begin to fail
SPEC = f"""
[ensemble]
model = "model.py:simulate"
replicates = {COUNT}
seed = {SEED}

[scenarios.wild]
mood = "wild"
[scenarios.calm]
mood = "calm"

[outputs.wave]
dims = ["day"]
finite = true

[bands]
levels = {list(LEVELS)}

[limits]
task_seconds = 1
task_memory = 268435456
"""
# what the text of each failure says, by replicate of the wild scenario
REASONS = {
    0: ["in raises\n", "ValueError: no luck at all"],
    1: ["in exits\n", "SystemExit: 5"],
    2: ["exit code 6"],
    3: ["SIGSEGV", "in crashes\n"],
    4: ["task_seconds = 1", "in loops\n"],
    5: ["task_seconds = 1", "in sleeps_with_the_gil\n"],
    6: ["in grows\n", "Unable to allocate", "task_memory = 268435456"],
    7: ["'wave' is nan at [2]", "finite"],
    9: ["'wave' has shape (3,)", "shape (5,)"],
    10: ["'wave' is of type <U4"],
    11: ["mapping of output names", "int"],
    12: ["closed files"],
    14: ["SIGKILL"],
    15: ["KeyboardInterrupt"],
}
GOOD = [r for r in range(COUNT) if r not in REASONS]


@dataclass
class Misbehaved:
    """A run in which all went wrong, for tests that only look."""

    launch: Launch
    file: Path


Runs = dict[int, Misbehaved]
on_all = pytest.mark.parametrize("ranks", [1, 3])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The same run on 1 and on 3 ranks."""
    made = {}
    for ranks in (1, 3):
        folder = tmp_path_factory.mktemp("misbehaved")
        write(folder, "model.py", MODEL)
        write(folder, "all.toml", SPEC)
        launch = Launcher(folder).ranks("mpich", ranks, "all.toml")
        made[ranks] = Misbehaved(launch, folder / "all.h5")
    return made


@on_all
def test_whatever_tasks_do_all_others_are_done(runs: Runs, ranks: int) -> None:
    misbehaved = runs[ranks]
    launch = misbehaved.launch
    assert launch.code == 3, launch.errors
    assert "Traceback" not in launch.errors
    assert f"32 tasks, {len(REASONS)} failed" in launch.errors
    assert launch.orphans() == []
    with h5py.File(misbehaved.file) as file:
        status = file["tasks/status"][:]
    assert np.flatnonzero(status[0] == FAILED).tolist() == [*REASONS]
    assert np.flatnonzero(status[0] == DONE).tolist() == GOOD
    assert (status[1] == DONE).all()


@on_all
def test_every_failure_tells_which_task_and_why(runs: Runs, ranks: int) -> None:
    misbehaved = runs[ranks]
    store = Store(misbehaved.file)
    texts = dict(store.failures())
    attempts = store.read("/tasks/attempts")[0]
    store.close()
    assert [*texts] == [*REASONS]
    for replicate, reasons in REASONS.items():
        sequence = np.random.SeedSequence(SEED, spawn_key=(replicate,))
        place = [
            *("scenario 'wild'", f"replicate {replicate},", "{'mood': 'wild'}"),
            f"attempt {attempts[replicate]},",
            f"seed {sequence.generate_state(1)[0]},",
        ]
        for told in (*place, *reasons):
            assert told in texts[replicate]
    # one that was killed by somebody else is given three chances more
    assert attempts.tolist() == [1] * 14 + [4, 1]


@on_all
def test_bands_rest_on_the_tasks_that_are_done(runs: Runs, ranks: int) -> None:
    misbehaved = runs[ranks]
    with h5py.File(misbehaved.file) as file:
        series = file["series/wave"][0]
        bands = file["bands/wave"][0]
        assert file["tasks/done"][:].tolist() == [len(GOOD), COUNT]
        assert np.isnan(series[[*REASONS]]).all()
    rngs = [
        np.random.default_rng(np.random.SeedSequence(SEED, spawn_key=(replicate,)))
        for replicate in GOOD
    ]
    np.testing.assert_array_equal(series[GOOD], [r.normal(size=5) for r in rngs])
    np.testing.assert_array_equal(bands, np.quantile(series[GOOD], LEVELS, axis=0))


def test_the_digest_does_not_depend_on_the_ranks(runs: Runs) -> None:
    digests = []
    for misbehaved in runs.values():
        with h5py.File(misbehaved.file) as file:
            digests.append(str(file.attrs["digest"]))
    assert len(digests[0]) == 64
    assert digests == digests[:1] * 2


# what a replay shows of the same failures, where it is not the same
SHOWN = {
    3: ["Segmentation fault", "in crashes\n", "ended by SIGSEGV"],
    6: ["in grows\n", "Unable to allocate"],
    12: ["ended its own process"],
    15: ["KeyboardInterrupt", "exit code 1"],
}


@pytest.mark.parametrize("replicate", REASONS)
def test_a_fault_is_replayed_in_the_foreground(runs: Runs, replicate: int) -> None:
    misbehaved = runs[3]
    launcher = Launcher(misbehaved.file.parent)
    launch = launcher.mpiens("replay", misbehaved.file.name, "wild", str(replicate))
    assert launch.code == 3
    for told in SHOWN.get(replicate, REASONS[replicate]):
        assert told in launch.errors
    assert launch.output == (
        f"scenario wild, replicate {replicate}: failed, as it did in the file\n"
    )
    assert launch.orphans() == []


# every call leaves a line; failures end after so many
COUNTING = """
import os
from pathlib import Path


def simulate(rng, replicate, *, fails=(), times=99):
    with open("calls", "a") as file:
        print(replicate, file=file)
    so_far = Path("calls").read_text().split().count(str(replicate))
    if replicate in fails and so_far <= times:
        if replicate % 2:
            raise ValueError("no luck")
        os._exit(1)
    return {"luck": rng.normal()}
"""


@dataclass
class Work:
    """A folder with a model that counts its calls, and a spec with limits."""

    launcher: Launcher

    def run(self, limits: str, parameters: str) -> Launch:
        text = '[ensemble]\nmodel = "counting.py:simulate"\nreplicates = 20\nseed = 3\n'
        text += f"[limits]\n{limits}\n[parameters]\n{parameters}\n"
        (self.launcher.folder / "run.toml").write_text(text)
        return self.launcher.run([sys.executable, "-m", "mpiens", "run.toml"])

    @property
    def calls(self) -> list[int]:
        path = self.launcher.folder / "calls"
        return [int(w) for w in path.read_text().split()] if path.exists() else []

    def read(self, dataset: str, name: str = "run.h5") -> list[int]:
        with h5py.File(self.launcher.folder / name) as file:
            values: list[int] = file[dataset][0].tolist()
            return values

    def exists(self, name: str) -> bool:
        return (self.launcher.folder / name).exists()


@pytest.fixture
def work(launcher: Launcher) -> Work:
    write(launcher.folder, "counting.py", COUNTING)
    return Work(launcher)


def test_a_task_that_succeeds_at_last_is_done_with_its_attempts(work: Work) -> None:
    launch = work.run("retries = 2", "fails = [0, 3, 8]\ntimes = 2")
    assert launch.code == 0, launch.errors
    expected = [3 if replicate in (0, 3, 8) else 1 for replicate in range(20)]
    assert work.read("tasks/attempts") == expected
    assert [work.calls.count(replicate) for replicate in (0, 3, 8)] == [3, 3, 3]


def test_a_task_that_never_succeeds_is_tried_as_often_as_asked(work: Work) -> None:
    launch = work.run("retries = 2", "fails = [0, 3, 8]")
    assert launch.code == 3, launch.errors
    status = work.read("tasks/status")
    assert [r for r in range(20) if status[r] == FAILED] == [0, 3, 8]
    expected = [3 if replicate in (0, 3, 8) else 1 for replicate in range(20)]
    assert work.read("tasks/attempts") == expected
    assert [work.calls.count(replicate) for replicate in (0, 3, 8)] == [3, 3, 3]


@pytest.mark.parametrize(
    ("tight", "loose", "told"),
    [("2", "3", "max_failed = 2"), ("0.1", "0.15", "max_failed = 0.1")],
)
def test_a_hopeless_run_is_given_up_and_goes_on_when_it_may(
    work: Work, tight: str, loose: str, told: str
) -> None:
    # tasks 1, 5 and 9 fail: the third is one too many, and the last of all is far
    fails = "fails = [1, 5, 9]"
    launch = work.run(f"max_failed = {tight}", fails)
    assert launch.code == 4, launch.errors
    assert told in launch.errors
    assert "3 tasks failed" in launch.errors
    assert len(launch.errors.splitlines()) == 1
    assert launch.output == ""
    assert not work.exists("run.h5")
    status = work.read("tasks/status", "run.h5.partial")
    known = [replicate for replicate, state in enumerate(status) if state != PENDING]
    assert status.count(FAILED) == 3
    before = len(work.calls)
    launch = work.run(f"max_failed = {loose}", fails)
    assert launch.code == 3, launch.errors
    assert set(work.calls[before:]).isdisjoint(known)
    assert sorted({*known, *work.calls[before:]}) == [*range(20)]
    assert work.read("tasks/status").count(DONE) == 17


def test_as_many_failures_as_allowed_are_not_too_many(work: Work) -> None:
    launch = work.run("max_failed = 3", "fails = [1, 5, 9]")
    assert launch.code == 3, launch.errors


def test_a_share_of_more_than_all_is_a_fault_of_the_spec(work: Work) -> None:
    launch = work.run("max_failed = 1.5", "fails = [1]")
    assert launch.code == 2
    [line] = launch.errors.splitlines()
    assert "[limits] max_failed: 1.5 is no share" in line
    assert work.calls == []
