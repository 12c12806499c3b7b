"""A launcher that stays when all its ranks have gone is ended; others are not."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from conftest import Launcher, wait_until, write

# What stands in for a launcher: it starts one rank, collects it, and stays.
LAUNCHER = """
import os
import subprocess
import sys
import time

child = subprocess.Popen([sys.executable, "rank.py", *sys.argv[1:]])
child.wait()
open("alone", "w").close()
if "stopped" in sys.argv:
    stopped = subprocess.Popen(["sleep", "1000"])
    stopped.send_signal(19)
    sys.exit(stopped.wait() + 9)
if "busy" in sys.argv:
    subprocess.run(["sleep", "3"])
if "ends" not in sys.argv:
    time.sleep(1000)
"""
RANK = """
import sys

from mpiens.farewell import see_off

see_off(1.0)
"""


@pytest.fixture
def folder(launcher: Launcher) -> Path:
    write(launcher.folder, "launcher.py", LAUNCHER)
    write(launcher.folder, "rank.py", RANK)
    return launcher.folder


def command_of(name: str, folder: Path) -> list[str]:
    """A Python whose process has the name of a launcher."""
    executable = folder / name
    shutil.copy(Path(sys.executable).resolve(), executable)
    return [str(executable), "launcher.py"]


def environment() -> dict[str, str]:
    paths = [path for path in sys.path if path]
    home = sys.base_prefix
    return {"PYTHONHOME": home, "PYTHONPATH": ":".join(paths)}


def test_a_launcher_that_stays_is_ended(launcher: Launcher, folder: Path) -> None:
    launch = launcher.start(command_of("prterun", folder), **environment())
    launch.wait(20)
    assert launch.code == -signal.SIGKILL, launch.errors
    assert launch.orphans(2) == []


def test_a_launcher_with_children_is_left_alone(
    launcher: Launcher, folder: Path
) -> None:
    launch = launcher.start([*command_of("mpirun", folder), "busy"], **environment())
    wait_until((folder / "alone").exists)
    time.sleep(2.5)
    assert launch.process.poll() is None
    assert launch.wait(20).code == -signal.SIGKILL


def test_nothing_is_left_behind_by_a_launcher_that_ends(
    launcher: Launcher, folder: Path
) -> None:
    launch = launcher.start([*command_of("prterun", folder), "ends"], **environment())
    assert launch.wait(20).code == 0, launch.errors
    assert launch.orphans(2) == []


def test_what_is_no_launcher_is_not_touched(launcher: Launcher, folder: Path) -> None:
    launch = launcher.start(command_of("python3", folder), **environment())
    wait_until((folder / "alone").exists)
    time.sleep(2.5)
    assert launch.process.poll() is None
    os.kill(launch.process.pid, signal.SIGTERM)
    launch.wait(20)
    assert launch.orphans(2) == []


def test_a_rank_that_is_stopped_at_last_is_ended(
    launcher: Launcher, folder: Path
) -> None:
    command = [*command_of("prterun", folder), "stopped"]
    launch = launcher.start(command, **environment())
    assert launch.wait(20).code == 0, launch.errors
    assert launch.orphans(2) == []
