"""Legacy simulators: nothing that a task leaves behind reaches the next one."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import h5py
import pytest
from conftest import Launch, Launcher, wait_until, write
from test_runner import is_alive

MODEL = """
import os
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
with open(HERE / "imported", "a") as log:
    log.write(".")
seen = []


def simulate(rng, replicate, scenario, *, kind="good"):
    seen.append((scenario, replicate))
    (HERE / "runs").mkdir(exist_ok=True)
    (HERE / "runs" / f"{os.getpid()}").touch()
    print("a word before the end", flush=True)
    if kind == "segfault" and replicate == 2:
        os.kill(os.getpid(), 11)
    if kind == "exit" and replicate == 2:
        os._exit(0)
    if kind == "raise" and replicate == 2:
        raise ValueError("no luck")
    if kind == "leave" and replicate == 2:
        sys.exit("gone")
    if kind == "hang" and replicate == 2:
        time.sleep(1000)
    if kind == "close" and replicate == 2:
        os.closerange(3, 100)
    if kind == "memory" and replicate == 2:
        bytearray(4 << 30)
    if kind == "unpicklable" and replicate == 2:
        return {"draw": lambda: None}
    if kind == "object" and replicate == 2:
        return 3.5
    if kind == "slow":
        time.sleep(0.1)
    return {"draw": rng.normal(), "seen": len(seen), "many": np.arange(300_000.0)}
"""
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 6
seed = 4
[model]
fresh = "task"
[parameters]
kind = "good"
[outputs.many]
keep = false
[limits]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "sweep.toml", SPEC)
    return tmp_path


def change(folder: Path, *pairs: tuple[str, str]) -> None:
    text = (folder / "sweep.toml").read_text()
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    (folder / "sweep.toml").write_text(text)


def good(launch: Launch, code: int = 0) -> Launch:
    assert launch.code == code, launch.errors
    return launch


def test_every_task_gets_a_process_that_none_was_run_in(
    launcher: Launcher, folder: Path
) -> None:
    good(launcher.mpiens("sweep.toml"))
    with h5py.File(folder / "sweep.h5") as file:
        assert (file["series/seen"][:] == 1).all()
    assert len([*(folder / "runs").iterdir()]) == 6
    # once to look at it, once in the runner, and in no task
    assert len((folder / "imported").read_text()) == 2


def test_without_it_what_is_left_behind_is_seen(
    launcher: Launcher, folder: Path
) -> None:
    change(folder, ('fresh = "task"', ""))
    good(launcher.mpiens("sweep.toml"))
    with h5py.File(folder / "sweep.h5") as file:
        assert file["series/seen"][0].tolist() == [1, 2, 3, 4, 5, 6]


def test_the_answer_is_the_same_on_any_number_of_ranks(
    launcher: Launcher, folder: Path
) -> None:
    good(launcher.mpiens("sweep.toml", "-o", "one.h5"))
    good(launcher.ranks("mpich", 4, "sweep.toml", "-o", "four.h5"))
    good(launcher.ranks("openmpi", 2, "sweep.toml", "-o", "two.h5"))
    digests = [launcher.digest(f"{name}.h5") for name in ("one", "two", "four")]
    assert len(set(digests)) == 1


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("segfault", "the model's process was ended by SIGSEGV"),
        ("exit", "the model ended its own process with exit code 0"),
        ("raise", "ValueError: no luck"),
        ("leave", "SystemExit: gone"),
        ("hang", "the task took longer than task_seconds = 1.0"),
        ("close", "the model closed files that are not its own"),
        ("memory", "the task may allocate task_memory = 400000000 bytes"),
        ("unpicklable", "Can't pickle"),
        ("object", "the model should return a mapping of output names"),
    ],
)
def test_a_fault_costs_its_task(
    launcher: Launcher, folder: Path, kind: str, told: str
) -> None:
    limits = "[limits]\ntask_seconds = 1.0\ntask_memory = 400_000_000"
    change(folder, ('"good"', f'"{kind}"'), ("[limits]", limits))
    good(launcher.mpiens("sweep.toml"), 3)
    with h5py.File(folder / "sweep.h5") as file:
        assert file["tasks/status"][0].tolist() == [1, 1, 2, 1, 1, 1]
        text = file["failures/text"][0].decode()
    assert told in text.replace("pickle local", "Can't pickle local")
    if kind in ("segfault", "exit", "hang"):
        assert "a word before the end" in text
    if kind == "hang":
        assert "time.sleep(1000)" in text or "in simulate" in text


def test_a_task_whose_process_is_killed_by_somebody_is_dealt_again(
    launcher: Launcher, folder: Path
) -> None:
    good(launcher.mpiens("sweep.toml", "-o", "untouched.h5"))
    (folder / "runs" / "none").touch()
    change(folder, ('"good"', '"slow"'))
    for path in (folder / "runs").iterdir():
        path.unlink()
    launch = launcher.start([sys.executable, "-m", "mpiens", "sweep.toml"])
    wait_until(lambda: len([*(folder / "runs").iterdir()]) >= 2)
    for path in sorted((folder / "runs").iterdir(), key=lambda p: p.stat().st_mtime):
        pid = int(path.name)
    if is_alive(pid):
        os.kill(pid, signal.SIGKILL)
    good(launch.wait(60))
    with h5py.File(folder / "sweep.h5") as file:
        assert (file["tasks/status"][:] == 1).all()
        assert (file["series/seen"][:] == 1).all()


def test_no_process_outlives_a_killed_job(launcher: Launcher, folder: Path) -> None:
    change(folder, ('"good"', '"hang"'))
    launch = launcher.start_ranks("mpich", 2, "sweep.toml")
    wait_until((folder / "runs").exists)
    launch.process.send_signal(signal.SIGKILL)
    launch.wait(20)
    assert launch.orphans() == []


# What check --twice tells


@pytest.mark.parametrize(
    ("fresh", "code", "told"),
    [
        (True, 0, "is the same in one runner and in two"),
        (False, 3, "differs within one runner in output 'seen'"),
    ],
)
def test_a_leak_is_told(
    launcher: Launcher, folder: Path, fresh: bool, code: int, told: str
) -> None:
    if not fresh:
        change(folder, ('fresh = "task"', ""))
    launch = good(launcher.mpiens("check", "sweep.toml", "--twice"), code)
    assert f"twice: scenario default, replicate 0 {told}" in launch.output


def test_what_differs_between_runners_is_told(launcher: Launcher, folder: Path) -> None:
    text = MODEL.replace("len(seen)", "hash('a set of words') % 100_003")
    write(folder, "model.py", text)
    launch = good(launcher.mpiens("check", "sweep.toml", "--twice"), 3)
    assert "differs between two runners in output 'seen'" in launch.output
    assert "a word before the end" not in launch.output


def test_a_task_that_fails_cannot_be_compared(launcher: Launcher, folder: Path) -> None:
    write(folder, "model.py", MODEL.replace("replicate == 2", "replicate == 0"))
    change(folder, ('"good"', '"raise"'))
    launch = good(launcher.mpiens("check", "sweep.toml", "--twice"), 3)
    assert "twice: a task failed" in launch.errors
    assert "ValueError: no luck" in launch.errors
