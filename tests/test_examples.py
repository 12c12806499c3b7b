"""The examples do what they say."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Launcher, python_of, write

EXAMPLES = Path(__file__).parents[1] / "examples"

# Covasim itself, told by the spec what to do; it knows nothing of the example's model.
DIRECT = """
import json
import sys

import covasim as cv
import numpy as np

seeds, scenarios, outputs = json.loads(sys.argv[1])
found = {name: [] for name in outputs}
for parameters in scenarios:
    for seed in seeds:
        interventions = []
        if "beta_change" in parameters:
            changes = parameters["beta_change"]
            interventions.append(cv.change_beta(days=0, changes=changes))
        if "daily_tests" in parameters:
            tests = parameters["daily_tests"]
            interventions.append(cv.test_num(daily_tests=tests))
        sim = cv.Sim(
            pop_size=parameters["agents"],
            pop_infected=parameters["introduced"],
            n_days=parameters["days"],
            rand_seed=seed,
            interventions=interventions,
            verbose=0,
        )
        sim.run()
        for name in outputs:
            found[name].append(sim.results[name].values)
shape = (len(scenarios), len(seeds), -1)
np.savez("direct.npz", **{n: np.reshape(v, shape) for n, v in found.items()})
"""


def copy_example(name: str, folder: Path, changes: dict[str, str]) -> str:
    """Copy an example without what it makes, change its spec, and return that."""
    (folder / name).mkdir()
    for path in (EXAMPLES / name).glob("*.py"):
        shutil.copy(path, folder / name)
    text = (EXAMPLES / name / "sweep.toml").read_text()
    for old, new in changes.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    write(folder, f"{name}/sweep.toml", text)
    return text


def test_covasims_bands_are_numpys_quantiles_of_covasim_run_directly(
    launcher: Launcher,
) -> None:
    folder = launcher.folder
    changes = {
        "replicates = 30": "replicates = 5",
        "agents = 5000": "agents = 1000",
        "days = 60": "days = 30",
    }
    spec = tomllib.loads(copy_example("covasim", folder, changes))
    launch = launcher.ranks("mpich", 2, "covasim/sweep.toml", "-o", "covasim.h5")
    assert launch.code == 0, launch.errors

    entropy, levels = spec["ensemble"]["seed"], spec["bands"]["levels"]
    streams = [np.random.SeedSequence(entropy, spawn_key=(r,)) for r in range(5)]
    seeds = [int(stream.generate_state(1)[0]) for stream in streams]
    scenarios = [spec["parameters"] | own for own in spec["scenarios"].values()]
    question = json.dumps([seeds, scenarios, list(spec["outputs"])])
    script = write(folder, "direct.py", DIRECT)
    asked = launcher.run([python_of("mpich"), str(script), question], 90)
    assert asked.code == 0, asked.errors

    with (
        h5py.File(folder / "covasim.h5") as file,
        np.load(folder / "direct.npz") as direct,
    ):
        assert file["scenario"].asstr()[:].tolist() == list(spec["scenarios"])
        for name in spec["outputs"]:
            expected = np.quantile(direct[name], levels, axis=1).swapaxes(0, 1) + 0.0
            assert file[f"bands/{name}"][:].tobytes() == expected.tobytes()
        cumulated = direct["cum_infections"][:, :, -1].tolist()
    assert all(len(set(runs)) > 1 for runs in cumulated)  # replicates differ
    assert len(set(map(tuple, cumulated))) == 3  # and so do scenarios


@pytest.fixture(scope="module")
def epidemic(tmp_path_factory: pytest.TempPathFactory) -> Launcher:
    """Two replicates of the example on two ranks, which make the town first."""
    folder = tmp_path_factory.mktemp("epidemic")
    copy_example("epidemic", folder, {"replicates = 40": "replicates = 2"})
    launcher = Launcher(folder)
    launch = launcher.ranks("mpich", 2, "epidemic/sweep.toml", "-o", "epidemic.h5")
    assert launch.code == 0, launch.errors
    return launcher


def test_the_epidemic_ends_with_a_table_that_compares_every_scenario(
    epidemic: Launcher,
) -> None:
    shown = epidemic.mpiens("show", "epidemic.h5").output
    table = [line.split() for line in shown.splitlines()]
    assert table == [line.split() for line in epidemic.started[0].output.splitlines()]
    document = json.loads(epidemic.mpiens("show", "epidemic.h5", "--json").output)
    assert document["tasks"] == {"done": 6, "failed": 0, "pending": 0}
    tables = 5  # peak and its time of two outputs, the last value of the third
    for name in ("baseline", "masks", "early_closing"):
        rows = [words for words in table if words[:2] == [name, "2"]]
        assert len(rows) == tables
        compared = [words for words in table if words[:3] == [name, "vs", "baseline"]]
        assert len(compared) == (0 if name == "baseline" else tables)


def test_the_town_is_large_and_always_the_same(epidemic: Launcher) -> None:
    folder = epidemic.folder / "epidemic"
    (epidemic.folder / "again").mkdir()
    script = shutil.copy(folder / "make_town.py", epidemic.folder / "again")
    made = epidemic.run([python_of("mpich"), script])
    assert made.code == 0, made.errors
    with (
        h5py.File(folder / "town.h5") as town,
        h5py.File(epidemic.folder / "again" / "town.h5") as again,
    ):
        assert dict(town.attrs) == dict(again.attrs)
        assert town.keys() == again.keys()
        assert sum(dataset.nbytes for dataset in town.values()) >= 64e6
        for name, dataset in town.items():
            assert dataset.dtype == again[name].dtype
            assert np.array_equal(dataset, again[name])
