"""Going on: after a kill, after growth, after changes, and what is refused."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Launch, Launcher, write

MODEL = """
import os, signal, time
from pathlib import Path
import numpy as np

def simulate(rng, scenario, replicate, *, beta, days=6):
    task = f"{scenario}-{replicate}"
    with open(os.environ["CALLS"], "a") as file:
        file.write(task + "\\n")
    if task == os.environ.get("KILL_AT"):
        partial = Path(os.environ["CALLS"]).with_name("run.h5.partial")
        while not partial.exists():  # tasks run while the file is being laid down
            time.sleep(0.01)
        time.sleep(0.3)
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    if task in os.environ.get("FAIL_AT", "").split():
        raise ValueError(f"no luck in {task}")
    walk = beta * rng.normal(size=days).cumsum()
    return {"walk": walk, "steps": rng.integers(0, 99, 2000), "last": walk[-1]}
"""
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = {replicates}
seed = {seed}

[parameters]
days = {days}

{scenarios}

[outputs.walk]
dims = ["day"]
{walk}

[outputs.steps]
keep = {keep}

[bands]
{bands}
"""
PLAIN = {
    "replicates": 4,
    "seed": 11,
    "days": 6,
    "scenarios": {"a": 0.5, "b": 1.0},
    "walk": "",
    "keep": "true",
    "bands": 'baseline = "a"',
}
STATUS = {"pending": 0, "done": 1, "failed": 2}


@dataclass
class Work:
    """A folder with a spec that changes, and a model that counts its calls."""

    folder: Path
    launcher: Launcher

    def spec(self, **changes: object) -> None:
        told = PLAIN | changes
        tables = [f"[scenarios.{n}]\nbeta = {b}" for n, b in told["scenarios"].items()]
        (self.folder / "run.toml").write_text(
            SPEC.format(**told | {"scenarios": "\n".join(tables)})
        )

    def run(self, *words: str, **variables: str) -> Launch:
        """Run, and keep only the calls of this run."""
        (self.folder / "calls").write_text("")
        command = [sys.executable, "-m", "mpiens", "run.toml", *words]
        calls = str(self.folder / "calls")
        return self.launcher.run(command, CALLS=calls, **variables)

    @property
    def calls(self) -> list[str]:
        return sorted((self.folder / "calls").read_text().split())

    @property
    def file(self) -> Path:
        return self.folder / "run.h5"

    @property
    def partial(self) -> Path:
        return self.folder / "run.h5.partial"

    def tasks(self, file: Path, status: str) -> list[str]:
        """Return the tasks of a status by name, as h5py alone reads them."""
        with h5py.File(file, "r") as opened:
            names = opened["scenario"].asstr()[:]
            found = np.argwhere(opened["/tasks/status"][:] == STATUS[status])
        return sorted(f"{names[s]}-{r}" for s, r in found)

    def digest(self) -> str:
        with h5py.File(self.file, "r") as opened:
            return str(opened.attrs["digest"])


