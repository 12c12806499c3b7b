"""Percolation and the old simulator: their READMEs' lines, against plain loops."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import os
import random
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Launcher

EXAMPLES = Path(__file__).parents[1] / "examples"
SEED = 20260529


def run_example(name: str, folder: Path) -> Launcher:
    """Copy an example and run the line of its README, on four ranks."""
    clean = shutil.ignore_patterns("*.h5", "*.partial", "__pycache__")
    shutil.copytree(EXAMPLES / name, folder / "examples" / name, ignore=clean)
    text = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^mpiens -n 4.*$", text, re.MULTILINE)
    launcher = Launcher(folder)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    launch = launcher.run(["bash", "-c", line], 90, PATH=path)
    assert launch.code == 0, launch.errors
    return launcher


def import_file(path: Path) -> ModuleType:
    """Import a file of an example, anew: nothing of earlier tasks is in it."""
    name = f"{path.parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def import_model(name: str) -> ModuleType:
    return import_file(EXAMPLES / name / "model.py")


def same_alone(launcher: Launcher, name: str) -> None:
    alone = ["examples/" + name + "/sweep.toml", "-o", "alone.h5"]
    launch = launcher.mpiens(*alone, limit=90)
    assert launch.code == 0, launch.errors
    assert launcher.digest("alone.h5") == launcher.digest(f"{name}.h5")


# Percolation


@pytest.fixture(scope="module")
def percolation(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    return run_example("percolation", tmp_path_factory.mktemp("percolation"))


def test_percolations_table_is_that_of_a_plain_loop(percolation: Launcher) -> None:
    model = import_model("percolation")
    output = percolation.started[0].output
    table = output[output.index("size,depth,count,") :]
    rows = list(csv.reader(table.splitlines()))
    columns = "size,depth,count,dimension,density_x,density_k"
    assert rows[0] == columns.split(",")
    expected = []
    for size in (75, 95, 105):
        for depth in (2, 10, 100):
            name = f"size={size},depth={depth}".encode()
            own = int.from_bytes(hashlib.sha256(name).digest()[:8], "little")
            runs = []
            for replicate in range(10):
                stream = np.random.SeedSequence(SEED, spawn_key=(own, replicate))
                rng = np.random.default_rng(stream)
                runs.append(model.simulate(rng, size=size, depth=depth))
            fitted = model.fit({"densities": [run["densities"] for run in runs]})
            dimension = np.mean([run["dimension"] for run in runs])
            fit = [fitted["density_x"], fitted["density_k"]]
            expected.append([size, depth, 10, dimension, *fit])
    assert [[float(cell) for cell in row] for row in rows[1:]] == expected


def test_percolations_lists_are_ragged(percolation: Launcher) -> None:
    with h5py.File(percolation.folder / "percolation.h5") as file:
        lengths = file["series/densities.length"][:]
        assert len(np.unique(lengths[0])) > 3
        assert np.isnan(file["series/densities"][0, 0, lengths[0, 0] :]).all()
        assert (file["aggregate/dimension"][:] > 1.2).all()
        assert (file["aggregate/density_x"][:] < 0).all()


def test_percolation_is_the_same_on_one_rank(percolation: Launcher) -> None:
    same_alone(percolation, "percolation")


# The old simulator


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    return run_example("legacy", tmp_path_factory.mktemp("legacy"))


def simulate_legacy(beta: float, replicate: int) -> dict[str, Any]:
    """One task as its author would run it: in a process of its own."""
    stream = np.random.SeedSequence(SEED, spawn_key=(replicate,))
    random.seed(int(stream.generate_state(1)[0]))
    found: dict[str, Any] = import_model("legacy").simulate(beta=beta)
    return found


@pytest.mark.usefixtures("capsys")
def test_the_old_simulator_gives_what_it_gives_alone(legacy: Launcher) -> None:
    with h5py.File(legacy.folder / "legacy.h5") as file:
        for index, beta in enumerate((0.06, 0.08, 0.1)):
            alone = [simulate_legacy(beta, replicate) for replicate in range(20)]
            curves = [run["infected"] for run in alone]
            assert file["series/infected"][index].tolist() == curves
            assert file["series/dead"][index].tolist() == [r["dead"] for r in alone]
        assert len(np.unique(file["series/dead"][:])) > 5
    assert "day 0" not in legacy.started[0].output


def test_the_old_simulator_is_the_same_on_one_rank(legacy: Launcher) -> None:
    same_alone(legacy, "legacy")


def test_without_fresh_the_dead_of_one_task_are_missing_in_the_next(
    legacy: Launcher,
) -> None:
    folder = legacy.folder / "examples" / "legacy"
    text = (folder / "sweep.toml").read_text()
    assert text.count('[model]\nfresh = "task"\n') == 1
    leaky = text.replace('[model]\nfresh = "task"\n', "")
    (folder / "leaky.toml").write_text(leaky)
    checked = legacy.mpiens("check", str(folder / "leaky.toml"), "--twice")
    assert checked.code == 3
    assert "differs within one runner" in checked.output
    assert 'fresh = "task"' in checked.output
    checked = legacy.mpiens("check", str(folder / "sweep.toml"), "--twice")
    assert checked.code == 0, checked.output
    assert legacy.mpiens(str(folder / "leaky.toml")).code == 0
    with (
        h5py.File(legacy.folder / "leaky.h5") as file,
        h5py.File(legacy.folder / "legacy.h5") as clean,
    ):
        dead = file["series/dead"][:]
        assert dead[-1, -1] > clean["series/dead"][-1, -1]
        assert (dead.reshape(-1)[1:] >= dead.reshape(-1)[:-1]).all()  # never fewer
