"""Shards: every task is some job's, and merged they are the file of one job."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Launch, Launcher, wait_until, write
from hypothesis import given
from hypothesis import strategies as st

from mpiens.shard import Shard, default_file

PENDING, DONE, FAILED, UNUSED = range(4)
TASKS = 30

# The first tasks fail, the first that succeeds returns integers and all others return
# floats: so shards agree with each other only where they settle the layout together.
MODEL = """
import os
import time
from pathlib import Path

import numpy as np


def simulate(rng, replicate, scenario):
    with open("calls", "a") as log:
        log.write(f"{scenario} {replicate}\\n")
    if Path("slow").exists():
        time.sleep(0.1)
    if replicate < 3 or replicate == 7:
        raise ValueError("no luck")
    walk = rng.integers(9, size=40).cumsum()
    if Path("random").exists():
        walk = walk + 1 + os.urandom(1)[0]
    return {"walk": walk if replicate == 3 else walk.astype(np.int32), "luck": walk[3]}
"""
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 10
seed = 5
[scenarios.one]
[scenarios.two]
[scenarios.three]
[outputs.walk]
dims = ["step"]
summaries = ["final", "peak"]
[bands]
baseline = "one"
[limits]
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "sweep.toml", SPEC)
    return tmp_path


def run(launcher: Launcher, *words: str) -> Launch:
    launch = launcher.mpiens("sweep.toml", *words)
    assert launch.code in (0, 3), launch.errors
    return launch


def run_shards(launcher: Launcher, count: int) -> list[str]:
    names = [f"sweep.{index}-of-{count}.h5" for index in range(count)]
    for index in range(count):
        run(launcher, "--shard", f"{index}/{count}")
    return names


def statuses(file: Path) -> np.ndarray:
    with h5py.File(file) as opened:
        status: np.ndarray = opened["tasks/status"][:].reshape(-1)
        return status


@given(st.integers(0, 500), st.integers(1, 60))
def test_every_task_is_of_one_shard_and_shards_are_alike(
    tasks: int, count: int
) -> None:
    numbers = np.arange(tasks)
    owned = [Shard(index, count).owns(numbers) for index in range(count)]
    assert (np.sum(owned, axis=0) == 1).all()
    sizes = [int(own.sum()) for own in owned]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("text", ["4/4", "-1/4", "1", "1/0", "a/b", "1/4/5", ""])
def test_what_is_no_shard_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="is no shard: write I/N"):
        Shard.parse(text)


def test_a_shard_has_a_file_of_its_own() -> None:
    file = default_file(Path("folder/sweep.toml"), Shard(2, 12))
    assert file == Path("sweep.2-of-12.h5")
    assert Shard.of_name(file) == Shard(2, 12)
    assert Shard.of_name(file.with_name(file.name + ".partial")) == Shard(2, 12)
    assert Shard.of_name(Path("sweep.h5")) is None


@pytest.mark.parametrize("count", [1, 3, 4])
def test_merged_shards_are_the_answer_of_one_job(
    launcher: Launcher, here: Path, count: int
) -> None:
    run(launcher, "-o", "one.h5")
    names = run_shards(launcher, count)
    launch = launcher.mpiens("merge", *names, "-o", "all.h5")
    assert launch.code == 3, launch.errors
    assert f"{TASKS} tasks of {count} files merged, 12 failed" in launch.errors
    assert "walk, final" in launch.output
    assert launcher.digest("all.h5") == launcher.digest("one.h5")
    with h5py.File(here / "all.h5") as merged, h5py.File(here / "one.h5") as one:
        assert merged["series/walk"].dtype == one["series/walk"].dtype == np.int64
        for name in ("series/walk", "series/luck", "bands/walk", "failures/task"):
            ours, theirs = merged[name][:], one[name][:]
            if name == "failures/task":
                ours, theirs = np.sort(ours), np.sort(theirs)
            np.testing.assert_array_equal(ours, theirs)
    assert not [*here.glob("all.h5.*")]


def test_a_shard_runs_its_own_tasks_and_those_that_settle_the_layout(
    launcher: Launcher, here: Path
) -> None:
    run(launcher, "--shard", "2/4")
    called = (here / "calls").read_text().splitlines()
    names = ["one", "two", "three"]
    tasks = [names.index(n) * 10 + int(r) for n, r in map(str.split, called)]
    assert sorted(tasks) == sorted({*range(2, TASKS, 4), 0, 1, 2, 3})
    status = statuses(here / "sweep.2-of-4.h5")
    own = np.arange(TASKS) % 4 == 2
    assert (status[~own] == UNUSED).all()
    assert np.isin(status[own], (DONE, FAILED)).all()
    shown = launcher.mpiens("show", "sweep.2-of-4.h5", "--json")
    assert json.loads(shown.output)["tasks"] == {"done": 4, "failed": 3, "pending": 0}
    assert launcher.mpiens("sweep.toml", "--shard", "2/4").code == 3
    assert len((here / "calls").read_text().splitlines()) == len(called)


def test_there_may_be_more_shards_than_tasks(launcher: Launcher, here: Path) -> None:
    assert run(launcher, "--shard", "31/32").code == 0
    assert (statuses(here / "sweep.31-of-32.h5") == UNUSED).all()


@pytest.mark.parametrize("environment", ["mpich", "debian"])
def test_ranks_run_and_merge_shards_too(
    launcher: Launcher, here: Path, environment: str
) -> None:
    run(launcher, "-o", "one.h5")
    for index in range(2):
        words = ["sweep.toml", "--shard", f"{index}/2"]
        launch = launcher.ranks(environment, 3, *words)
        assert launch.code == 3, launch.errors
    names = ["sweep.0-of-2.h5", "sweep.1-of-2.h5"]
    launch = launcher.ranks(environment, 3, "merge", *names, "-o", "all.h5")
    assert launch.code == 3, launch.errors
    assert launcher.digest("all.h5") == launcher.digest("one.h5")


def test_a_shard_that_was_killed_goes_on(launcher: Launcher, here: Path) -> None:
    run(launcher, "-o", "one.h5")
    (here / "slow").touch()
    (here / "calls").unlink()
    launch = launcher.start_ranks("mpich", 2, "sweep.toml", "--shard", "0/2")
    partial = here / "sweep.0-of-2.h5.partial"
    wait_until(lambda: partial.exists() and DONE in statuses(partial))
    launch.kill()
    launch.process.communicate(timeout=20)
    (here / "slow").unlink()
    names = run_shards(launcher, 2)
    assert launcher.mpiens("merge", *names, "-o", "all.h5").code == 3
    assert launcher.digest("all.h5") == launcher.digest("one.h5")


def test_rows_that_are_not_kept_are_kept_until_they_are_merged(
    launcher: Launcher, here: Path
) -> None:
    spec = SPEC.replace("[bands]", "keep = false\n[bands]")
    write(here, "sweep.toml", spec)
    run(launcher, "-o", "one.h5")
    names = run_shards(launcher, 3)
    assert launcher.mpiens("merge", *names, "-o", "all.h5").code == 3
    assert launcher.digest("all.h5") == launcher.digest("one.h5")
    with h5py.File(here / "all.h5") as merged:
        assert "walk" not in merged["series"]
        assert "walk" in merged["bands"]


# gaps


def test_a_gap_is_told_with_the_line_that_closes_it(
    launcher: Launcher, here: Path
) -> None:
    run(launcher, "-o", "one.h5")
    for index in (0, 3):
        run(launcher, "--shard", f"{index}/4")
    names = [f"sweep.{index}-of-4.h5" for index in range(4)]
    launch = launcher.mpiens("merge", *names, "-o", "all.h5")
    assert launch.code == 75
    assert launch.output == ""
    assert "sweep.1-of-4.h5: there is no such file yet" in launch.errors
    assert "15 of 30 tasks are missing; all.h5.partial has the others" in launch.errors
    assert "shard 1 of 4 lacks 8 tasks" in launch.errors
    assert "shard 2 of 4 lacks 7 tasks" in launch.errors
    line = "sbatch --array=1,2 --export=ALL,SHARDS=4 array.sbatch sweep.toml"
    assert line in launch.errors
    assert not (here / "all.h5").exists()
    assert launcher.mpiens("show", "all.h5.partial", "--digest").code == 75
    # the shard that comes late is joined with what was merged before
    run(launcher, "--shard", "1/4")
    (here / names[0]).unlink()
    launch = launcher.mpiens("merge", *names[1:], "-o", "all.h5")
    assert launch.code == 75
    assert "7 of 30 tasks are missing" in launch.errors
    # and a job of its own may run the rest
    shutil.copy(here / "all.h5.partial", here / "rest.h5.partial")
    run(launcher, "-o", "rest.h5")
    assert launcher.digest("rest.h5") == launcher.digest("one.h5")
    run(launcher, "--shard", "2/4")
    assert launcher.mpiens("merge", *names[1:], "-o", "all.h5").code == 3
    assert launcher.digest("all.h5") == launcher.digest("one.h5")


def test_a_partial_shard_gives_what_it_has(launcher: Launcher, here: Path) -> None:
    names = run_shards(launcher, 2)
    whole = here / names[1]
    part = whole.with_name(whole.name + ".partial")
    whole.rename(part)
    with h5py.File(part, "r+") as file:
        del file.attrs["digest"]
        offset = file["tasks/status"].id.get_offset()
    with part.open("r+b") as raw:
        raw.seek(offset + 29)
        raw.write(bytes([PENDING]))
    launch = launcher.mpiens("merge", *names, "-o", "all.h5")
    assert launch.code == 75
    assert "shard 1 of 2 lacks 1 tasks" in launch.errors


def test_a_rotten_row_is_left_out(launcher: Launcher, here: Path) -> None:
    names = run_shards(launcher, 2)
    with h5py.File(here / names[0]) as file:
        offset = file["series/walk"].id.get_offset() + 14 * 40 * 8
    with (here / names[0]).open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"rot")
    launch = launcher.mpiens("merge", *names, "-o", "all.h5")
    assert launch.code == 75
    assert f"1 rows of {names[0]} do not have their checksums" in launch.errors
    assert "shard 0 of 2 lacks 1 tasks" in launch.errors


# what belongs together, and what does not


def test_rows_that_overlap_have_to_agree(launcher: Launcher, here: Path) -> None:
    run(launcher, "-o", "one.h5")
    names = [*run_shards(launcher, 2), *run_shards(launcher, 3)]
    assert launcher.mpiens("merge", *names, "-o", "all.h5").code == 3
    assert launcher.digest("all.h5") == launcher.digest("one.h5")
    (here / "random").touch()
    run(launcher, "--shard", "0/5")
    launch = launcher.mpiens("merge", *names, "sweep.0-of-5.h5", "-o", "other.h5")
    assert launch.code == 2
    assert "have other results for 3 of the same tasks" in launch.errors
    assert "scenario 'one', replicate 5" in launch.errors
    assert not [*here.glob("other.h5*")]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seed = 5", "seed = 6", "[ensemble] seed"),
        ("replicates = 10", "replicates = 11", "[ensemble] replicates"),
        ("[scenarios.three]", "[scenarios.four]", "[scenarios] four"),
        ('["final", "peak"]', '["final"]', "[outputs] walk"),
        ('baseline = "one"', 'baseline = "two"', "[bands] baseline"),
    ],
)
def test_shards_of_different_specs_are_refused_by_their_keys(
    launcher: Launcher, here: Path, old: str, new: str, told: str
) -> None:
    run(launcher, "--shard", "0/2")
    write(here, "sweep.toml", SPEC.replace(old, new))
    run(launcher, "--shard", "1/2")
    names = ["sweep.0-of-2.h5", "sweep.1-of-2.h5"]
    launch = launcher.mpiens("merge", *names, "-o", "all.h5")
    assert launch.code == 2
    assert f"{told}: sweep.1-of-2.h5 and sweep.0-of-2.h5 differ" in launch.errors
    assert "Traceback" not in launch.errors
    assert not [*here.glob("all.h5*")]


def test_limits_may_differ(launcher: Launcher, here: Path) -> None:
    run(launcher, "--shard", "0/2")
    write(here, "sweep.toml", SPEC + "retries = 1\n")
    run(launcher, "--shard", "1/2")
    names = ["sweep.0-of-2.h5", "sweep.1-of-2.h5"]
    assert launcher.mpiens("merge", *names, "-o", "all.h5").code == 3


def test_shards_of_different_code_are_refused(launcher: Launcher, here: Path) -> None:
    run(launcher, "--shard", "0/2")
    write(here, "model.py", MODEL + "\n# mended\n")
    run(launcher, "--shard", "1/2")
    names = ["sweep.0-of-2.h5", "sweep.1-of-2.h5"]
    launch = launcher.mpiens("merge", *names, "-o", "all.h5")
    assert launch.code == 2
    assert "were made by different code" in launch.errors


def test_a_shard_that_is_not_what_its_digest_says_is_refused(
    launcher: Launcher, here: Path
) -> None:
    names = run_shards(launcher, 2)
    with h5py.File(here / names[1], "r+") as file:
        file["tasks/checksum"][2, 9] += 1
    launch = launcher.mpiens("merge", *names, "-o", "all.h5")
    assert launch.code == 2
    assert f"{names[1]} is not what its digest says" in launch.errors


def test_a_shard_is_not_mistaken_for_another(launcher: Launcher, here: Path) -> None:
    run(launcher, "--shard", "0/2", "-o", "x.h5")
    for words in (["--shard", "1/2"], []):
        launch = launcher.mpiens("sweep.toml", "-o", "x.h5", *words)
        assert launch.code == 2
        assert "x.h5 is shard 0/2" in launch.errors


def test_files_that_are_not_there_or_not_ours_are_told(
    launcher: Launcher, here: Path
) -> None:
    for name in ("sweep.0-of-2.h5", "other.h5"):
        launch = launcher.mpiens("merge", name, "-o", "all.h5")
        assert launch.code == 2
        assert name in launch.errors
        assert "Traceback" not in launch.errors


def test_a_merged_file_is_left_as_it_is(launcher: Launcher, here: Path) -> None:
    names = run_shards(launcher, 2)
    assert launcher.mpiens("merge", *names, "-o", "all.h5").code == 3
    before = (here / "all.h5").read_bytes()
    launch = launcher.mpiens("merge", *names, "-o", "all.h5")
    assert launch.code == 3
    assert "all.h5 is complete: nothing to do" in launch.errors
    assert (here / "all.h5").read_bytes() == before
    write(here, "sweep.toml", SPEC.replace("seed = 5", "seed = 6"))
    for index in range(2):
        run(launcher, "--shard", f"{index}/2", "--fresh")
    launch = launcher.mpiens("merge", *names, "-o", "all.h5")
    assert launch.code == 2
    assert "[ensemble] seed: has changed since all.h5 was merged" in launch.errors
    assert launcher.mpiens("merge", *names, "-o", "all.h5", "--fresh").code == 3
