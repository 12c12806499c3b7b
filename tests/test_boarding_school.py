"""The boarding school: its README's line, against the data and independent fits."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Launcher
from scipy.integrate import solve_ivp
from scipy.optimize import least_squares
from test_small_examples import EXAMPLES, SEED, import_model, run_example

NAME = "boarding_school"
TARGETS = ("in_bed", "convalescent")
FITTED = ("beta", "bed_days", "rest_days")
DAYS = np.arange(1, 15)


def read_data() -> dict[str, np.ndarray]:
    """The columns of the data, read without mpiens."""
    with (EXAMPLES / NAME / "observed.csv").open() as file:
        rows = [*csv.DictReader(file)]
    return {name: np.array([float(r[name]) for r in rows]) for name in rows[0]}


def read_best(file: h5py.File) -> tuple[int, dict[str, float]]:
    """The trial whose loss is least, and its parameters."""
    best = int(np.nanargmin(file["trials/loss"][:]))
    return best, {name: float(file[f"parameters/{name}"][best]) for name in FITTED}


def count_within(file: h5py.File, name: str) -> int:
    """How many observed values lie within the 90% band of the best trial."""
    samples = file[f"series/{name}"][0][:, DAYS]
    low, high = np.quantile(samples, [0.05, 0.95], axis=0)
    observed = read_data()[name]
    return int(((low <= observed) & (observed <= high)).sum())


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """The README's line, on four ranks."""
    return run_example(NAME, tmp_path_factory.mktemp(NAME))


def test_the_data_are_those_of_the_journal() -> None:
    data = read_data()
    assert data["day"].tolist() == DAYS.tolist()
    assert data["in_bed"].sum() == 1559
    assert data["convalescent"].sum() == 937
    assert (data["in_bed"].max(), data["convalescent"].max()) == (298, 176)


def test_the_fit_is_plausible(school: Launcher) -> None:
    with h5py.File(school.folder / f"{NAME}.h5") as file:
        _, found = read_best(file)
    assert 1.1 < found["beta"] < 1.8
    assert 1.7 < found["bed_days"] < 2.6
    assert 0.9 < found["rest_days"] < 1.9
    assert 2.3 < found["beta"] * found["bed_days"] < 3.6


def test_the_bands_lie_over_the_data(school: Launcher) -> None:
    with h5py.File(school.folder / f"{NAME}.confirm.h5") as file:
        assert file["series/in_bed"].shape == (3, 200, 15)
        within = {name: count_within(file, name) for name in TARGETS}
        for name in TARGETS:
            observed = file[f"observed/{name}"][:]
            np.testing.assert_array_equal(observed[DAYS], read_data()[name])
            assert np.isnan(observed[0])
    assert within["in_bed"] >= 11
    assert within["convalescent"] >= 9
    output = school.started[0].output
    for name, count in within.items():
        assert f", {name}: {count} of 14 observed values lie within [5%, 95%]" in output


def test_what_is_printed_is_the_best_of_the_file(school: Launcher) -> None:
    with h5py.File(school.folder / f"{NAME}.h5") as file:
        best, found = read_best(file)
        loss = float(file["trials/loss"][best])
    lines = school.started[0].output.splitlines()
    row = next(line.split() for line in lines if line.split()[:1] == [str(best)])
    printed = [float(row[1].replace(",", "")), *map(float, row[-3:])]
    assert printed == pytest.approx([loss, *found.values()], rel=2e-3)


def test_losses_are_those_of_a_plain_loop(school: Launcher) -> None:
    model, data = import_model(NAME), read_data()
    with h5py.File(school.folder / f"{NAME}.h5") as file:
        best, _ = read_best(file)
        for trial in (0, best):
            given = {n: float(file[f"parameters/{n}"][trial]) for n in FITTED}
            total = 0.0
            for name in TARGETS:
                runs = [simulate(model, trial, r, given)[name] for r in range(5)]
                np.testing.assert_array_equal(file[f"series/{name}"][trial], runs)
                errors = np.mean(runs, axis=0)[DAYS] - data[name]
                loss = file[f"trials/target/{name}"][trial]
                assert loss == pytest.approx(np.mean(errors**2), rel=1e-12)
                total += loss
            assert file["trials/loss"][trial] == pytest.approx(total, rel=1e-12)


