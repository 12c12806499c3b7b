"""Whole curves, end to end: what is outlying is named, and other shares run nothing."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
from conftest import Launcher, write

MODEL = """
import numpy as np

def simulate(rng, replicate):
    if replicate == 2:
        raise ValueError("no curve")
    jump = 90.0 if replicate in (4, 11) else 0.0
    return {"ill": jump + rng.normal(size=12).cumsum()}
"""
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 16
seed = 5

[outputs.ill]
dims = ["day"]
summaries = ["peak"]

[bands]
central = [0.5]
"""


def test_outlying_curves_are_named_at_any_number_of_ranks(
    tmp_path: Path, launcher: Launcher
) -> None:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "run.toml", SPEC)
    alone = launcher.mpiens("run.toml", "-o", "alone.h5")
    assert alone.code == 3, alone.errors
    assert "outlying ill: scenario default, replicates 4, 11\n" in alone.output
    assert launcher.mpiens("-n", "3", "run.toml").code == 3
    found = []
    for name in ("alone.h5", "run.h5"):
        with h5py.File(tmp_path / name) as file:
            found.append({k: v[:].tobytes() for k, v in file["curvewise/ill"].items()})
    assert found[0] == found[1]


def test_curves_of_shards_are_ranked_once_they_are_merged(
    tmp_path: Path, launcher: Launcher
) -> None:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "run.toml", SPEC)
    assert launcher.mpiens("run.toml").code == 3
    for shard in ("0/2", "1/2"):
        ran = launcher.mpiens("run.toml", "--shard", shard)
        assert ran.code in (0, 3), ran.errors
        assert "outlying" not in ran.output
    shards = ["run.0-of-2.h5", "run.1-of-2.h5"]
    merged = launcher.mpiens("merge", *shards, "-o", "merged.h5")
    assert merged.code == 3, merged.errors
    assert "outlying ill: scenario default, replicates 4, 11\n" in merged.output
    found = []
    for name in ("run.h5", "merged.h5"):
        with h5py.File(tmp_path / name) as file:
            found.append({k: v[:].tobytes() for k, v in file["curvewise/ill"].items()})
    assert found[0] == found[1]


def test_other_shares_are_made_of_the_rows_there_are(
    tmp_path: Path, launcher: Launcher
) -> None:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "run.toml", SPEC)
    assert launcher.mpiens("run.toml").code == 3
    with h5py.File(tmp_path / "run.h5") as file:
        before = file["/tasks/seconds"][:]
        half = file["/curvewise/ill/region"][0, 0]
    write(tmp_path, "run.toml", SPEC.replace("[0.5]", "[0.5, 1.0]"))
    assert launcher.mpiens("run.toml").code == 3
    with h5py.File(tmp_path / "run.h5") as file:
        np.testing.assert_array_equal(file["/tasks/seconds"][:], before)
        region = file["/curvewise/ill/region"][0]
        np.testing.assert_array_equal(region[0], half)
        rows = file["/series/ill"][0]
        rows = rows[~np.isnan(rows[:, 0])]
        np.testing.assert_array_equal(region[1], [rows.min(axis=0), rows.max(axis=0)])


def test_shares_that_do_not_rise_are_a_fault(
    tmp_path: Path, launcher: Launcher
) -> None:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "run.toml", SPEC.replace("[0.5]", "[0.9, 0.5]"))
    launch = launcher.mpiens("check", "run.toml")
    assert launch.code == 2
    told = "[bands] central: [0.9, 0.5] should rise from each share to the next"
    assert told in launch.errors
