"""Central curves: the same bytes from one rank and from many, and depth as defined."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpiens import central, mpi, store, summary
from mpiens.foundation import lay_down
from mpiens.layout import DONE, PENDING, Layout
from mpiens.outcome import RECORD, Batch
from mpiens.reader import decode
from mpiens.row import settle

Everyone = Callable[[Any], list[Any]]

pytestmark = pytest.mark.mpi
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 30
seed = 1

[sweep]
beta = [0.1, 0.2, 0.3, 0.4]

[outputs.curve]
dims = ["day"]
units = "agents"

[bands]
central = [0.5, 0.9]
"""
RETURNED = {"curve": ((40,), "<f8"), "grid": ((3, 4), "<f4"), "one": ((), "<f8")}
REPLICATES, SCENARIOS, STEPS = 30, 4, 40


def make_layout(folder: Path) -> Layout:
    spec = decode(SPEC, f"{folder}/sweep.toml").require()
    return Layout(spec, {"beta": (0.1, 0.2, 0.3, 0.4)}, settle(spec, RETURNED))


def make_rows(layout: Layout) -> np.ndarray:
    rng = np.random.default_rng(8)
    rows = np.zeros(layout.spec.tasks, layout.row.dtype)
    rows["curve"] = rng.normal(size=rows["curve"].shape).cumsum(axis=1)
    rows["curve"][REPLICATES + 3] += 60.0  # out of all proportion
    return rows


def is_done() -> np.ndarray:
    """Return which tasks have succeeded: most, but of the first scenario only two."""
    done = np.arange(SCENARIOS * REPLICATES) % 11 != 5
    done[2:REPLICATES] = False
    return done


@pytest.fixture
def file(comm: mpi.Comm, common_path: Path) -> Path:
    path = common_path / "run.h5"
    if comm.rank == 0:
        layout = make_layout(path.parent)
        new, _ = lay_down(path, layout, {"folder": str(path.parent)})
        store.replace(new, path)
        rows, done = make_rows(layout), is_done()
        records = np.zeros(len(rows), RECORD)
        records["task"] = np.arange(len(rows))
        opened = store.Store(path, writable=True)
        opened.write(Batch(records[done], rows[done]), np.zeros(done.sum(), np.int64))
        opened.close()
    comm.raw.Barrier()
    return path


@pytest.fixture
def team(comm: mpi.Comm) -> mpi.Comm | None:
    """Those who write: all ranks where HDF5 is parallel, else the root alone."""
    import h5py

    if comm.size > 1 and h5py.get_config().mpi:
        return comm
    return mpi.alone() if comm.rank == 0 else None


@pytest.fixture(params=[1, 3000, 8 << 20], ids=lambda budget: f"budget-{budget}")
def budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that a rank reads at once: one step, some steps, and all."""
    monkeypatch.setattr(summary, "BUDGET", request.param)
    return int(request.param)


def make_central(team: mpi.Comm | None, path: Path) -> None:
    status = np.where(is_done(), DONE, PENDING)
    if team:
        central.make_central(team, path, make_layout(path.parent), status)


def read(path: Path) -> dict[str, np.ndarray]:
    import h5py

    with h5py.File(path, "r") as opened:
        return {name: item[:] for name, item in opened["/curvewise/curve"].items()}


def measure_depth(curves: np.ndarray) -> np.ndarray:
    """Return in which share of all pairs and steps each curve lies within the pair."""
    pairs = [*itertools.combinations(range(len(curves)), 2)]
    found = np.zeros(len(curves))
    for one, other in pairs:
        low, high = np.minimum(*curves[[one, other]]), np.maximum(*curves[[one, other]])
        found += ((low <= curves) & (curves <= high)).mean(axis=1)
    return found / len(pairs)


def test_depth_is_as_defined_and_regions_are_what_the_deepest_cover(
    team: mpi.Comm | None, everyone: Everyone, file: Path, budget: int
) -> None:
    assert set(everyone(lambda: make_central(team, file))) == {None}
    found = read(file)
    rows = make_rows(make_layout(file.parent)).reshape(SCENARIOS, REPLICATES)
    done = is_done().reshape(SCENARIOS, REPLICATES)
    assert np.isnan(found["depth"][0]).all(), "two curves are no middle"
    assert np.isnan(found["region"][0]).all()
    for scenario in range(1, SCENARIOS):
        own = done[scenario]
        curves = rows["curve"][scenario, own]
        depth = measure_depth(curves)
        np.testing.assert_allclose(found["depth"][scenario, own], depth, rtol=1e-12)
        assert np.isnan(found["depth"][scenario, ~own]).all()
        order = np.argsort(-found["depth"][scenario, own], kind="stable")
        for index, share in enumerate((0.5, 0.9)):
            inner = curves[order[: int(np.ceil(share * own.sum()))]]
            region = found["region"][scenario, index]
            np.testing.assert_array_equal(
                region, [inner.min(axis=0), inner.max(axis=0)]
            )
        low, high = found["region"][scenario, 0]
        fences = [low - 1.5 * (high - low), high + 1.5 * (high - low)]
        np.testing.assert_allclose(found["fences"][scenario], fences)
        beyond = ((curves < fences[0]) | (curves > fences[1])).any(axis=1)
        assert found["outlying"][scenario, own].tolist() == beyond.tolist()
        assert not found["outlying"][scenario, ~own].any()
    assert found["outlying"][1, 3] == 1


def test_a_curve_box_has_the_peaks_of_its_curves(
    team: mpi.Comm | None, everyone: Everyone, file: Path, budget: int
) -> None:
    everyone(lambda: make_central(team, file))
    found = read(file)
    rows = make_rows(make_layout(file.parent)).reshape(SCENARIOS, REPLICATES)
    done = is_done().reshape(SCENARIOS, REPLICATES)
    for scenario in range(1, SCENARIOS):
        own = done[scenario]
        curves = rows["curve"][scenario, own]
        order = np.argsort(-found["score"][scenario, own], kind="stable")
        inner = curves[order[: int(np.ceil(0.9 * own.sum()))]]
        box = found["box"][scenario, 1]
        np.testing.assert_array_equal(box, [inner.min(axis=0), inner.max(axis=0)])
        peaks, times = inner.max(axis=1), inner.argmax(axis=1)
        assert found["peak_box"][scenario, 1].tolist() == [peaks.min(), peaks.max()]
        told = found["peak_time_box"][scenario, 1].tolist()
        assert told == [times.min(), times.max()]


def test_many_ranks_write_the_same_bytes_as_one(
    comm: mpi.Comm, team: mpi.Comm | None, everyone: Everyone, file: Path, budget: int
) -> None:
    alone = file.with_name("alone.h5")
    if comm.rank == 0:
        shutil.copy(file, alone)
        make_central(mpi.alone(), alone)
    everyone(None)
    everyone(lambda: make_central(team, file))
    assert file.read_bytes() == alone.read_bytes()
