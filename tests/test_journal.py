"""A kill while HDF5 changes a file is undone."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

from conftest import Launcher

from mpiens import journal
from mpiens.store import Store

CLOSING = {"digest": "d" * 64, "completed": "now", "host": "h" * 40, "seconds": 1.0}
KILLS = 60


def make_file(launcher: Launcher) -> Path:
    assert launcher.mpiens("sweep.toml").code == 0
    return launcher.folder / "sweep.h5"


def complete(path: Path) -> None:
    store = Store(path, writable=True)
    store.complete(CLOSING)
    store.close()


def test_what_was_begun_is_undone_byte_by_byte(
    folder: Path, launcher: Launcher
) -> None:
    path = make_file(launcher)
    before = path.read_bytes()
    complete(path)
    assert path.read_bytes() != before
    journal.restore(path)
    assert path.read_bytes() == before
    journal.restore(path)
    assert path.read_bytes() == before


def test_what_was_ended_stays(folder: Path, launcher: Launcher) -> None:
    path = make_file(launcher)
    complete(path)
    after = path.read_bytes()
    journal.forget(path)
    journal.restore(path)
    assert path.read_bytes() == after
    assert Store(path).attributes["host"] == "h" * 40


def test_a_kill_at_any_moment_of_it_is_undone(folder: Path, launcher: Launcher) -> None:
    path = make_file(launcher)
    original = path.read_bytes()
    copy = path.with_name("copy.h5")
    shutil.copy(path, copy)
    since = time.perf_counter()
    complete(copy)
    usual = time.perf_counter() - since
    dice = random.Random(3)
    damaged = 0
    for _ in range(KILLS):
        copy.write_bytes(original)
        journal.forget(copy)
        if not (pid := os.fork()):
            complete(copy)
            os._exit(0)
        time.sleep(dice.random() * usual * 4)
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        damaged += copy.read_bytes() != original
        begun = copy.with_name(copy.name + journal.SUFFIX).exists()
        journal.restore(copy)
        if begun:
            assert copy.read_bytes() == original
        Store(copy).close()
    assert damaged, "no kill hit the moment"
