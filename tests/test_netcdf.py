"""The result file is netCDF: other programs read it, also while it is written."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest
import xarray
from conftest import Launch, Launcher, write

MODEL = """
import time
from pathlib import Path
import numpy as np

def simulate(rng, scenario, replicate, *, beta, town="north"):
    time.sleep(0.03)  # so that rows are not sent many at once
    gate = Path(__file__).with_name("go")
    while (scenario, replicate) == ("masks", 2) and not gate.exists():
        time.sleep(0.02)
    if (scenario, replicate) == ("baseline", 1):
        raise ValueError("née " + "é" * (7000) + "!")
    day = np.arange(4)
    return {
        "infected": (100 * beta * day + replicate).astype(int),
        "wave": beta + rng.normal(size=(4, 3)),
        "sick": day > 1,
    }
"""
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 5
seed = 3

[scenarios.baseline]
beta = 0.5
[scenarios.masks]
beta = 0.25

[outputs.infected]
dims = ["day"]
units = "agents"
summaries = ["final", "peak_time"]

[outputs.wave]
dims = ["day", "age"]
units = "m"

[outputs.sick]
dims = ["day"]

[bands]
levels = [0.1, 0.5, 0.9]
baseline = "baseline"
"""
DIMS = {
    "/parameters/beta": ("scenario",),
    "/series/infected": ("scenario", "replicate", "day"),
    "/series/wave": ("scenario", "replicate", "day", "age"),
    "/bands/infected": ("scenario", "level", "day"),
    "/bands/wave": ("scenario", "level", "day", "age"),
    "/bands/wave.mean": ("scenario", "day", "age"),
    "/bands/wave.std": ("scenario", "day", "age"),
    "/summary/infected/final": ("scenario", "replicate"),
    "/summary/infected/final.bands": ("scenario", "level"),
    "/comparison/infected/peak_time": ("scenario", "replicate"),
    "/tasks/status": ("scenario", "replicate"),
    "/tasks/seconds": ("scenario", "replicate"),
    "/tasks/done": ("scenario",),
    "/failures/text": ("failure",),
}
COORDINATES = {
    "scenario": ["baseline", "masks"],
    "replicate": [0, 1, 2, 3, 4],
    "level": [0.1, 0.5, 0.9],
    "day": [0, 1, 2, 3],
    "age": [0, 1, 2],
    "bound": ["lower", "upper"],
    "prediction": [0.8],
}
UNITS = {
    "/series/infected": "agents",
    "/series/wave": "m",
    "/bands/wave": "m",
    "/bands/wave.std": "m",
    "/summary/infected/final": "agents",
    "/summary/infected/peak_time": None,
    "/comparison/infected/final": "agents",
    "/tasks/seconds": "s",
}


@dataclass
class Job:
    """A job that runs until its gate is opened."""

    folder: Path
    launch: Launch

    @property
    def partial(self) -> Path:
        return self.folder / "run.h5.partial"

    def finish(self) -> Path:
        (self.folder / "go").touch()
        self.launch.wait(60)
        assert self.launch.code == 3, self.launch.errors
        return self.folder / "run.h5"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """A job that waits in its eighth task of ten."""
    folder = tmp_path_factory.mktemp("running")
    write(folder, "model.py", MODEL)
    write(folder, "run.toml", SPEC)
    launcher = Launcher(folder)
    command = [sys.executable, "-m", "mpiens", "run.toml"]
    job = Job(folder, launcher.start(command))
    try:
        end = time.monotonic() + 60
        while done_tasks(job.partial) < 6:
            assert time.monotonic() < end, "no partial file"
            assert job.launch.process.poll() is None
            time.sleep(0.05)
        yield job
    finally:
        job.launch.kill()


def done_tasks(partial: Path) -> int:
    if not partial.exists():
        return 0
    with h5py.File(partial, "r") as file:
        return int((file["/tasks/status"][:] == 1).sum())


@pytest.fixture(scope="module")
def complete(running: Job) -> Path:
    return running.finish()


@pytest.fixture(params=["running", "complete"], scope="module")
def file(request: pytest.FixtureRequest) -> Path:
    """The file while it is written, and when it is complete."""
    running: Job = request.getfixturevalue("running")
    if request.param == "running":
        assert running.launch.process.poll() is None
        return running.partial
    return request.getfixturevalue("complete")


def variable(tree: xarray.DataTree, path: str) -> xarray.DataArray:
    group, _, name = path.rpartition("/")
    return tree[group or "/"][name]


