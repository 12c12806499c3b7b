"""Shared data: loaded once, placed once per node, and read-only on every rank."""

from __future__ import annotations

import mmap
import os
import signal
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpiens import loan, mpi, window
from mpiens.fault import SpecError
from mpiens.model import find
from mpiens.reader import decode
from mpiens.spec import Spec

Everyone = Callable[[Any], list[Any]]

pytestmark = pytest.mark.mpi
LOADERS = """
import ctypes
import mmap
import os
import signal
from dataclasses import dataclass

import numpy as np


@dataclass
class Town:
    contacts: object
    names: list


def simulate():
    return {"x": 1.0}


def load(size):
    with open(LOG, "a") as log:
        log.write("loaded\\n")
    rng = np.random.default_rng(size)
    contacts = {"home": rng.random((size, 3)), "work": rng.random(size)[::2]}
    return Town(contacts, ["Uster", size])


def load_nothing(size):
    return {"size": size}


def load_twice(size):
    whole = np.arange(float(size))
    return {"whole": whole, "again": whole[:], "half": whole[size // 2 :]}


def maps(size):
    path = LOG + ".npy"
    np.save(path, np.arange(float(size)))
    return np.load(path, mmap_mode="r")


def raises(size):
    raise RuntimeError(f"no town of size {size}")


def generates(size):
    return (index for index in range(size))


def exits(size):
    os._exit(9)


def guarded(size):
    memory = mmap.mmap(-1, 3 * mmap.PAGESIZE)
    array = np.frombuffer(memory, np.uint8)
    middle = ctypes.c_void_p(array.ctypes.data + mmap.PAGESIZE)
    ctypes.CDLL(None).mprotect(middle, ctypes.c_size_t(mmap.PAGESIZE), 0)
    return array


def load_much(size):
    return np.full(size, 7, np.uint8)


def is_killed(size):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@dataclass
class Load:
    """Shares what a loader of this file returns, with all ranks."""

    comm: mpi.Comm
    folder: Path

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def spec(self, loader: str, size: int, mapped: bool = False) -> Spec:
        text = f"""
            [ensemble]
            model = "loaders.py:simulate"
            replicates = 1
            seed = 1
            [shared]
            loader = "loaders.py:{loader}"
            kwargs = {{ size = {size} }}
            mapped = {str(mapped).lower()}
            """
        place = self.folder / "sweep.toml"
        return decode(textwrap.dedent(text), place).require()

    def __call__(
        self, loader: str, size: int, kind: type[mpi.Comm] = mpi.Comm
    ) -> Callable[[], Any]:
        spec = self.spec(loader, size)
        shared = window.share(kind(self.comm.raw), spec)
        find(spec.shared.loader, spec.folder, "")  # as a model does, for Town
        return shared


@pytest.fixture
def load(comm: mpi.Comm, common_path: Path) -> Load:
    load = Load(comm, common_path)
    if comm.rank == 0:
        source = f"LOG = {str(load.log)!r}\n" + LOADERS
        (common_path / "loaders.py").write_text(source)
    comm.raw.Barrier()
    return load


def describe(town: Any) -> tuple[Any, ...]:
    home, work = town.contacts["home"], town.contacts["work"]
    writeable = home.flags.writeable or work.flags.writeable
    return town.names, home.tobytes(), work.tobytes(), writeable


class TwoNodes(mpi.Comm):
    """Ranks as if every second one were on another machine."""

    def node(self) -> mpi.Comm:
        return mpi.Comm(self.raw.Split(self.rank % 2, key=self.rank))


@pytest.fixture(params=[1000, 16 << 20], ids=lambda size: f"chunk-{size}")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes that travel at once: fewer than there are, and far more."""
    monkeypatch.setattr(window, "CHUNK", request.param)
    monkeypatch.setattr(loan, "BLOCK", request.param)
    return int(request.param)


