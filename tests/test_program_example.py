"""The example in C runs from its README's line, and gives what a plain loop gives."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Launcher

EXAMPLE = Path(__file__).parents[1] / "examples" / "program"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """A copy of the example that its README's line has run, on four ranks."""
    folder = tmp_path_factory.mktemp("program")
    clean = shutil.ignore_patterns("sir", "*.h5", "*.partial")
    shutil.copytree(EXAMPLE, folder / "examples" / "program", ignore=clean)
    text = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^    (.*mpiens -n 4.*)$", text, re.MULTILINE)
    launcher = Launcher(folder)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    launch = launcher.run(["bash", "-c", line], 90, PATH=path)
    assert launch.code == 0, launch.errors
    assert "baseline" in launch.output
    return launcher


def run_directly(folder: Path, spec: dict[str, Any]) -> dict[str, np.ndarray]:
    """Run the program task by task, under the streams of numpy."""
    found: dict[str, list[Any]] = {name: [] for name in spec["model"]["read"]}
    for own in spec["scenarios"].values():
        parameters = spec["parameters"] | own
        for replicate in range(spec["ensemble"]["replicates"]):
            key = {"entropy": spec["ensemble"]["seed"], "spawn_key": (replicate,)}
            seed = int(np.random.SeedSequence(**key).generate_state(1)[0])
            words = [str(folder / "sir"), "--seed", str(seed), "--out", "direct.csv"]
            for name, value in parameters.items():
                words += [f"--{name}", repr(value)]
            subprocess.run(words, cwd=folder, check=True, timeout=30)
            with (folder / "direct.csv").open() as file:
                rows = list(csv.DictReader(file))
            for name, values in found.items():
                values.append([int(row[name]) for row in rows])
    shape = (len(spec["scenarios"]), spec["ensemble"]["replicates"], -1)
    return {name: np.reshape(values, shape) for name, values in found.items()}


def test_the_example_gives_what_a_plain_loop_gives(example: Launcher) -> None:
    folder = example.folder / "examples" / "program"
    spec = tomllib.loads((folder / "sweep.toml").read_text())
    direct = run_directly(folder, spec)
    with h5py.File(example.folder / "program.h5") as file:
        assert file["scenario"].asstr()[:].tolist() == [*spec["scenarios"]]
        for name, expected in direct.items():
            assert expected.shape == (2, 50, 121)
            assert file[f"series/{name}"].dtype == np.int64
            np.testing.assert_array_equal(file[f"series/{name}"][:], expected)
            bands = file[f"bands/{name}"][:]
            levels = file["level"][:]
            quantiles = np.quantile(expected, levels, axis=1).swapaxes(0, 1)
            np.testing.assert_array_equal(bands, quantiles)
    finals = direct["recovered"][:, :, -1]
    assert len({*finals[0].tolist()}) > 10  # replicates differ, and so do scenarios
    assert np.median(finals[0]) > np.median(finals[1])


def test_the_example_is_checked_and_tried(example: Launcher) -> None:
    spec = "examples/program/sweep.toml"
    checked = example.mpiens("check", spec)
    assert checked.code == 0, checked.errors
    assert "tasks: 100" in checked.output
    tried = example.mpiens("try", spec, "distancing", "3")
    assert tried.code == 0, tried.errors
    assert "infected: shape (121,), int64" in tried.output


def test_the_example_gives_the_same_on_one_rank(example: Launcher) -> None:
    launch = example.mpiens("examples/program/sweep.toml", "-o", "alone.h5", limit=90)
    assert launch.code == 0, launch.errors
    assert example.digest("alone.h5") == example.digest("program.h5")
    assert "baseline" in example.mpiens("show", "alone.h5").output
