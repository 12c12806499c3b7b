"""A run on all ranks: its file is complete, or all ranks are told what is wrong."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpiens import ensemble, mpi
from mpiens.deadline import Deadline
from mpiens.fault import SpecError
from mpiens.request import Request

Everyone = Callable[[Any], list[Any]]
Write = Callable[..., Path]

pytestmark = pytest.mark.mpi
MODEL = """
import os
import time
from pathlib import Path

import h5py
import numpy as np

HERE = Path(__file__).parent


def load(length):
    return {"contacts": np.linspace(0, 1, length)}


def load_badly(length):
    raise RuntimeError(f"no town of size {length}")


def simulate(rng, shared, replicate, *, beta, fails=False):
    with open(HERE / "executed", "a") as log:
        log.write(".")
    if fails and replicate == 3:
        raise RuntimeError("no such replicate")
    return {"infected": np.cumsum(rng.poisson(beta * shared["contacts"]))}


def first_is_done(partial):
    if not partial.exists():
        return False
    with h5py.File(partial, locking=False) as file:
        return file["tasks/status"][0, 0] == 1


def spoil(rng, replicate):
    # the last task breaks the row of the first one, once that is on the disk
    time.sleep(0.12)
    if replicate == 2 and not (HERE / "spoilt").exists():
        (HERE / "spoilt").touch()
        partial = HERE / "run.h5.partial"
        while not first_is_done(partial):
            time.sleep(0.01)
        with h5py.File(partial, locking=False) as file:
            offset = file["series/draw"].id.get_offset()
        with open(partial, "r+b") as file:
            file.seek(offset)
            file.write(bytes(8))
    return {"draw": rng.normal()}
"""

SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 30
seed = 3

[sweep]
beta = [2.0, 5.0]

[shared]
loader = "model.py:load"
kwargs = { length = 20 }

[outputs.infected]
dims = ["day"]
summaries = ["final", "total"]
"""


@pytest.fixture
def prepare(comm: mpi.Comm, common_path: Path) -> Write:
    """Write the model and a spec, some of whose words are others; return its path."""

    def act(*words: tuple[str, str], name: str = "sweep") -> Path:
        text = SPEC
        for old, new in words:
            assert old in text
            text = text.replace(old, new)
        path = common_path / f"{name}.toml"
        if comm.rank == 0:
            (common_path / "model.py").write_text(MODEL)
            path.write_text(textwrap.dedent(text))
        comm.raw.Barrier()
        return path

    return act


def digest(path: Path) -> str:
    import h5py

    with h5py.File(path) as file:
        return str(file.attrs["digest"])


def executions(path: Path) -> int:
    return len((path.parent / "executed").read_text())


def test_a_run_leaves_a_complete_file_with_the_answer_of_one_rank(
    comm: mpi.Comm, everyone: Everyone, prepare: Write
) -> None:
    spec = prepare()
    file, alone = spec.with_name("run.h5"), spec.with_name("alone.h5")
    assert (
        everyone(lambda: ensemble.run(comm, Request(spec, file), Deadline()))
        == [0] * comm.size
    )
    assert everyone(file.exists()) == [True] * comm.size
    assert not file.with_name("run.h5.partial").exists()
    if comm.rank == 0:
        ensemble.run(mpi.alone(), Request(spec, alone), Deadline())
    everyone(None)
    assert digest(file) == digest(alone)


@pytest.mark.parametrize("isolation", ["process", "none"])
def test_a_run_with_failed_tasks_says_so_on_all_ranks(
    comm: mpi.Comm, everyone: Everyone, prepare: Write, isolation: str
) -> None:
    limits = f'[limits]\nisolation = "{isolation}"\n[parameters]\nfails = true\n'
    spec = prepare(("[sweep]", f"{limits}\n[sweep]"))
    file = spec.with_name("run.h5")
    codes = everyone(lambda: ensemble.run(comm, Request(spec, file), Deadline()))
    assert codes == [3] * comm.size


def test_a_complete_file_is_left_as_it_is(
    comm: mpi.Comm, everyone: Everyone, prepare: Write
) -> None:
    spec = prepare()
    file = spec.with_name("run.h5")
    assert (
        everyone(lambda: ensemble.run(comm, Request(spec, file), Deadline()))
        == [0] * comm.size
    )
    everyone(None)
    before = file.read_bytes()
    assert (
        everyone(lambda: ensemble.run(comm, Request(spec, file), Deadline()))
        == [0] * comm.size
    )
    assert file.read_bytes() == before
    assert executions(file) == 60


