"""What tests on several ranks share: a communicator, and one answer for all ranks."""

from __future__ import annotations

import atexit
import faulthandler
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpiens import mpi  # before anything imports h5py, which may bring its own MPI

LIMIT = 60  # seconds of one test


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--with-mpi"):
        atexit.register(mpi.finish, mpi.start(), 0)


@pytest.fixture(scope="session")
def terminal(pytestconfig: pytest.Config) -> Iterator[int]:
    """The standard error that pytest itself has."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        number = os.dup(2)
    yield number
    os.close(number)


@pytest.fixture(autouse=True)
def limit(terminal: int) -> Iterator[None]:
    """End all ranks, after saying where each was, where one waits in vain."""
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=terminal)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def comm() -> Iterator[mpi.Comm]:
    """All ranks, in a communicator that no other test has left messages in."""
    raw = mpi.MPI.COMM_WORLD.Dup()
    own = mpi.Comm(raw)
    yield own
    mpi.MPI.COMM_WORLD.Barrier()
    while own.poll() is not None:
        pass  # heartbeats that came after their hearer had gone
    raw.Free()
    own.bell.close()


@pytest.fixture
def common_path(comm: mpi.Comm) -> Iterator[Path]:
    """A folder that all ranks agree on; pytest's own would be one of each rank."""
    path = tempfile.mkdtemp() if comm.rank == 0 else None
    path = comm.raw.bcast(path)
    yield Path(path)
    comm.raw.Barrier()
    if comm.rank == 0:
        shutil.rmtree(path)


@pytest.fixture
def everyone(comm: mpi.Comm) -> Callable[[Any], list[Any]]:
    """Return what all ranks say: then all assert the same, and none waits for ever.

    A function is called first, and what it raises is what its rank says.
    """
    world = mpi.MPI.COMM_WORLD

    def ask(value: Any) -> list[Any]:
        if callable(value):
            try:
                value = value()
            except Exception as error:
                value = error
        come = world.Ibarrier()
        while not come.Test():
            time.sleep(0.001)  # there may be more ranks than cores
        answers: list[Any] = world.allgather(value)
        return answers

    return ask
