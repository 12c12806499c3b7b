"""Bands and summaries: the same bytes from one rank and from many, and numpy's."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from scipy import stats

from mpiens import mpi, store, summary
from mpiens.deadline import Stopped
from mpiens.foundation import lay_down
from mpiens.layout import DONE, PENDING, Layout
from mpiens.outcome import RECORD, Batch
from mpiens.reader import decode
from mpiens.row import checksum, settle
from mpiens.summary import Hyperslabs, WriteError

Everyone = Callable[[Any], list[Any]]

pytestmark = pytest.mark.mpi
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 23
seed = 1
pairing = "common"

[sweep]
beta = [0.1, 0.2, 0.3, 0.4, 0.5]

[bands]
baseline = "beta=0.3"
better = "higher"

[outputs.curve]
dims = ["day"]
length = 30
summaries = ["final", "peak", "peak_time", "total"]

[outputs.cases]
dims = ["week"]
summaries = ["total"]
"""
RETURNED = {
    "curve": ((30,), "<f8"),
    "cases": ((7,), "<i8"),
    "grid": ((3, 4), "<f4"),
    "severe": ((), "|b1"),
}
REPLICATES, SCENARIOS = 23, 5


def make_layout(folder: Path) -> Layout:
    spec = decode(SPEC, f"{folder}/sweep.toml").require()
    return Layout(spec, {"beta": (0.1, 0.2, 0.3, 0.4, 0.5)}, settle(spec, RETURNED))


def make_rows(layout: Layout) -> np.ndarray:
    rng = np.random.default_rng(8)
    rows = np.zeros(layout.spec.tasks, layout.row.dtype)
    rows["curve"] = rng.lognormal(size=rows["curve"].shape).cumsum(axis=1)
    rows["cases"] = rng.integers(-9, 10**12, rows["cases"].shape)
    rows["grid"] = rng.normal(size=rows["grid"].shape).round(1)
    rows["severe"] = rng.integers(0, 2, rows["severe"].shape)
    for task in range(0, len(rows), 4):  # shorter ones are filled up with NaN
        rows["curve"][task, 30 - task % 7 :] = np.nan
    return rows


def is_done() -> np.ndarray:
    """Return which tasks have succeeded: most, but none of the first scenario."""
    done = np.arange(SCENARIOS * REPLICATES) % 11 != 5
    done[:REPLICATES] = False
    return done


@cache
def make_file() -> bytes:
    """Return a file whose tasks are all over, and which holds nothing but rows."""
    with TemporaryDirectory() as folder:
        return lay(Path(folder) / "run.h5").read_bytes()


def lay(path: Path) -> Path:
    layout = make_layout(path.parent)
    new, _ = lay_down(path, layout, {"folder": str(path.parent)})
    store.replace(new, path)
    rows, done = make_rows(layout), is_done()
    records = np.zeros(len(rows), RECORD)
    records["task"] = np.arange(len(rows))
    records["checksum"] = [checksum(row.tobytes()) for row in rows]
    file = store.Store(path, writable=True)
    file.write(Batch(records[done], rows[done]), np.zeros(done.sum(), np.int64))
    file.close()
    return path


def scene(path: Path) -> tuple[Path, Layout, np.ndarray]:
    """Return what summaries and bands are made from."""
    return path, make_layout(path.parent), np.where(is_done(), DONE, PENDING)


@pytest.fixture
def file(comm: mpi.Comm, common_path: Path) -> Path:
    """A file with all rows and nothing else, laid down by the root."""
    path = common_path / "run.h5"
    if comm.rank == 0:
        path.write_bytes(make_file())
    comm.raw.Barrier()
    return path


@pytest.fixture
def team(comm: mpi.Comm) -> mpi.Comm | None:
    """Those who write: all ranks where HDF5 is parallel, else the root alone."""
    import h5py

    if comm.size > 1 and h5py.get_config().mpi:
        return comm
    return mpi.alone() if comm.rank == 0 else None


