"""Epidemics that die out and those that take off: shares, and bands of the latter."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Launcher, write
from scipy import stats

REPLICATES = 80

MODEL = """
import numpy as np

def simulate(rng, replicate, *, beta):
    if replicate == 7:
        raise ValueError("no luck")
    size = 500.0 if rng.random() < beta else 3.0
    return {"ill": size * np.arange(4) + rng.normal(size=4)}
"""
SPEC = f"""
[ensemble]
model = "model.py:simulate"
replicates = {REPLICATES}
seed = 5

[sweep]
beta = [0.0, 0.4]

[outputs.ill]
dims = ["day"]
units = "agents"
summaries = ["peak", "total"]
takeoff = {{ summary = "peak", above = 100 }}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "run.toml", SPEC)
    return tmp_path


def test_bands_of_what_took_off_stand_beside_those_of_all(
    folder: Path, launcher: Launcher
) -> None:
    launch = launcher.mpiens("-n", "2", "run.toml")
    assert launch.code == 3, launch.errors
    with h5py.File(folder / "run.h5") as file:
        rows, levels = file["/series/ill"][:], file["/level"][:]
        off = rows[1].max(axis=1) > 100  # NaN where it failed
        count = int(off.sum())
        assert 15 < count < 50
        band = file["/takeoff/ill/series"][:]
        assert np.isnan(band[0]).all(), "nothing took off"
        np.testing.assert_array_equal(
            band[1], np.quantile(rows[1][off], levels, axis=0) + 0.0
        )
        share = file["/takeoff/ill/share"]
        assert share[:].tolist() == [0.0, count / (REPLICATES - 1)]
        assert (share.attrs["summary"], share.attrs["above"]) == ("peak", 100.0)
        exact = stats.binomtest(count, REPLICATES - 1).proportion_ci(method="exact")
        found = file["/takeoff/ill/share_interval"][1]
        np.testing.assert_allclose(found, exact, rtol=1e-9)
        totals = rows[1][off].sum(axis=1)
        np.testing.assert_allclose(
            file["/takeoff/ill/total.bands"][1], np.quantile(totals, levels)
        )
        assert file["/takeoff/ill/total.bands"].attrs["units"] == "agents"
    lines = launch.output.splitlines()
    start = next(i for i, line in enumerate(lines) if "above 100: took off" in line)
    assert f"{100 * count / 79:.3g}% [" in lines[start + 5]
    document = json.loads(launcher.mpiens("show", "run.h5", "--json").output)
    told = [scenario["takeoff"]["ill"]["count"] for scenario in document["scenarios"]]
    assert told == [0, count]


def test_another_threshold_runs_nothing_again(folder: Path, launcher: Launcher) -> None:
    assert launcher.mpiens("run.toml").code == 3
    with h5py.File(folder / "run.h5") as file:
        before = file["/tasks/seconds"][:]
    write(folder, "run.toml", SPEC.replace("above = 100", "above = 1e6"))
    launch = launcher.mpiens("run.toml")
    assert launch.code == 3, launch.errors
    with h5py.File(folder / "run.h5") as file:
        np.testing.assert_array_equal(file["/tasks/seconds"][:], before)
        assert file["/takeoff/ill/share"][:].tolist() == [0.0, 0.0]


def test_a_takeoff_needs_its_summary(folder: Path, launcher: Launcher) -> None:
    write(folder, "run.toml", SPEC.replace('summary = "peak"', 'summary = "final"'))
    launch = launcher.mpiens("check", "run.toml")
    assert launch.code == 2
    assert "[outputs.ill] takeoff: 'final' is none of the summaries" in launch.errors
