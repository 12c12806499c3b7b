"""As many replicates as it takes: the same number at any rank count, after any kill."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Launcher, write
from scipy import stats

MODEL = """
import time
import numpy as np

def simulate(rng, replicate, *, spread=1.0, effect=0.0):
    time.sleep(0.004)
    if replicate % 7 == 3:
        raise ValueError("no luck")
    return {"x": effect + spread * rng.normal(size=3)}
"""
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 10
seed = 20260529
pairing = "common"

[scenarios.calm]
[scenarios.wild]
spread = 3.0
[scenarios.mad]
spread = 50.0

[outputs.x]
dims = ["day"]
summaries = ["peak"]

[precision]
output = "x"
summary = "peak"
width = 1.0
batch = 10
max_replicates = 120
"""
DONE, FAILED, UNUSED = 1, 2, 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "run.toml", SPEC)
    return tmp_path


def read(path: Path, name: str) -> Any:
    with h5py.File(path) as file:
        return file[name][:]


def count_by_hand(values: np.ndarray, wide: float = 1.0) -> int:
    """Return at which count a scenario's replicates in order are tight enough."""
    for count in range(10, 121, 10):
        own = values[:count][~np.isnan(values[:count])]
        if 2 * stats.t.ppf(0.975, len(own) - 1) * stats.sem(own) <= wide:
            return count
    return 120


def draw(spread: float, effect: float = 0.0) -> np.ndarray:
    """Return the peaks of all replicates there might be, NaN where they fail."""
    peaks = np.full(120, np.nan)
    for replicate in range(120):
        key = np.random.SeedSequence(20260529, spawn_key=(replicate,))
        if replicate % 7 != 3:
            normal = np.random.default_rng(key).normal(size=3)
            peaks[replicate] = (effect + spread * normal).max()
    return peaks


def test_each_scenario_takes_what_it_needs_and_no_more(
    folder: Path, launcher: Launcher
) -> None:
    launch = launcher.mpiens("run.toml")
    assert launch.code == 3, launch.errors
    status = read(folder / "run.h5", "/tasks/status")
    counts = (status != UNUSED).sum(axis=1)
    assert counts.tolist() == [count_by_hand(draw(s)) for s in (1.0, 3.0, 50.0)]
    assert counts[0] < counts[1] < counts[2] == 120
    for own, count in zip(status, counts, strict=True):
        assert (own[count:] == UNUSED).all(), "a prefix"
        assert np.isin(own[:count], (DONE, FAILED)).all()
    assert "scenario mad took 120 replicates" in launch.output
    assert f"mpiens: {counts.sum()} tasks, " in launch.errors
    assert launch.output.count("still too wide") == 1 + (counts[1] == 120)
    again = launcher.mpiens("run.toml")
    assert again.code == 3
    assert "nothing to do" in again.errors


def test_the_number_is_the_same_at_any_rank_count(
    folder: Path, launcher: Launcher
) -> None:
    digests = set()
    for ranks in (1, 2, 4):
        launch = launcher.mpiens("-n", str(ranks), "run.toml", "-o", f"{ranks}.h5")
        assert launch.code == 3, launch.errors
        digests.add(launcher.mpiens("show", f"{ranks}.h5", "--digest").output)
    assert len(digests) == 1


def test_a_kill_changes_nothing(folder: Path, launcher: Launcher) -> None:
    assert launcher.mpiens("run.toml", "-o", "whole.h5").code == 3
    partial = folder / "run.h5.partial"
    for pause in (0.3, 0.5):
        killed = launcher.start([sys.executable, "-m", "mpiens", "run.toml"])
        end = time.monotonic() + 30
        while not partial.exists() and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(pause)
        killed.process.send_signal(signal.SIGKILL)
        killed.wait(20)
    assert launcher.mpiens("run.toml").code == 3
    digests = [
        launcher.mpiens("show", name, "--digest").output
        for name in ("whole.h5", "run.h5")
    ]
    assert digests[0] == digests[1]


def test_a_tighter_wish_runs_only_what_is_missing(
    folder: Path, launcher: Launcher
) -> None:
    write(folder, "run.toml", SPEC.replace("width = 1.0", "width = 2.0"))
    assert launcher.mpiens("run.toml").code == 3
    before = read(folder / "run.h5", "/tasks/seconds")
    write(folder, "run.toml", SPEC)
    assert launcher.mpiens("run.toml").code == 3
    after = read(folder / "run.h5", "/tasks/seconds")
    ran = ~np.isnan(before)
    assert ran.sum() < (~np.isnan(after)).sum()
    np.testing.assert_array_equal(after[ran], before[ran])
    counts = (read(folder / "run.h5", "/tasks/status") != UNUSED).sum(axis=1)
    assert counts.tolist() == [count_by_hand(draw(s)) for s in (1.0, 3.0, 50.0)]


def test_a_difference_takes_the_baseline_along(
    folder: Path, launcher: Launcher
) -> None:
    text = SPEC.replace(
        "[scenarios.mad]\nspread = 50.0", "[scenarios.moved]\neffect = 1.0"
    )
    text += 'difference = true\n[bands]\nbaseline = "calm"\n'
    write(folder, "run.toml", text)
    launch = launcher.mpiens("-n", "2", "run.toml")
    assert launch.code == 3, launch.errors
    counts = (read(folder / "run.h5", "/tasks/status") != UNUSED).sum(axis=1)
    wild = count_by_hand(draw(3.0) - draw(1.0))
    assert counts.tolist() == [wild, wild, 10], "moved has no spread beside calm"
    assert "precision of x peak difference: scenario moved took 10" in launch.output


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("width = 1.0", "", "[precision]: needs either width, or relative"),
        ('output = "x"', 'output = "y"', "[precision] output: 'y' has no section"),
        ("max_replicates = 120", "max_replicates = 5", "5 is less than [ensemble]"),
        ('summary = "peak"', 'summary = "total"', "'total' is none of the summaries"),
        ("batch = 10", "batch = 10\ndifference = true", "needs [bands] baseline"),
    ],
)
def test_what_cannot_be_is_told(
    folder: Path, launcher: Launcher, old: str, new: str, told: str
) -> None:
    write(folder, "run.toml", SPEC.replace(old, new))
    launch = launcher.mpiens("check", "run.toml")
    assert launch.code == 2
    assert told in launch.errors


def test_shards_do_not_go_with_it(folder: Path, launcher: Launcher) -> None:
    launch = launcher.mpiens("run.toml", "--shard", "0/2")
    assert launch.code == 2
    assert "--shard: does not go with [precision]" in launch.errors