def test_a_file_grows_by_what_is_new(
    comm: mpi.Comm, everyone: Everyone, prepare: Write
) -> None:
    small = prepare()
    file = small.with_name("run.h5")
    assert (
        everyone(lambda: ensemble.run(comm, Request(small, file), Deadline()))
        == [0] * comm.size
    )
    words = [("replicates = 30", "replicates = 33"), ("[2.0, 5.0]", "[1.0, 5.0, 2.0]")]
    large = prepare(*words, name="large")
    assert (
        everyone(lambda: ensemble.run(comm, Request(large, file), Deadline()))
        == [0] * comm.size
    )
    assert everyone(executions(file)) == [99] * comm.size
    whole = file.with_name("whole.h5")
    codes = everyone(lambda: ensemble.run(comm, Request(large, whole), Deadline()))
    assert codes == [0] * comm.size
    assert digest(file) == digest(whole)


def test_a_row_that_broke_on_the_disk_is_run_again(
    comm: mpi.Comm, everyone: Everyone, prepare: Write
) -> None:
    text = '[ensemble]\nmodel = "model.py:spoil"\nreplicates = 3\nseed = 3\n'
    spec = prepare((SPEC, text))
    file, sound = spec.with_name("run.h5"), spec.with_name("sound.h5")
    assert (
        everyone(lambda: ensemble.run(comm, Request(spec, file), Deadline()))
        == [0] * comm.size
    )
    assert everyone(spec.with_name("spoilt").exists()) == [True] * comm.size
    codes = everyone(lambda: ensemble.run(comm, Request(spec, sound), Deadline()))
    assert codes == [0] * comm.size
    assert digest(file) == digest(sound)


WRONG = {
    "a key": (("seed = 3", "seeds = 3"), ["[ensemble] seeds", "[ensemble] seed"]),
    "a parameter": (("beta =", "gamma ="), ["gamma", "beta"]),
    "no model": (("py:simulate", "py:simulates"), ["simulates", "simulate"]),
    "a loader that fails": (
        ("py:load", "py:load_badly"),
        ["[shared] loader", "RuntimeError", "no town of size 20"],
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_spec_is_told_on_all_ranks_before_any_task(
    comm: mpi.Comm, everyone: Everyone, prepare: Write, wrong: str
) -> None:
    change, words = WRONG[wrong]
    spec = prepare(change)
    file = spec.with_name("run.h5")
    errors = everyone(lambda: ensemble.run(comm, Request(spec, file), Deadline()))
    assert [type(error) for error in errors] == [SpecError] * comm.size
    assert len({str(error) for error in errors}) == 1
    assert all(word in str(errors[0]) for word in words)
    assert not list(spec.parent.glob("run.h5*"))
    assert not spec.with_name("executed").exists()


def test_a_spec_that_is_not_there_is_told_on_all_ranks(
    comm: mpi.Comm, everyone: Everyone, common_path: Path
) -> None:
    request = Request(common_path / "none.toml", common_path / "run.h5")
    errors = everyone(lambda: ensemble.run(comm, request, Deadline()))
    assert [type(error) for error in errors] == [SpecError] * comm.size
    assert all("cannot be read" in str(error) for error in errors)


def test_a_file_that_cannot_be_written_is_trouble_on_all_ranks(
    comm: mpi.Comm,
    everyone: Everyone,
    prepare: Write,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from mpiens import summary
    from mpiens.trouble import STOPPED_EARLY, Trouble

    def fail(*_: Any) -> None:
        raise summary.WriteError("no space left")

    monkeypatch.setattr(summary, "make_bands", fail)
    spec = prepare()
    file = spec.with_name("troubled.h5")

    def act() -> int:
        with pytest.raises(Trouble, match="no space left") as told:
            ensemble.run(comm, Request(spec, file), Deadline())
        return told.value.code

    assert everyone(act) == [STOPPED_EARLY] * comm.size
    assert not file.exists()
    monkeypatch.undo()
    assert (
        everyone(lambda: ensemble.run(comm, Request(spec, file), Deadline()))
        == [0] * comm.size
    )
