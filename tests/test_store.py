"""The result file: laid down at once, valid at any moment, true to the last byte."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import write
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiens.fault import SpecError
from mpiens.foundation import lay_down
from mpiens.layout import DONE, FAILED, PENDING, Layout
from mpiens.outcome import RECORD, Batch, Failure
from mpiens.reader import decode
from mpiens.row import Row, settle
from mpiens.spec import Spec
from mpiens.store import Store, replace

SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = {replicates}
seed = 1

[scenarios]
{scenarios}

[outputs.infected]
dims = ["day"]
summaries = ["final", "peak"]
units = "agents"

[outputs.wave]
keep = {keep}

[bands]
levels = [0.1, 0.5, 0.9]
"""
RETURNED = {
    "infected": ((4,), "<i8"),
    "wave": ((2, 3), "<f4"),
    "share": ((), "<f8"),
    "sick": ((5,), "|b1"),
}
OUTPUTS = tuple(RETURNED)


def make_layout(
    names: str = "abc", replicates: int = 5, keep: str = "true", beta: float = 0.5
) -> Layout:
    tables = "\n".join(f"[scenarios.{name}]" for name in names)
    text = SPEC.format(replicates=replicates, scenarios=tables, keep=keep)
    spec: Spec = decode(text).require()
    parameters = {"beta": (beta,) * len(names), "town": ("x",) * len(names)}
    return Layout(spec, parameters, settle(spec, RETURNED))


def lay(folder: Path, layout: Layout, name: str = "run.h5", **options: Any) -> Store:
    """Lay a file down under its name and open it for writing."""
    new, _ = lay_down(folder / name, layout, {"folder": str(folder)}, **options)
    replace(new, folder / name)
    return Store(folder / name, writable=True)


def make_batch(layout: Layout, tasks: list[int], salt: int = 0) -> Batch:
    """Return rows of random bits, with the checksums that the design asks for."""
    rows = np.zeros(len(tasks), layout.row.dtype)
    records = np.zeros(len(tasks), RECORD)
    for index, task in enumerate(tasks):
        rng = np.random.default_rng([salt, task])
        rows[index]["infected"] = rng.integers(-99, 10**12, 4)
        rows[index]["wave"] = rng.normal(size=(2, 3))
        rows[index]["share"] = rng.normal()
        rows[index]["sick"] = rng.integers(0, 2, 5)
        digest = hashlib.sha256(rows[index].tobytes()).digest()
        records[index] = (task, int.from_bytes(digest[:8], "little"), task / 8, 1)
    return Batch(records, rows)


def fill(store: Store, tasks: list[int] | None = None) -> Batch:
    everything = list(range(store.layout.spec.tasks))
    batch = make_batch(store.layout, everything if tasks is None else tasks)
    store.write(batch, np.zeros(len(batch.rows), np.int64))
    return batch


def flip(path: Path, dataset: str, byte: int, bits: int = 1) -> None:
    """Change bits of one byte of a dataset, as a failing disk would."""
    with h5py.File(path, "r") as file:
        offset = file[dataset].id.get_offset() + byte
    with path.open("r+b") as file:
        file.seek(offset)
        [old] = file.read(1)
        file.seek(offset)
        file.write(bytes([old ^ bits]))


