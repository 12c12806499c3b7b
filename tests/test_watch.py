"""Following a file from outside: while it is written, when it is complete, or never."""

from __future__ import annotations

import os
import pty
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import Launcher, wait_until, write

from mpiens.watch import watch as watch_file

MODEL = """
import time
from pathlib import Path

def simulate(rng, scenario, replicate):
    time.sleep(0.05)
    if replicate == 3:
        raise ValueError("no luck")
    while scenario == "late" and replicate > 5 and not Path("go").exists():
        time.sleep(0.02)
    return {"x": rng.normal(size=4)}
"""
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 10
seed = 1
[scenarios.early]
[scenarios.late]
[outputs.x]
dims = ["day"]
summaries = ["peak"]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "run.toml", SPEC)
    return tmp_path


def watch(*words: str) -> list[str]:
    return [sys.executable, "-m", "mpiens", "watch", *words]


def test_a_run_is_followed_until_it_is_complete(
    folder: Path, launcher: Launcher
) -> None:
    run = launcher.start([sys.executable, "-m", "mpiens", "run.toml"])
    wait_until((folder / "run.h5.partial").exists)
    wait_until(lambda: "16 of 20" in launcher.run(watch("run.h5", "--once")).output)
    told = launcher.run(watch("run.h5", "--once")).output
    assert "16 of 20 tasks (80%), 2 failed" in told
    assert "failed: scenario early, replicate 3: ValueError: no luck" in told
    lines = [line.split() for line in told.splitlines()]
    late = next(words for words in lines if words[:1] == ["late"])
    assert late[1:4] == ["5", "1", "10"]
    assert re.fullmatch(r"-?[\d.]+ \[-?[\d.]+, -?[\d.]+\]", " ".join(late[4:]))
    follower = launcher.start(watch("run.h5", "--every", "0.1"))
    time.sleep(2)
    write(folder, "go", "")
    assert run.wait(30).code == 3
    follower.wait(30)
    assert follower.code == 0
    assert "nothing finished lately" in follower.output
    assert "20 of 20 tasks (100%), 2 failed: complete" in follower.output


def test_a_file_that_nobody_writes_is_told_so(folder: Path, launcher: Launcher) -> None:
    run = launcher.start([sys.executable, "-m", "mpiens", "run.toml"])
    wait_until((folder / "run.h5.partial").exists)
    run.kill(signal.SIGKILL)
    run.wait(20)
    looked = launcher.run(watch("run.h5", "--once"))
    assert looked.code == 0
    assert "nobody is writing it; the same command goes on" in looked.output
    missing = launcher.run(watch("other.h5", "--once"))
    assert missing.code == 2
    assert "other.h5: is not there, and nobody is about to write it" in missing.errors


def test_on_a_terminal_the_last_look_replaces_the_one_before(
    folder: Path, launcher: Launcher
) -> None:
    write(folder, "go", "")
    assert launcher.mpiens("run.toml").code == 3
    master, terminal = pty.openpty()
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        os.dup2(terminal, 1)
        os.dup2(terminal, 2)
        os.execv(sys.executable, watch("run.h5", "--every", "0.1"))
    os.close(terminal)
    shown = b""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            shown += os.read(master, 65536)
        except OSError:  # the other end has gone
            break
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    text = shown.decode()
    assert "early" in text
    assert "20 of 20 tasks (100%), 2 failed: complete" in text


def test_a_file_that_has_just_got_its_last_name_is_looked_for_again(
    folder: Path,
    launcher: Launcher,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write(folder, "go", "")
    assert launcher.mpiens("run.toml").code == 3
    file = folder / "run.h5"
    found = iter([folder / "run.h5.partial", file])
    monkeypatch.setattr("mpiens.watch._find", lambda path: next(found))
    assert watch_file(file, every=0.01, once=False) == 0
    assert "20 of 20 tasks (100%), 2 failed: complete" in capsys.readouterr().out