@pytest.fixture(params=[400, 3000, 8 << 20], ids=lambda budget: f"budget-{budget}")
def budget(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that a rank reads at once: one row, some rows, and all."""
    monkeypatch.setattr(summary, "BUDGET", request.param)
    return int(request.param)


def summarise(team: mpi.Comm | None, path: Path) -> list[int] | None:
    return summary.summarise_rows(team, *scene(path)) if team else None


def make_bands(team: mpi.Comm | None, path: Path) -> None:
    if team:
        summary.make_bands(team, *scene(path))


def read(path: Path, group: str) -> dict[str, np.ndarray]:
    import h5py

    found = {}

    def note(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            found[name] = item[:]

    with h5py.File(path, "r") as opened:
        opened[group].visititems(note)
    return found


def test_bands_are_numpys_quantiles_of_what_is_done(
    team: mpi.Comm | None, everyone: Everyone, file: Path, budget: int
) -> None:
    assert set(everyone(lambda: make_bands(team, file))) == {None}
    found = read(file, "bands")
    rows = make_rows(make_layout(file.parent)).reshape(SCENARIOS, REPLICATES)
    done = is_done().reshape(SCENARIOS, REPLICATES)
    for name, (shape, _) in RETURNED.items():
        assert np.isnan(found[name][0]).all()
        for scenario in range(1, SCENARIOS):
            samples = rows[name][scenario, done[scenario]].astype(float)
            expected = np.quantile(samples, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
            assert found[name][scenario].tobytes() == (expected + 0.0).tobytes()
            mean, std = samples.mean(axis=0), samples.std(axis=0, ddof=1)
            assert found[f"{name}.mean"][scenario].shape == shape
            np.testing.assert_allclose(found[f"{name}.mean"][scenario], mean, 1e-12)
            np.testing.assert_allclose(found[f"{name}.std"][scenario], std, 1e-12)


def test_intervals_enclose_quantiles_and_predictions_enclose_replicates(
    team: mpi.Comm | None, everyone: Everyone, file: Path, budget: int
) -> None:
    everyone(lambda: make_bands(team, file))
    found = read(file, "bands")
    rows = make_rows(make_layout(file.parent)).reshape(SCENARIOS, REPLICATES)
    done = is_done().reshape(SCENARIOS, REPLICATES)
    for name, (shape, _) in RETURNED.items():
        assert found[f"{name}.interval"].shape == (SCENARIOS, 5, 2, *shape)
        assert found[f"{name}.prediction"].shape == (SCENARIOS, 2, 2, *shape)
        assert np.isnan(found[f"{name}.interval"][0]).all()
        for scenario in range(1, SCENARIOS):
            samples = rows[name][scenario, done[scenario]].astype(float)
            ordered = np.sort(samples, axis=0)  # 20 to 22 replicates
            count = len(ordered)
            lowest, highest = find_middle_ranks(count)
            middle = np.stack([ordered[lowest], ordered[highest]])
            middle = np.where(np.isnan(ordered[-1]), np.nan, middle)
            assert np.array_equal(
                found[f"{name}.interval"][scenario, 2], middle, equal_nan=True
            )
            extremes = found[f"{name}.interval"][scenario, [0, 4]]
            assert np.isnan(extremes).all(), "59 replicates are needed"
            outer = np.stack([ordered[0], ordered[-1]])
            outer = np.where(np.isnan(ordered[-1]), np.nan, outer)
            assert np.array_equal(
                found[f"{name}.prediction"][scenario, 0], outer, equal_nan=True
            ), "of 20 replicates 90% of the future ones lie between all"


def find_middle_ranks(count: int) -> tuple[int, int]:
    """Return the ranks that enclose a median, from the binomial distribution itself."""
    chances = [math.comb(count, k) / 2**count for k in range(count + 1)]
    best = None
    for low in range(count):
        for high in range(low + 1, count):
            sure = sum(chances[low + 1 : high + 1])
            skew = abs(sum(chances[: low + 1]) - sum(chances[high + 1 :]))
            if sure >= 0.95 and (best is None or (high - low, skew) < best[0]):
                best = (high - low, skew), (low, high)
    assert best is not None
    return best[1]


def test_differences_are_those_of_twins_that_are_both_done(
    team: mpi.Comm | None, everyone: Everyone, file: Path, budget: int
) -> None:
    everyone(lambda: make_bands(team, file))
    found = read(file, "differences")
    rows = make_rows(make_layout(file.parent)).reshape(SCENARIOS, REPLICATES)
    done = is_done().reshape(SCENARIOS, REPLICATES)
    for name in RETURNED:
        assert np.isnan(found[name][0]).all(), "no replicate is done"
        for scenario in range(1, SCENARIOS):
            both = done[scenario] & done[2]
            twins = (rows[name][index, both].astype(float) for index in (scenario, 2))
            samples = np.subtract(*twins)
            expected = np.quantile(samples, [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
            assert found[name][scenario].tobytes() == (expected + 0.0).tobytes()
            mean, error = samples.mean(axis=0), stats.sem(samples, axis=0)
            half = error * stats.t.ppf(0.975, both.sum() - 1)
            interval = np.stack([mean - half, mean + half])
            np.testing.assert_allclose(
                found[f"{name}.mean_interval"][scenario], interval, 1e-9, 1e-9
            )


def test_summaries_are_those_of_every_row_that_is_done(
    team: mpi.Comm | None, everyone: Everyone, file: Path, budget: int
) -> None:
    broken = everyone(lambda: summarise(team, file))
    assert broken[0] == []
    found = read(file, "summary")
    rows = make_rows(make_layout(file.parent))
    for task, done in enumerate(is_done()):
        scenario, replicate = divmod(task, REPLICATES)
        curve = rows["curve"][task]
        curve = curve[~np.isnan(curve)]
        expected = {
            "curve/final": curve[-1],
            "curve/peak": curve.max(),
            "curve/peak_time": curve.argmax(),
            "curve/total": curve.sum(),
            "cases/total": rows["cases"][task].astype(float).sum(),
            "severe/final": rows["severe"][task],
        }
        for name, value in expected.items():
            number = found[name][scenario, replicate]
            assert number == value if done else np.isnan(number)


def test_many_ranks_write_the_same_bytes_as_one(
    comm: mpi.Comm, team: mpi.Comm | None, everyone: Everyone, file: Path, budget: int
) -> None:
    alone = file.with_name("alone.h5")
    if comm.rank == 0:
        shutil.copy(file, alone)
        summarise(mpi.alone(), alone)
        make_bands(mpi.alone(), alone)
    everyone(None)
    everyone(lambda: summarise(team, file))
    everyone(lambda: make_bands(team, file))
    assert file.read_bytes() == alone.read_bytes()


def test_rows_that_broke_are_found(
    comm: mpi.Comm, team: mpi.Comm | None, everyone: Everyone, file: Path, budget: int
) -> None:
    tasks = [REPLICATES, REPLICATES + 1, 61, 114]
    assert is_done()[tasks].all()
    if comm.rank == 0:
        for task, name in zip(tasks, RETURNED, strict=True):
            flip(file, name, task)
        flip(file, "curve", 3)  # of a task that is not done, hence no row at all
    everyone(None)
    broken = everyone(lambda: summarise(team, file))
    assert broken[0] == tasks
    assert not any(broken[1:])


def flip(path: Path, name: str, task: int) -> None:
    """Change one bit of a row, as a failing disk would."""
    import h5py

    with h5py.File(path, "r") as opened:
        dataset = opened[f"series/{name}"]
        size = dataset.nbytes // (SCENARIOS * REPLICATES)
        offset = dataset.id.get_offset() + (task + 1) * size - 1
    with path.open("r+b") as raw:
        raw.seek(offset)
        [byte] = raw.read(1)
        raw.seek(offset)
        raw.write(bytes([byte ^ 1]))


def test_what_keeps_one_rank_from_writing_is_an_error_on_all(
    comm: mpi.Comm, team: mpi.Comm | None, everyone: Everyone, file: Path
) -> None:
    def write() -> None:
        if team is None:
            return
        slabs = Hyperslabs(team, file)

        def make() -> dict[str, Any]:
            if team.rank == team.size - 1:
                raise OSError(28, "No space left on device")
            return {}

        try:
            slabs.write(["/bands/curve"], make)
        finally:
            slabs.close()

    errors = [error for error in everyone(write) if error is not None]
    assert len(errors) == (1 if team is None or team.size == 1 else comm.size)
    assert all(type(error) is WriteError for error in errors)
    assert "No space left on device" in str(errors[-1])


def test_what_was_not_written_is_found_before_the_file_is_closed(
    comm: mpi.Comm, team: mpi.Comm | None, everyone: Everyone, file: Path
) -> None:
    def write() -> None:
        if team is None:
            return
        slabs = Hyperslabs(team, file)
        here = (slice(1, 2), slice(0, 30))
        own = {"/bands/curve.mean": (here, np.ones((1, 30)))}
        slabs.write(["/bands/curve.mean"], lambda: own if team.rank == 0 else {})
        team.raw.Barrier()
        if team.rank == 0:
            spoil(file, "/bands/curve.mean")
        team.raw.Barrier()
        slabs.close()

    errors = [error for error in everyone(write) if error is not None]
    assert len(errors) == (1 if team is None or team.size == 1 else comm.size)
    assert all(type(error) is WriteError for error in errors)
    assert "/bands/curve.mean does not hold" in str(errors[0])
    # else the garbage collector closes it some day, and waits for the other ranks
    assert everyone(count_open_files()) == [0] * comm.size


@pytest.mark.parametrize("make", [summary.summarise_rows, summary.make_bands])
def test_a_stop_that_one_rank_hears_of_stops_all(
    team: mpi.Comm | None,
    everyone: Everyone,
    file: Path,
    make: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(summary, "BUDGET", 400)  # so that there are many turns
    looks = []

    def look() -> None:
        looks.append(1)
        if team is not None and team.rank == team.size - 1 and len(looks) == 2:
            raise Stopped("SIGTERM was received")

    def act() -> Any:
        return make(team, *scene(file), look) if team else None

    answers = [answer for answer in everyone(act) if answer is not None]
    assert {type(answer) for answer in answers} == {Stopped}
    assert "SIGTERM was received" in {str(answer) for answer in answers}
    assert everyone(count_open_files()) == [0] * len(everyone(0))
    everyone(lambda: make(team, *scene(file)) if team else None)  # and nothing is hurt


def count_open_files() -> int:
    import h5py

    return int(h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE))


def spoil(path: Path, name: str) -> None:
    """Overwrite a dataset behind the back of HDF5."""
    import h5py

    other = path.with_name("other.h5")
    other.write_bytes(make_file())
    with h5py.File(other, "r") as opened:
        offset, size = opened[name].id.get_offset(), opened[name].nbytes
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(bytes(size))