def simulate(
    model: ModuleType, trial: int, replicate: int, given: dict[str, float]
) -> Any:
    """One task, as a plain loop would run it."""
    own = int.from_bytes(
        hashlib.sha256(f"trial={trial}".encode()).digest()[:8], "little"
    )
    stream = np.random.SeedSequence(SEED, spawn_key=(own, replicate))
    return model.simulate(np.random.default_rng(stream), stages=3, **given)


def test_two_targets_cost_what_one_does(school: Launcher) -> None:
    shown = school.mpiens("show", f"{NAME}.h5", "--json")
    tasks = json.loads(shown.output)["tasks"]
    assert tasks == {"done": 200 * 5, "failed": 0, "pending": 0}


def test_the_fit_is_the_same_on_two_ranks(school: Launcher) -> None:
    spec = f"examples/{NAME}/calibration.toml"
    two = school.mpiens("-n", "2", spec, "-o", "two.h5", limit=90)
    assert two.code == 0, two.errors
    for end in (".h5", ".confirm.h5"):
        assert school.digest(f"two{end}") == school.digest(f"{NAME}{end}")


# Against a deterministic model


def solve(beta: float, bed_days: float, rest_days: float, stages: int) -> np.ndarray:
    """The shares in bed and convalescent by day, (2, days), of boys without number."""
    rates = np.repeat([stages / bed_days, stages / rest_days], stages)

    def change(_: float, state: np.ndarray) -> np.ndarray:
        infected = beta * state[0] * state[1 : 1 + stages].sum()
        left = rates * state[1:]
        return np.append(-infected, np.append(infected, left[:-1]) - left)

    start = np.zeros(1 + 2 * stages)
    start[:2] = 1 - 3 / 763, 3 / 763
    found = solve_ivp(change, (1, 14), start, t_eval=DAYS, rtol=1e-8, atol=1e-10).y
    return np.stack(
        [found[1 : 1 + stages].sum(axis=0), found[1 + stages :].sum(axis=0)]
    )


@pytest.mark.parametrize("stages", [1, 3])
def test_a_large_school_is_deterministic(stages: int) -> None:
    model = import_model(NAME)
    many = 100_000
    model.BOYS, model.FIRST, model.STEPS = many * 763, many * 3, 200
    given = {"beta": 1.6, "bed_days": 2.2, "rest_days": 1.4, "stages": stages}
    found = model.simulate(np.random.default_rng(SEED), **given)
    shares = np.stack([found[name][DAYS] for name in TARGETS]) / model.BOYS
    np.testing.assert_allclose(shares, solve(**given), rtol=0, atol=0.005)


def test_stays_of_one_stage_give_a_textbooks_fit(school: Launcher) -> None:
    observed = read_data()["in_bed"]
    textbook = least_squares(
        lambda given: 763 * solve(*given, 1.5, 1)[0] - observed, [1.5, 2.0]
    ).x
    # as the README has it
    assert textbook == pytest.approx([1.70, 2.24], abs=0.005)
    assert textbook.prod() == pytest.approx(3.80, abs=0.005)
    folder = Path(school.folder, "examples", NAME)
    text = (folder / "calibration.toml").read_text(encoding="utf-8")
    assert text.count("\nstages = 3") == 1
    (folder / "one.toml").write_text(text.replace("\nstages = 3", "\nstages = 1"))
    ran = school.mpiens("-n", "2", str(folder / "one.toml"), "-o", "one.h5", limit=90)
    assert ran.code == 0, ran.errors
    with h5py.File(school.folder / "one.h5") as file:
        _, found = read_best(file)
    assert found["beta"] == pytest.approx(textbook[0], rel=0.2)
    assert found["bed_days"] == pytest.approx(textbook[1], rel=0.15)
    assert found["beta"] * found["bed_days"] == pytest.approx(3.8, rel=0.2)