def read_rows(path: Path, layout: Layout) -> np.ndarray:
    """Return all rows as HDF5 reads them."""
    rows = np.zeros(layout.spec.tasks, layout.row.dtype)
    with h5py.File(path, "r") as file:
        for name in OUTPUTS:
            data = file[f"/series/{name}"][:]
            rows[name] = data.reshape(-1, *layout.output(name).shape)
    return rows


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in which nothing is done, to be copied."""
    store = lay(tmp_path_factory.mktemp("begun"), make_layout())
    store.close()
    return store.path


@given(st.data())
@settings(deadline=None, max_examples=40)
def test_hdf5_reads_what_was_written_in_any_order_in_any_batches(
    begun: Path, data: st.DataObject
) -> None:
    layout = make_layout()
    order = data.draw(st.permutations(range(layout.spec.tasks)))
    cuts = data.draw(st.lists(st.integers(1, len(order)), max_size=4, unique=True))
    edges = [0, *sorted(cuts)]
    batches = [order[a:b] for a, b in itertools.pairwise(edges)]
    written = [task for tasks in batches for task in tasks]
    store = Store(shutil.copy(begun, begun.with_name("copy.h5")), writable=True)
    for rank, tasks in enumerate(batches):
        store.write(make_batch(layout, tasks), np.full(len(tasks), rank))
    expected = make_batch(layout, sorted(written))
    read = read_rows(store.path, layout)
    assert read[sorted(written)].tobytes() == expected.rows.tobytes()
    done = np.isin(np.arange(layout.spec.tasks), written)
    ranks = np.full(layout.spec.tasks, -1)
    for rank, tasks in enumerate(batches):
        ranks[tasks] = rank
    with h5py.File(store.path, "r") as file:
        tasks = {name: item[:].reshape(-1) for name, item in file["tasks"].items()}
    np.testing.assert_array_equal(tasks["status"], np.where(done, DONE, PENDING))
    np.testing.assert_array_equal(tasks["rank"], ranks)
    for name in ("checksum", "seconds", "attempts"):
        np.testing.assert_array_equal(tasks[name][done], expected.records[name])
    again = Store(store.path)
    np.testing.assert_array_equal(again.status, tasks["status"])
    assert len(again.broken()) == 0
    for index, task in enumerate(sorted(written)):
        assert again.row(task).tobytes() == expected.rows[index : index + 1].tobytes()
    store.close()
    again.close()


def test_what_no_task_has_filled_reads_as_missing(tmp_path: Path) -> None:
    layout = make_layout()
    store = lay(tmp_path, layout)
    fill(store, [7])
    with h5py.File(store.path, "r") as file:
        for name in ("share", "wave"):
            data = file[f"/series/{name}"][:].reshape(15, -1)
            filled = ~np.isnan(data).any(axis=1)
            assert filled.tolist() == [task == 7 for task in range(15)]
        for name in ("infected", "sick"):
            item = file[f"/series/{name}"]
            assert item.attrs["_FillValue"] == np.iinfo(item.dtype).min
            missing = item[:].reshape(15, -1) == item.attrs["_FillValue"]
            assert missing.all(axis=1).tolist() == [task != 7 for task in range(15)]
        for path in ("/bands/share", "/bands/wave.mean", "/summary/infected/peak"):
            assert np.isnan(file[path][:]).all()
        assert set(file["/tasks/rank"][:].ravel()) == {-1, 0}
        assert np.isnan(file["/tasks/seconds"][:].ravel()[:7]).all()
        assert file["/tasks/attempts"][:].sum() == 1
        assert set(file["/failures/task"][:]) == {-1}
    store.close()


def test_two_files_of_one_layout_have_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1.8e9)  # when tasks ended is kept too
    texts = []
    for name in ("one.h5", "two.h5"):
        store = lay(tmp_path, make_layout(), name)
        fill(store)
        store.close()
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]


def test_tasks_of_a_rank_ended_one_after_the_other(tmp_path: Path) -> None:
    layout = make_layout()
    store = lay(tmp_path, layout)
    batch = make_batch(layout, [1, 2, 4, 8])  # they take an eighth of a second each
    before = time.time()
    store.write(batch, np.array([3, 0, 3, 3]))
    after = time.time()
    store.close()
    with h5py.File(store.path, "r") as file:
        assert file["/tasks/ended"].attrs["units"] == "seconds since 1970-01-01"
        ended = file["/tasks/ended"][:].reshape(-1)
    now = ended[8]
    assert before <= now <= after
    assert ended[2] == now, "the only one of its rank"
    np.testing.assert_allclose(ended[[4, 1]], [now - 1, now - 1.5], rtol=0, atol=1e-5)
    assert np.isnan(np.delete(ended, [1, 2, 4, 8])).all()


class Cut(Exception):  # noqa: N818
    """The power goes here."""


def cut_after(writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let so many writes through, then half of one, then nothing."""
    left = writes
    pwrite = os.pwrite

    def failing(handle: int, data: Any, offset: int) -> int:
        nonlocal left
        left -= 1
        if left < 0:
            if left == -1:
                pwrite(handle, bytes(data)[: len(data) // 2], offset)
            raise Cut
        return pwrite(handle, data, offset)

    monkeypatch.setattr(os, "pwrite", failing)


def rewrite(store: Store) -> None:
    store.forget(np.array([4, 5]))
    store.write(make_batch(store.layout, [4, 5], salt=1), np.zeros(2, np.int64))


@pytest.mark.parametrize("act", [lambda store: fill(store, [3, 4, 9]), rewrite])
def test_no_task_is_called_done_before_its_row_and_checksum_are_there(
    begun: Path, tmp_path: Path, act: Callable[[Store], Any]
) -> None:
    path = tmp_path / "begun.h5"
    store = Store(shutil.copy(begun, path), writable=True)
    fill(store, [4, 5, 6])
    store.close()
    for writes in range(100):
        path = Path(shutil.copy(tmp_path / "begun.h5", tmp_path / "cut.h5"))
        store = Store(path, writable=True)
        with pytest.MonkeyPatch.context() as patch:
            cut_after(writes, patch)
            try:
                act(store)
            except Cut:
                ended = False
            else:
                ended = True
        store.close()
        after = Store(path)
        assert len(after.broken()) == 0, f"cut after {writes} writes"
        assert after.status[6] == DONE
        after.close()
        if ended:
            break
    assert ended and writes > 10


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in which every task is done."""
    store = lay(tmp_path_factory.mktemp("full"), make_layout())
    fill(store)
    store.close()
    return store.path


@given(
    st.integers(0, 14), st.sampled_from(OUTPUTS), st.integers(0), st.integers(1, 255)
)
@settings(deadline=None, max_examples=40)
def test_a_flipped_byte_of_any_row_is_found(
    full: Path, task: int, name: str, byte: int, bits: int
) -> None:
    output = make_layout().output(name)
    size = int(np.prod(output.shape)) * np.dtype(output.dtype).itemsize
    place = task * size + byte % size
    flip(full, f"/series/{name}", place, bits)
    store = Store(full)
    broken = store.broken().tolist()
    store.close()
    flip(full, f"/series/{name}", place, bits)
    assert broken == [task]


def test_a_flipped_checksum_makes_its_row_broken_too(tmp_path: Path) -> None:
    store = lay(tmp_path, make_layout())
    fill(store, [2, 3])
    flip(store.path, "/tasks/checksum", 3 * 8)
    assert store.broken().tolist() == [3]
    store.close()


@given(st.text(max_size=9000).map(lambda text: text * 3))
@settings(deadline=None, max_examples=30)
def test_texts_of_failures_keep_both_ends_within_8_kib(begun: Path, text: str) -> None:
    text = text.replace("\0", "")  # HDF5 ends a text there
    store = Store(shutil.copy(begun, begun.with_name("copy.h5")), writable=True)
    store.fail(Failure(8, 2, 0.5, text), rank=3)
    with h5py.File(store.path, "r") as file:
        assert file["/failures/text"].dtype.itemsize == 8192
        kept = file["/failures/text"][0]
        assert file["/failures/task"][:2].tolist() == [8, -1]
    whole = text.encode()
    if len(whole) <= 8192:
        assert kept == whole
        assert list(store.failures()) == [(8, text)]
    else:
        assert whole[:4000] == kept[:4000]
        assert whole[-4000:] == kept[-4000:]
    store.close()


def test_a_failure_keeps_a_text_that_utf8_cannot_say(tmp_path: Path) -> None:
    store = lay(tmp_path, make_layout())
    name = os.fsdecode(b"caf\xe9.csv")  # as Python names a file of another age
    store.fail(Failure(8, 1, 0.5, f"no file {name}"), rank=0)
    [(task, text)] = store.failures()
    assert task == 8
    assert text.startswith("no file caf")
    store.close()


def test_the_table_holds_1000_failures_and_the_statuses_hold_all(
    tmp_path: Path,
) -> None:
    store = lay(tmp_path, make_layout(replicates=400))
    fill(store, [0])
    for task in range(1, 1100):
        store.fail(Failure(task, 2, 0.5, f"no. {task}"), rank=0)
    store.fail(Failure(3, 4, 0.5, "again"), rank=0)
    kept = dict(store.failures())
    assert list(kept) == list(range(1, 1001))
    assert (kept[1], kept[3], kept[1000]) == ("no. 1", "again", "no. 1000")
    with h5py.File(store.path, "r") as file:
        assert file["/failures/text"].shape == (1000,)
        status = file["/tasks/status"][:].ravel()
        attempts = file["/tasks/attempts"][:].ravel()
    assert status.tolist() == [DONE] + [FAILED] * 1099 + [PENDING] * 100
    assert attempts.tolist() == [1, 2, 2, 4] + [2] * 1096 + [0] * 100
    store.close()


def test_a_failed_task_leaves_nothing_of_an_earlier_row(tmp_path: Path) -> None:
    store = lay(tmp_path, make_layout())
    fill(store)
    store.forget(np.array([6]))
    store.fail(Failure(6, 1, 0.5, "fault"), rank=0)
    with h5py.File(store.path, "r") as file:
        assert np.isnan(file["/series/share"][1, 1])
        low = file["/series/infected"].attrs["_FillValue"]
        assert (file["/series/infected"][1, 1] == low).all()
    store.forget(np.array([6]))
    assert list(store.failures()) == []
    store.close()


def test_growth_copies_rows_by_name_and_leaves_out_broken_ones(tmp_path: Path) -> None:
    old = lay(tmp_path, make_layout("abc", 5), "old.h5")
    batch = fill(old, [0, 1, 2, 5, 6, 10, 13])
    old.fail(Failure(12, 3, 0.5, "fault"), rank=1)
    flip(old.path, "/series/wave", 6 * 24 + 5)
    new = lay(tmp_path, make_layout("cdb", 7), "new.h5")
    new.copy_tasks(old, {0: 2, 2: 1})
    moved = {10: 0, 13: 3, 5: 14}  # scenarios c and b; task 6, also of b, is broken
    done = np.flatnonzero(new.status == DONE)
    assert done.tolist() == sorted(moved.values())
    for source, target in moved.items():
        [index] = np.flatnonzero(batch.records["task"] == source)
        assert new.row(target).tobytes() == batch.rows[index : index + 1].tobytes()
        assert new.read("/tasks/seconds").ravel()[target] == source / 8
    assert np.flatnonzero(new.status == FAILED).tolist() == [2]
    assert list(new.failures()) == [(2, "fault")]
    assert new.read("/tasks/attempts").ravel()[2] == 3
    assert len(new.broken()) == 0
    old.close()
    new.close()


def digest_of(path: Path) -> str:
    store = Store(path)
    digest = store.digest()
    store.close()
    return digest


@pytest.mark.parametrize("column", ["attempts", "seconds", "rank"])
def test_the_digest_does_not_see_times_ranks_and_attempts(
    full: Path, tmp_path: Path, column: str
) -> None:
    path = tmp_path / "other.h5"
    shutil.copy(full, path)
    assert len(digest_of(full)) == 64
    with h5py.File(path, "r+") as file:
        file[f"/tasks/{column}"][1, 2] += 3
        file.attrs["created"] = "another day"
        file["/failures/text"][0] = b"text"
    assert digest_of(path) == digest_of(full)


PARTS = (
    *("/bands/share", "/bands/wave.mean", "/bands/sick.std", "/tasks/status"),
    *("/summary/infected/peak", "/summary/infected/final.bands", "/tasks/checksum"),
)


@given(st.sampled_from(PARTS), st.integers(0), st.integers(1, 255))
@settings(deadline=None, max_examples=40)
def test_the_digest_sees_any_byte_of_the_answer(
    full: Path, path: str, byte: int, bits: int
) -> None:
    with h5py.File(full, "r") as file:
        place = byte % file[path].nbytes
    flip(full, path, place, bits)
    after = digest_of(full)
    flip(full, path, place, bits)
    assert after != digest_of(full)


def test_the_digest_sees_rows_parameters_names_dims_and_types(
    full: Path, tmp_path: Path
) -> None:
    layout = make_layout()
    first, *rest = layout.row.outputs

    def added(**parameters: tuple[Any, ...]) -> Layout:
        return dataclasses.replace(layout, parameters=layout.parameters | parameters)

    def changed(**how: Any) -> Layout:
        outputs = (dataclasses.replace(first, **how), *rest)
        return dataclasses.replace(layout, row=Row(outputs))

    others = [
        make_layout(beta=0.25),
        added(gamma=(1, 1, 1)),
        added(town=("y", "x", "x")),
        changed(dims=("week",)),
        changed(name="ill"),
        changed(dtype="<f8"),
    ]
    digests = [digest_of(full)]
    for index, other in enumerate(others):
        store = lay(tmp_path, other, f"{index}.h5")
        rows = make_batch(layout, list(range(15)))  # the same, also of another type
        cast = Batch(rows.records, rows.rows.astype(other.row.dtype))
        store.write(cast, np.zeros(len(rows.rows), np.int64))
        digests.append(store.digest())
        store.close()
    store = lay(tmp_path, layout, "other-row.h5")
    fill(store)
    store.write(make_batch(layout, [14], salt=1), np.zeros(1, np.int64))
    digests.append(store.digest())
    store.close()
    assert len(set(digests)) == len(digests)


def test_a_slim_file_is_the_same_answer_without_the_rows(tmp_path: Path) -> None:
    layout = make_layout(keep="false")
    whole = lay(tmp_path, layout, "whole.h5")
    fill(whole)
    whole.write_all("/bands/wave.mean", np.ones((3, 2, 3)))
    slim = lay(tmp_path, layout, "slim.h5", slim=True)
    slim.copy_all(whole)
    assert slim.digest() == whole.digest()
    with h5py.File(slim.path, "r") as file:
        assert set(file["series"]) == {"infected", "share", "sick"}
        assert (file["/bands/wave.mean"][:] == 1).all()
        assert (file["/tasks/status"][:] == DONE).all()
        assert np.isnan(file["/bands/share"][:]).all()
    with pytest.raises(SpecError, match="rows of 'wave' are not kept in this file"):
        slim.row(0)
    whole.close()
    slim.close()


def test_the_layout_that_a_file_tells_is_the_one_it_was_laid_down_by(
    tmp_path: Path,
) -> None:
    layout = make_layout()
    parameters = {
        "days": (1, 2, 3),
        "beta": (0.5, None, 1e300),
        "town": ("x", True, [1, {"a": None}]),
        "big": (2**70, 1, 2),
    }
    layout = dataclasses.replace(layout, parameters=parameters)
    store = lay(tmp_path, layout)
    told = store.layout
    assert told.row == layout.row
    assert told.spec.document() == layout.spec.document()
    assert list(told.parameters) == list(parameters)
    assert told.parameters["days"] == (1, 2, 3)
    assert np.isnan(told.parameters["beta"][1])
    assert told.parameters["town"] == parameters["town"]
    assert told.parameters["big"] == (float(2**70), 1.0, 2.0)
    store.close()


def test_other_files_are_told_in_a_sentence(full: Path, tmp_path: Path) -> None:
    text = write(tmp_path, "text.h5", "day,infected\n1,2\n")
    foreign = tmp_path / "foreign.h5"
    with h5py.File(foreign, "w") as file:
        file["x"] = 1
    short = tmp_path / "short.h5"
    short.write_bytes(full.read_bytes()[:-100])
    empty = write(tmp_path, "empty.h5", "")
    told = {
        tmp_path / "none.h5": "there is no such file",
        text: "is no HDF5 file, or a damaged one",
        short: "is no HDF5 file, or a damaged one",
        empty: "is no HDF5 file, or a damaged one",
        foreign: "is no result file of this version of mpiens",
    }
    for path, sentence in told.items():
        with pytest.raises(SpecError) as caught:
            Store(path)
        [line] = caught.value.lines()
        assert line.startswith(f"{path}: ")
        assert sentence in line


FULL_DISK = """
import errno, os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_store import make_layout
from mpiens.foundation import lay_down
lay_down(Path("small.h5"), make_layout(replicates=20), {})
try:  # the table of failures, in which nothing is written yet, does not fit
    lay_down(Path("large.h5"), make_layout(replicates=500), {})
except OSError as error:
    print(errno.errorcode[error.errno], *os.listdir())
"""


def test_a_full_disk_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    sizes = {item.path: item.nbytes for item in make_layout(replicates=500).datasets()}
    table = sizes.pop("/failures/text")
    assert sum(sizes.values()) < 1 << 20 < 8 << 20 < table + sum(sizes.values())
    script = 'mount -t tmpfs -o size=4m none "$0" && cd "$0" && exec "$@"'
    python = [sys.executable, "-c", FULL_DISK, str(Path(__file__).parent)]
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    done = subprocess.run(
        ["unshare", *user, "--mount", "sh", "-c", script, str(tmp_path), *python],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told, *files = done.stdout.split()
    assert told == "ENOSPC"
    assert "small.h5.new" in files
    assert "large.h5" not in files
