"""What notebooks and scripts call: run an ensemble, open its file."""

from __future__ import annotations

import json
from pathlib import Path

import gallery
import h5py
import numpy as np
import pytest
from conftest import Launcher, mpiexec_of, python_of, write

import mpiens

RUN = """
import mpiens

SPEC = {
    "ensemble": {"model": "model.py:simulate", "replicates": 24, "seed": 20261127},
    "scenarios": {"open": {}, "masks": {"mask": 0.4}, "closed": {"mask": 0.7}},
    "outputs": {
        "new_cases": {
            "dims": ["day"],
            "units": "people per day",
            "summaries": ["peak", "peak_time"],
        },
        "deaths": {"units": "people"},
    },
    "bands": {"baseline": "open", "better": "lower", "central": [0.5]},
}
"""


def test_a_file_is_opened_as_a_tree_with_coordinates(launcher: Launcher) -> None:
    file = gallery.make(launcher, "compared")
    with mpiens.open(file) as tree:
        band = tree["bands"]["new_cases"]
        assert band.dims == ("scenario", "level", "day")
        assert [*tree["bands"].coords["scenario"].values] == ["open", "masks", "closed"]
        masks = band.sel(scenario="masks", level=0.5)
        assert masks.attrs["units"] == "people per day"
        with h5py.File(file) as raw:
            np.testing.assert_array_equal(masks.values, raw["/bands/new_cases"][1, 2])
        assert "digest" in tree.attrs


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(mpiens.SpecError) as caught:
        mpiens.open(tmp_path / "none.h5")
    assert "there is no such file" in "".join(caught.value.lines())


def test_a_mapping_is_run_as_its_file_would_be(launcher: Launcher) -> None:
    file = gallery.make(launcher, "compared")
    script = RUN + 'print(mpiens.run(SPEC, "own.h5"))\nprint(mpiens.run("own.json"))\n'
    write(launcher.folder, "script.py", script)
    ran = launcher.run([python_of("mpich"), "script.py"])
    assert (ran.code, ran.output) == (0, "own.h5\nown.h5\n"), ran.errors
    assert "own.h5 is complete: nothing to do" in ran.errors
    assert launcher.digest("own.h5") == launcher.digest(file.name)


@pytest.mark.parametrize("environment", ["mpich", "openmpi"])
def test_ranks_of_a_script_run_it_together(
    launcher: Launcher, environment: str
) -> None:
    file = gallery.make(launcher, "compared")
    script = RUN + (
        "from mpi4py import MPI\n"
        'file = mpiens.run(SPEC, "own.h5", comm=MPI.COMM_WORLD)\n'
        "if MPI.COMM_WORLD.rank == 0:\n    print(file)\n"
    )
    write(launcher.folder, "script.py", script)
    command = [*mpiexec_of(environment), "-n", "3", python_of(environment), "script.py"]
    ran = launcher.run(command)
    assert (ran.code, ran.output) == (0, "own.h5\n"), ran.errors
    with h5py.File(launcher.folder / "own.h5") as own:
        assert {*own["/tasks/rank"][:].flat} == {0, 1, 2}
    assert launcher.digest("own.h5") == launcher.digest(file.name)


def test_what_is_wrong_is_raised_and_what_is_left_too(launcher: Launcher) -> None:
    write(launcher.folder, "model.py", gallery.MODEL)
    script = """
import mpiens, json
told = []
wrong = {"ensemble": {"model": "model.py:simulate"}}
for spec, output in ((wrong, "a.h5"), ({}, None)):
    try:
        mpiens.run(spec, output)
    except mpiens.SpecError as error:
        told += error.lines()
spec = {"ensemble": {"model": "model.py:simulate", "replicates": 20, "seed": 1}}
spec["limits"] = {"max_failed": 0}
try:
    mpiens.run(spec, "b.h5")
except RuntimeError as error:
    told.append(str(error))
print(json.dumps(told))
"""
    write(launcher.folder, "script.py", script)
    ran = launcher.run([python_of("mpich"), "script.py"])
    assert ran.code == 0, ran.errors
    told = "\n".join(json.loads(ran.output))
    assert "[ensemble] replicates" in told
    assert 'output="sweep.h5"' in told
    assert "b.h5 is not complete: call this again to go on" in told