@pytest.fixture(params=["lent", "sent", "forbidden"])
def way(
    comm: mpi.Comm, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> str:
    """How bytes leave the loader: those of little arrays are sent."""
    monkeypatch.setattr(loan, "COARSE", 1 << 40 if request.param == "sent" else 0)
    on_the_roots_node = (comm.size - 1) // 2 * 2  # be there two nodes or one
    if request.param == "forbidden" and comm.rank == on_the_roots_node:
        monkeypatch.setattr(loan.Loan, "can_be_read", lambda self: False)
    if request.param != "lent":
        monkeypatch.setattr(loan.Loan, "read_into", None)  # is not called
    return str(request.param)


@pytest.mark.parametrize("kind", [mpi.Comm, TwoNodes])
@pytest.mark.parametrize("size", [1, 5001])
@pytest.mark.usefixtures("chunk", "way")
def test_every_rank_sees_what_the_root_alone_has_loaded(
    everyone: Everyone, load: Load, size: int, kind: type[mpi.Comm]
) -> None:
    found = everyone(lambda: describe(load("load", size, kind)()))
    rng = np.random.default_rng(size)
    home, work = rng.random((size, 3)), rng.random(size)[::2]
    expected = ["Uster", size], home.tobytes(), work.tobytes(), False
    assert [answer == expected for answer in found] == [True] * len(found)
    assert load.log.read_text() == "loaded\n"


@pytest.mark.parametrize("kind", [mpi.Comm, TwoNodes])
def test_there_is_one_copy_for_the_ranks_of_a_node(
    comm: mpi.Comm, everyone: Everyone, load: Load, kind: type[mpi.Comm]
) -> None:
    shared = load("load", 1000, kind)
    assert isinstance(shared, window.Shared)
    work = shared().contacts["work"]
    comm.barrier()
    if comm.rank == 0:
        shared.window[:] = bytes(len(shared.window))
    comm.barrier()
    nodes = 1 if kind is mpi.Comm else 2
    expected = [rank % nodes == 0 for rank in range(comm.size)]
    assert everyone(not work.any()) == expected


def test_shared_data_without_arrays_reaches_all(
    comm: mpi.Comm, everyone: Everyone, load: Load
) -> None:
    assert everyone(load("load_nothing", 5)) == [{"size": 5}] * comm.size


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        ("raises", ["loaders.py:raises", "RuntimeError", "no town of size 7"]),
        ("generates", ["pickle", "generator"]),
        ("exits", ["loader", "9"]),
        ("is_killed", ["loader", "9"]),
    ],
)
def test_a_loaders_fault_is_told_on_all_ranks(
    comm: mpi.Comm, everyone: Everyone, load: Load, loader: str, words: list[str]
) -> None:
    errors = everyone(lambda: load(loader, 7))
    assert [type(error) for error in errors] == [SpecError] * comm.size
    for error in errors:
        assert str(error).startswith("[shared] loader: ")
        assert all(word in str(error) for word in words)
        assert len(error.faults) == 1


@pytest.mark.parametrize("moment", ["lent", "sent", "before"])
@pytest.mark.parametrize("kind", [mpi.Comm, TwoNodes])
def test_a_loader_that_is_killed_while_it_is_copied_is_told_on_all_ranks(
    comm: mpi.Comm,
    everyone: Everyone,
    load: Load,
    kind: type[mpi.Comm],
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loan, "COARSE", 0 if moment == "lent" else 1 << 40)
    where = {
        "lent": (loan.Loan, "read_into"),
        "sent": (window._Loader, "read_into"),
        "before": (window._Loader, "begin"),
    }
    kind_of, name = where[moment]
    act = getattr(kind_of, name)

    def kill_first(self: Any, *args: Any) -> None:
        process = self.process if moment == "lent" else self._pid
        if comm.rank == 0:
            os.kill(process, signal.SIGKILL)
            os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
            act(self, *args)

    monkeypatch.setattr(kind_of, name, kill_first)
    errors = everyone(lambda: load("load", 50001, kind))
    assert [type(error) for error in errors] == [SpecError] * comm.size
    for error in errors:
        assert "its process ended while its data was copied" in str(error)


@pytest.mark.parametrize(
    ("coarse", "words"),
    [(0, "memory that cannot be copied (Bad address)"), (1 << 40, "its process ended")],
)
def test_memory_that_cannot_be_read_is_told_on_all_ranks(
    comm: mpi.Comm,
    everyone: Everyone,
    load: Load,
    coarse: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loan, "COARSE", coarse)
    errors = everyone(lambda: load("guarded", 1))
    assert [type(error) for error in errors] == [SpecError] * comm.size
    assert all(words in str(error) for error in errors)