@dataclass
class Prepared:
    """Runs that several tests begin with or compare with, each made once."""

    root: Path
    made: dict[str, Path] = field(default_factory=dict)

    def run(self, kill_at: str = "", **changes: object) -> Work:
        """Return a folder in which a spec was run, to its end or to a kill."""
        key = repr((kill_at, sorted(changes.items())))
        if key not in self.made:
            self.made[key] = self.root / str(len(self.made))
            self.made[key].mkdir()
            work = Work(self.made[key], Launcher(self.made[key]))
            write(work.folder, "model.py", MODEL)
            work.spec(**changes)
            launch = work.run(KILL_AT=kill_at)
            assert launch.code == (-9 if kill_at else 0), launch.errors
            assert work.file.exists() == (not kill_at)
            assert work.partial.exists() == bool(kill_at)
        return Work(self.made[key], Launcher(self.made[key]))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return Prepared(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def work(launcher: Launcher, tmp_path: Path) -> Work:
    """A folder in which nothing has been run."""
    write(tmp_path, "model.py", MODEL)
    work = Work(tmp_path, launcher)
    work.spec()
    return work


@pytest.fixture
def complete(work: Work, prepared: Prepared) -> Work:
    """A folder with a complete file."""
    shutil.copytree(prepared.run().folder, work.folder, dirs_exist_ok=True)
    return work


@pytest.fixture
def begun(work: Work, prepared: Prepared) -> Work:
    """A folder with the partial file of a job that was killed in its seventh task."""
    shutil.copytree(prepared.run("b-2").folder, work.folder, dirs_exist_ok=True)
    return work


def read(file: Path, path: str) -> np.ndarray:
    with h5py.File(file, "r") as opened:
        return opened[path][:]


def flip(file: Path, dataset: str, byte: int) -> None:
    with h5py.File(file, "r") as opened:
        place = opened[dataset].id.get_offset() + byte
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def assert_refused(launch: Launch, *sentences: str) -> None:
    assert launch.code == 2, launch.errors
    assert launch.output == ""
    assert "Traceback" not in launch.errors
    for sentence in sentences:
        assert sentence in launch.errors
    assert len(launch.errors.strip().splitlines()) == len(sentences), launch.errors


# after a kill


def test_after_a_kill_the_same_command_runs_only_what_is_missing(
    begun: Work, prepared: Prepared
) -> None:
    pending = begun.tasks(begun.partial, "pending")
    assert {"b-2", "b-3"} <= {*pending}
    rows = read(begun.partial, "/series/walk")
    done = ~np.isnan(rows)
    assert done.any()
    launch = begun.run()
    assert launch.code == 0, launch.errors
    assert begun.calls == pending
    assert begun.digest() == prepared.run().digest()
    assert not begun.partial.exists()
    np.testing.assert_array_equal(read(begun.file, "/series/walk")[done], rows[done])


def test_a_row_whose_bytes_rot_is_done_again(begun: Work, prepared: Prepared) -> None:
    pending = begun.tasks(begun.partial, "pending")
    assert "a-1" in begun.tasks(begun.partial, "done")
    flip(begun.partial, "/series/steps", 2000 * 8 + 77)  # of a-1
    assert begun.run().code == 0
    assert begun.calls == sorted([*pending, "a-1"])
    assert begun.digest() == prepared.run().digest()


@pytest.mark.parametrize("kind", ["cut", "text", "foreign"])
def test_a_partial_file_that_is_none_is_told_and_left_alone(
    begun: Work, kind: str
) -> None:
    if kind == "cut":
        whole = begun.partial.read_bytes()
        begun.partial.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        begun.partial.write_text("day,infected\n")
    else:
        with h5py.File(begun.partial, "w") as file:
            file["x"] = 1
    before = begun.partial.read_bytes()
    foreign = kind == "foreign"
    told = "is no result file" if foreign else "is no HDF5 file, or a damaged one"
    assert_refused(begun.run(), f"run.h5.partial: {told}")
    assert begun.calls == []
    assert begun.partial.read_bytes() == before


def test_fresh_forgets_what_was_begun(begun: Work) -> None:
    begun.partial.write_text("not even a result file")
    launch = begun.run("--fresh")
    assert launch.code == 0, launch.errors
    assert len(begun.calls) == 8
    assert not begun.partial.exists()


# growth


@pytest.mark.parametrize(
    ("changes", "new"),
    [
        ({"replicates": 6}, ["a-4", "a-5", "b-4", "b-5"]),
        ({"scenarios": {"b": 1.0, "a": 0.5}}, []),
        (
            {"scenarios": {"c": 2.0, "a": 0.5}, "replicates": 5},
            ["a-4", "c-0", "c-1", "c-2", "c-3", "c-4"],
        ),
    ],
    ids=["replicates", "reordered", "added and removed"],
)
def test_growth_runs_only_what_is_new(
    complete: Work, prepared: Prepared, changes: dict[str, Any], new: list[str]
) -> None:
    before = read(complete.file, "/series/walk")
    complete.spec(**changes)
    launch = complete.run()
    assert launch.code == 0, launch.errors
    assert complete.calls == new
    names = list(changes.get("scenarios", PLAIN["scenarios"]))
    after = read(complete.file, "/series/walk")
    for index, name in enumerate("ab"):
        if name in names:
            kept = after[names.index(name), :4]
            assert kept.tobytes() == before[index].tobytes()
    assert complete.digest() == prepared.run(**changes).digest()


def test_the_old_file_stays_until_growth_is_complete(
    complete: Work, prepared: Prepared
) -> None:
    before = complete.file.read_bytes()
    complete.spec(replicates=6)
    assert complete.run(KILL_AT="b-4").code == -9
    assert complete.file.read_bytes() == before
    pending = complete.tasks(complete.partial, "pending")
    assert "b-4" in pending
    assert "a-3" not in pending
    launch = complete.run()
    assert launch.code == 0, launch.errors
    assert complete.calls == pending
    assert complete.digest() == prepared.run(replicates=6).digest()


def test_a_file_that_is_not_complete_yet_grows_too(
    begun: Work, prepared: Prepared
) -> None:
    pending = begun.tasks(begun.partial, "pending")
    begun.spec(replicates=6)
    assert begun.run().code == 0
    assert begun.calls == sorted([*pending, "a-4", "a-5", "b-4", "b-5"])
    assert begun.digest() == prepared.run(replicates=6).digest()


# changes that only recompute


def test_other_bands_summaries_and_units_call_no_model(
    complete: Work, prepared: Prepared
) -> None:
    changes = {
        "bands": "levels = [0.1, 0.5]",
        "walk": 'summaries = ["peak", "total"]\nunits = "m"',
    }
    complete.spec(**changes)
    launch = complete.run()
    assert launch.code == 0, launch.errors
    assert complete.calls == []
    fresh = prepared.run(**changes)
    assert complete.digest() == fresh.digest()
    assert complete.digest() != prepared.run().digest()
    assert paths_of(complete.file) == paths_of(fresh.file)
    with h5py.File(complete.file, "r") as mine, h5py.File(fresh.file, "r") as other:
        for path in ("/bands/walk", "/summary/walk/peak.bands", "/series/walk"):
            assert mine[path].attrs["units"] == other[path].attrs["units"] == "m"
            np.testing.assert_array_equal(mine[path][:], other[path][:])


def test_other_limits_call_no_model(complete: Work) -> None:
    with (complete.folder / "run.toml").open("a") as file:
        file.write("\n[limits]\nretries = 2\n")
    assert complete.run().code == 0
    assert complete.calls == []


@pytest.mark.parametrize("keep", ["true", "false"])
def test_the_file_tells_the_limits_that_it_was_completed_under(
    work: Work, prepared: Prepared, keep: str
) -> None:
    folder = prepared.run("b-2", keep=keep).folder
    shutil.copytree(folder, work.folder, dirs_exist_ok=True)
    with (work.folder / "run.toml").open("a") as file:
        file.write("\n[limits]\nretries = 2\n")
    assert work.run().code == 0
    with h5py.File(work.file, "r") as opened:
        assert '"retries": 2' in opened.attrs["spec"]


# what is refused

REFUSED = {
    "[ensemble] seed: has changed": {"seed": 12},
    "[ensemble] replicates: has changed": {"replicates": 3},
    "[parameters] days: has changed": {"days": 5},
    "[scenarios.b] beta: has changed": {"scenarios": {"a": 0.5, "b": 1.5}},
    "[outputs.walk] dtype: has changed": {"walk": 'dtype = "float32"\nlength = 9'},
    "[outputs.walk] length: has changed": {},
    "[outputs.steps] keep: has changed": {"keep": "false"},
}


@pytest.mark.parametrize("state", ["complete", "begun"])
def test_another_ensemble_is_refused_by_all_its_keys(
    request: pytest.FixtureRequest, state: str
) -> None:
    work: Work = request.getfixturevalue(state)
    before = {path.name: path.read_bytes() for path in work.folder.glob("run.h5*[!k]")}
    changes = {k: v for change in REFUSED.values() for k, v in change.items()}
    work.spec(**changes)
    launch = work.run()
    assert_refused(launch, *REFUSED)
    lines = (work.folder / "run.toml").read_text().splitlines()
    for told in launch.errors.splitlines():
        assert "--fresh" in told
        number, key = re.match(r"run.toml:(\d+): \[.*\] (\w+):", told).groups()
        assert lines[int(number) - 1].startswith(f"{key} = ")
    after = {path.name: path.read_bytes() for path in work.folder.glob("run.h5*[!k]")}
    assert after == before
    assert work.calls == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seed = 11", "seed = 12", "[ensemble] seed"),
        ("seed = 11", 'seed = 11\npairing = "independent"', "[ensemble] pairing"),
        ('["day"]', '["week"]', "[outputs.walk] dims"),
    ],
)
def test_one_changed_key_is_enough(
    complete: Work, old: str, new: str, told: str
) -> None:
    text = (complete.folder / "run.toml").read_text()
    (complete.folder / "run.toml").write_text(text.replace(old, new))
    assert_refused(complete.run(), f"{told}: has changed since run.h5 was begun")