def test_xarray_reads_named_dimensions_coordinates_and_units(file: Path) -> None:
    with xarray.open_datatree(file, engine="h5netcdf") as tree:
        assert tree.attrs["Conventions"].startswith("CF-")
        for path, dims in DIMS.items():
            assert variable(tree, path).dims == dims, path
        for name, values in COORDINATES.items():
            assert tree.coords[name].values.tolist() == values
        own = {"scenario", "replicate", "day", "age"}
        assert {*variable(tree, "/series/wave").coords} == own
        for path, units in UNITS.items():
            assert variable(tree, path).attrs.get("units") == units, path
        wave = tree["series"]["wave"].sel(scenario="masks", replicate=1, day=3, age=2)
        raw = netcdf_values(file, "/series/wave")[1, 1, 3, 2]
        assert wave.item() == raw


def test_netcdf4_reads_named_dimensions_coordinates_and_units(file: Path) -> None:
    with netCDF4.Dataset(file) as opened:
        assert {*opened.dimensions} == {*COORDINATES, "failure"}
        for path, dims in DIMS.items():
            assert opened[path].dimensions == dims, path
        for name, values in COORDINATES.items():
            assert opened[name][:].tolist() == values
        for path, units in UNITS.items():
            assert getattr(opened[path], "units", None) == units, path


def test_hdf5_alone_reads_scales_and_text(file: Path) -> None:
    with h5py.File(file, "r") as opened:
        for path, dims in DIMS.items():
            scales = [[*dim.values()] for dim in opened[path].dims]
            assert [[scale.name for scale in s] for s in scales] == [
                [f"/{dim}"] for dim in dims
            ]
        assert opened["scenario"].asstr()[:].tolist() == ["baseline", "masks"]
        assert opened["/parameters/beta"][:].tolist() == [0.5, 0.25]
        assert opened["/parameters/town"].asstr()[:].tolist() == ['"north"'] * 2


def netcdf_values(file: Path, path: str) -> np.ndarray:
    with netCDF4.Dataset(file) as opened:
        return opened[path][:]


def test_rows_that_are_not_there_read_as_missing(file: Path) -> None:
    with h5py.File(file, "r") as opened:
        status = opened["/tasks/status"][:]
    done = status == 1
    assert not done.all()
    with xarray.open_datatree(file, engine="h5netcdf") as tree:
        for name in ("infected", "wave", "sick"):
            values = tree["series"][name].values.reshape(2, 5, -1)
            assert (np.isnan(values).all(axis=2) == ~done).all(), name
            assert (np.isnan(values).any(axis=2) == ~done).all(), name
        infected = tree["series"]["infected"].sel(scenario="masks", replicate=1)
        assert infected.values.tolist() == [1, 26, 51, 76]
        sick = tree["series"]["sick"].sel(scenario="baseline", replicate=0)
        assert sick.values.tolist() == [0, 0, 1, 1]
    masked = netcdf_values(file, "/series/infected")
    assert (np.ma.getmaskarray(masked).all(axis=2) == ~done).all()


def test_statuses_are_flags_as_cf_has_them(file: Path) -> None:
    with netCDF4.Dataset(file) as opened:
        status = opened["/tasks/status"]
        meanings = status.flag_meanings.split()
        assert meanings == ["pending", "done", "failed", "unused"]
        assert status.flag_values.tolist() == [0, 1, 2, 3]
        assert status.flag_values.dtype == status.dtype
        assert meanings[status[0, 1]] == "failed"
        assert meanings[status[1, 1]] == "done"
        pending = file.suffix == ".partial"
        assert meanings[status[1, 2]] == ("pending" if pending else "done")


def test_texts_of_failures_are_read(file: Path) -> None:
    text = str(netcdf_values(file, "/failures/text")[0])
    assert "ValueError: née" in text
    assert text.rstrip().endswith("éé!")
    assert netcdf_values(file, "/failures/task")[0] == 1


def test_the_job_comes_to_its_end_though_it_was_read(complete: Path) -> None:
    with netCDF4.Dataset(complete) as opened:
        assert len(opened.digest) == 64
        bands = opened["/bands/infected"][1]
        series = opened["/series/infected"][1].data
        method = opened["/bands/infected"].quantile_method
    np.testing.assert_array_equal(bands, np.quantile(series, [0.1, 0.5, 0.9], axis=0))
    assert method.startswith("linear (type 7")
    with xarray.open_datatree(complete, engine="h5netcdf") as tree:
        both = tree["comparison"]["infected"]["final"].sel(scenario="masks")
        assert both.values.tolist() == pytest.approx(
            [-75, np.nan, -75, -75, -75], nan_ok=True
        )
        assert tree["tasks"]["done"].values.tolist() == [4, 5]
