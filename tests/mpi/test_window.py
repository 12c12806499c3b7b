"""Shared data: loaded once, placed once per node, and read-only on every rank."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpiens import mpi, window
from mpiens.fault import SpecError
from mpiens.model import find
from mpiens.reader import read
from mpiens.spec import Spec

Everyone = Callable[[Any], list[Any]]

pytestmark = pytest.mark.mpi
LOADERS = """
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


def raises(size):
    raise RuntimeError(f"no town of size {size}")


def generates(size):
    return (index for index in range(size))


def exits(size):
    os._exit(9)


def is_killed(size):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def prepare(comm: mpi.Comm, common_path: Path) -> Callable[..., Spec]:
    """Return the spec, the same on all ranks, whose loader has that name."""

    def make(loader: str, size: int) -> Spec:
        path = common_path / "sweep.toml"
        if comm.rank == 0:
            log = f"LOG = {str(common_path / 'log')!r}\n"
            (common_path / "loaders.py").write_text(log + LOADERS)
            text = f"""
                [ensemble]
                model = "loaders.py:simulate"
                replicates = 1
                seed = 1
                [shared]
                loader = "loaders.py:{loader}"
                kwargs = {{ size = {size} }}
                """
            path.write_text(textwrap.dedent(text))
        comm.raw.Barrier()
        spec = read(path).require()
        find(spec.shared.loader, spec.folder, "")  # as a model does, for Town
        return spec

    return make


def describe(town: Any) -> tuple[Any, ...]:
    home, work = town.contacts["home"], town.contacts["work"]
    writeable = home.flags.writeable or work.flags.writeable
    return town.names, home.tobytes(), work.tobytes(), writeable


class TwoNodes(mpi.Comm):
    """Ranks as if every second one were on another machine."""

    def node(self) -> mpi.Comm:
        return mpi.Comm(self.raw.Split(self.rank % 2, key=self.rank))


@pytest.mark.parametrize("kind", [mpi.Comm, TwoNodes])
@pytest.mark.parametrize("chunk", [1000, 16 << 20])
@pytest.mark.parametrize("size", [1, 70_001])
def test_every_rank_sees_what_the_root_alone_has_loaded(
    comm: mpi.Comm,
    everyone: Everyone,
    prepare: Callable[..., Spec],
    monkeypatch: pytest.MonkeyPatch,
    size: int,
    chunk: int,
    kind: type[mpi.Comm],
) -> None:
    monkeypatch.setattr(window, "CHUNK", max(chunk, size // 20))
    spec = prepare("load", size)
    shared = window.share(kind(comm.raw), spec)
    rng = np.random.default_rng(size)
    home, work = rng.random((size, 3)), rng.random(size)[::2]
    expected = ["Uster", size], home.tobytes(), work.tobytes(), False
    found = describe(shared())
    assert everyone(found == expected) == [True] * comm.size
    log = Path(spec.folder) / "log"
    assert everyone(log.read_text()) == ["loaded\n"] * comm.size


def test_there_is_one_copy_for_all_ranks_of_a_node(
    comm: mpi.Comm, everyone: Everyone, prepare: Callable[..., Spec]
) -> None:
    shared = window.share(comm, prepare("load", 1000))
    assert isinstance(shared, window.Shared)
    work = shared().contacts["work"]
    comm.barrier()
    if comm.rank == comm.size - 1:
        shared.window[:] = bytes(len(shared.window))
    comm.barrier()
    assert everyone(float(abs(work).sum())) == [0.0] * comm.size


def test_every_node_has_a_copy_of_its_own(
    comm: mpi.Comm, everyone: Everyone, prepare: Callable[..., Spec]
) -> None:
    shared = window.share(TwoNodes(comm.raw), prepare("load", 1000))
    assert isinstance(shared, window.Shared)
    work = shared().contacts["work"]
    comm.barrier()
    if comm.rank == 0:
        shared.window[:] = bytes(len(shared.window))
    comm.barrier()
    zero = everyone(not work.any())
    assert zero == [rank % 2 == 0 for rank in range(comm.size)]


def test_shared_data_without_arrays_reaches_all(
    comm: mpi.Comm, everyone: Everyone, prepare: Callable[..., Spec]
) -> None:
    shared = window.share(comm, prepare("load_nothing", 5))
    assert everyone(shared()) == [{"size": 5}] * comm.size


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
    comm: mpi.Comm,
    everyone: Everyone,
    prepare: Callable[..., Spec],
    loader: str,
    words: list[str],
) -> None:
    spec = prepare(loader, 7)
    errors = everyone(lambda: window.share(comm, spec))
    assert [type(error) for error in errors] == [SpecError] * comm.size
    for error in errors:
        assert str(error).startswith("[shared] loader: ")
        assert all(word in str(error) for word in words)
        assert len(error.faults) == 1


def test_an_ensemble_without_shared_data_has_none(
    comm: mpi.Comm, everyone: Everyone, prepare: Callable[..., Spec]
) -> None:
    spec = prepare("load", 1)
    bare = Spec(spec.ensemble, folder=spec.folder)
    assert everyone(window.share(comm, bare)()) == [None] * comm.size