def test_another_output_file_goes_on_beside_a_refused_one(complete: Work) -> None:
    before = complete.file.read_bytes()
    complete.spec(seed=12)
    assert complete.run("-o", "twelve.h5").code == 0
    assert len(complete.calls) == 8
    assert complete.file.read_bytes() == before


def test_changed_code_is_refused_until_it_is_accepted(
    begun: Work, prepared: Prepared
) -> None:
    pending = begun.tasks(begun.partial, "pending")
    write(begun.folder, "model.py", MODEL + "\n# a comment\n")
    launch = begun.run()
    assert_refused(launch, "[ensemble] model: its code has changed since run.h5")
    assert "--accept-model-change" in launch.errors
    assert begun.calls == []
    assert begun.run("--accept-model-change").code == 0
    assert begun.calls == pending
    assert begun.digest() == prepared.run().digest()
    again = begun.run()  # it has been accepted
    assert again.code == 0, again.errors
    assert begun.calls == []


# failed tasks


def test_failed_tasks_run_again_only_when_asked(work: Work, prepared: Prepared) -> None:
    assert work.run(FAIL_AT="a-1 b-3").code == 3
    assert work.tasks(work.file, "failed") == ["a-1", "b-3"]
    assert work.run().code == 3
    assert work.calls == []
    launch = work.run("--retry-failed", FAIL_AT="b-3")
    assert launch.code == 3
    assert work.calls == ["a-1", "b-3"]
    assert "no luck in b-3" in launch.output
    assert "no luck in a-1" not in launch.output
    work.spec(replicates=6)
    launch = work.run()
    assert launch.code == 3
    assert "scenario b, replicate 3: ValueError: no luck in b-3" in launch.output
    assert work.calls == ["a-4", "a-5", "b-4", "b-5"]
    assert work.run("--retry-failed").code == 0
    assert work.calls == ["b-3"]
    assert work.digest() == prepared.run(replicates=6).digest()