def test_what_a_slow_rank_copies_reaches_the_other_node(
    comm: mpi.Comm, everyone: Everyone, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loan, "COARSE", 0)
    monkeypatch.setattr(loan, "BLOCK", 1000)
    copy = loan.Loan.read_into

    def dawdle(self: loan.Loan, part: memoryview, first: int, step: int) -> None:
        time.sleep(0.2 if first else 0)
        copy(self, part, first, step)

    monkeypatch.setattr(loan.Loan, "read_into", dawdle)
    found = everyone(lambda: bool((load("load_much", 50_000, TwoNodes)() == 7).all()))
    assert found == [True] * comm.size


@pytest.mark.parametrize("how", ["lent", "sent"])
def test_the_loader_gives_back_what_has_been_copied(
    comm: mpi.Comm,
    everyone: Everyone,
    load: Load,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = 32 << 20
    monkeypatch.setattr(loan, "COARSE", 0 if how == "lent" else 1 << 40)
    monkeypatch.setattr(window, "CHUNK", size // 2)
    owner = loan.Loan if how == "lent" else window._Loader
    copy = owner.read_into
    drops: list[bool] = []

    def weigh(self: Any, part: memoryview, *shares: int) -> None:
        process = self.process if how == "lent" else self._pid
        if comm.rank == 0 and not drops:
            before = resident(process)
            copy(self, part, *shares)
            least = len(part) // 2 // (comm.size if how == "lent" else 1)
            end = time.monotonic() + 10
            while (low := before - resident(process) < least) and (
                time.monotonic() < end
            ):
                time.sleep(0.01)
            drops.append(not low)
        else:
            copy(self, part, *shares)

    monkeypatch.setattr(owner, "read_into", weigh)
    found = everyone(lambda: bool((load("load_much", size)() == 7).all()))
    assert found == [True] * comm.size
    assert comm.rank or drops == [True]


def resident(process: int) -> int:
    """Bytes of memory that a process really has."""
    fields = Path(f"/proc/{process}/statm").read_text().split()
    return int(fields[1]) * mmap.PAGESIZE


@pytest.mark.usefixtures("chunk", "way")
def test_arrays_that_share_memory_all_arrive(
    comm: mpi.Comm, everyone: Everyone, load: Load
) -> None:
    shared = load("load_twice", 5000)()
    whole = np.arange(5000.0)
    same = [(shared["whole"] == whole).all(), (shared["again"] == whole).all()]
    same.append((shared["half"] == whole[2500:]).all())
    assert everyone([bool(one) for one in same]) == [[True] * 3] * comm.size


def test_a_file_is_mapped_by_every_rank(
    comm: mpi.Comm, everyone: Everyone, load: Load
) -> None:
    shared = window.share(comm, load.spec("maps", 9, mapped=True))
    assert isinstance(shared, window.Shared)
    assert len(shared.window) == 0  # it has no copy anywhere
    found = shared()
    assert everyone(found.tolist()) == [[float(i) for i in range(9)]] * comm.size
    assert not found.flags.writeable


def test_a_file_that_a_rank_does_not_see_is_told_to_all(
    comm: mpi.Comm, everyone: Everyone, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    if comm.rank == comm.size - 1:
        seen = window._check_maps

        def elsewhere(comm: mpi.Comm, maps: Any) -> None:
            seen(comm, {f"{path}.elsewhere": size for path, size in maps.items()})

        monkeypatch.setattr(window, "_check_maps", elsewhere)
    spec = load.spec("maps", 9, mapped=True)
    errors = everyone(lambda: window.share(comm, spec))
    assert [type(error) for error in errors] == [SpecError] * comm.size
    for error in errors:
        assert str(error).startswith("[shared] mapped: maps ")
        assert "leave mapped out" in str(error)


def test_an_ensemble_without_shared_data_has_none(
    comm: mpi.Comm, everyone: Everyone, load: Load
) -> None:
    bare = Spec(load.spec("load", 1).ensemble, folder=str(load.folder))
    assert everyone(window.share(comm, bare)) == [None] * comm.size