def test_failures_of_a_killed_run_wait_to_be_asked_for(work: Work) -> None:
    assert work.run(FAIL_AT="a-1", KILL_AT="b-2").code == -9
    pending = work.tasks(work.partial, "pending")
    assert work.tasks(work.partial, "failed") == ["a-1"]
    assert work.run("--retry-failed").code == 0
    assert work.calls == sorted([*pending, "a-1"])


# rows that are not kept


def test_rows_that_are_not_kept_go_and_the_answer_stays(
    work: Work, prepared: Prepared
) -> None:
    folder = prepared.run("b-2", keep="false").folder
    shutil.copytree(folder, work.folder, dirs_exist_ok=True)
    whole = prepared.run().file
    assert paths_of(work.partial) == paths_of(whole)
    assert work.run().code == 0
    assert paths_of(work.file) == paths_of(whole) - {"series/steps"}
    assert work.digest() == prepared.run().digest()
    nbytes = 8 * 2000 * 8
    assert whole.stat().st_size - work.file.stat().st_size >= nbytes
    for path in ("/bands/steps", "/bands/steps.std", "/tasks/checksum"):
        np.testing.assert_array_equal(read(work.file, path), read(whole, path))
    assert not work.partial.exists()
    again = work.run()
    assert (again.code, work.calls) == (0, [])


def test_a_file_whose_rows_are_gone_cannot_grow(work: Work, prepared: Prepared) -> None:
    folder = prepared.run(keep="false").folder
    shutil.copytree(folder, work.folder, dirs_exist_ok=True)
    before = work.file.read_bytes()
    work.spec(keep="false", replicates=5)
    launch = work.run()
    assert_refused(launch, "[outputs.steps] keep: rows of 'steps' were not kept")
    assert "--fresh" in launch.errors
    assert work.calls == []
    assert work.file.read_bytes() == before


def paths_of(file: Path) -> set[str]:
    paths: list[str] = []
    with h5py.File(file, "r") as opened:
        opened.visit(paths.append)
    return {*paths}
