"""Messages and collective calls that wait politely."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpiens import mpi

Everyone = Callable[[Any], list[Any]]

pytestmark = pytest.mark.mpi
OBJECTS = [None, 0, "Zürich", {"a": [1, (2.5, b"x")]}, list(range(5000)), b""]


@pytest.fixture(params=[7, 1000, 64 << 20], ids=lambda size: f"chunk-{size}")
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of one broadcast: fewer than a message has, and far more."""
    monkeypatch.setattr(mpi, "CHUNK", request.param)
    return int(request.param)


def test_ranks_are_numbered_from_0(comm: mpi.Comm, everyone: Everyone) -> None:
    assert everyone((comm.rank, comm.size)) == [
        (rank, comm.size) for rank in range(comm.size)
    ]


def test_an_object_of_the_root_reaches_all(
    comm: mpi.Comm, everyone: Everyone, chunk: int
) -> None:
    got = [comm.bcast(o if comm.rank == 0 else "not the root's") for o in OBJECTS]
    assert everyone(got) == [OBJECTS] * comm.size


def test_exceptions_reach_all_with_their_text(
    comm: mpi.Comm, everyone: Everyone
) -> None:
    error = comm.bcast(ValueError("no such town") if comm.rank == 0 else None)
    assert everyone(repr(error)) == ["ValueError('no such town')"] * comm.size


def test_bytes_reach_all_straight_into_their_buffers(
    comm: mpi.Comm, everyone: Everyone, chunk: int
) -> None:
    sizes = [0, 1, 6, 7, 8, 14, 999, 1000, 1001, 2500]
    expected = [np.random.default_rng(size).bytes(size) for size in sizes]
    buffers = [bytearray(b if comm.rank == 0 else len(b)) for b in expected]
    for buffer in buffers:
        comm.bcast_into(memoryview(buffer))
    assert everyone([bytes(buffer) for buffer in buffers]) == [expected] * comm.size


def test_all_is_true_where_it_is_true_on_every_rank(
    comm: mpi.Comm, everyone: Everyone
) -> None:
    found = [comm.all_true(comm.rank != rank) for rank in range(comm.size)]
    found.append(comm.all_true(True))
    found.append(comm.all_true(False))
    assert everyone(found) == [[False] * comm.size + [True, False]] * comm.size


def test_the_root_gathers_objects_in_the_order_of_ranks(
    comm: mpi.Comm, everyone: Everyone
) -> None:
    own = {"rank": comm.rank, "data": b"x" * (comm.rank * 100_000)}
    time.sleep(0.02 * (comm.size - comm.rank))  # the last one comes first
    gathered = comm.gather(own)
    expected = [{"rank": r, "data": b"x" * (r * 100_000)} for r in range(comm.size)]
    assert everyone(gathered) == [expected] + [None] * (comm.size - 1)


def test_a_gathering_is_not_mixed_up_with_the_next_one(
    comm: mpi.Comm, everyone: Everyone
) -> None:
    found = []
    for turn in range(3):
        if comm.rank == comm.size - 1:
            time.sleep(0.05)  # meanwhile the others may have come to the next one
        found.append(comm.gather((turn, comm.rank)))
    expected = [[(turn, rank) for rank in range(comm.size)] for turn in range(3)]
    assert everyone(found)[0] == expected


def test_messages_arrive_whole_and_in_the_order_of_their_sender(
    comm: mpi.Comm, everyone: Everyone
) -> None:
    sizes = [0, 1, 10, 100_000, 3_000_000, 5]
    target, source = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for tag, size in enumerate(sizes, start=50):
        comm.post(target, tag, bytes([comm.rank + 1]) * size)
    got = []
    while len(got) < len(sizes):
        comm.unsent()
        if (message := comm.poll()) is not None:
            got.append((message.source, message.tag, bytes(message.data)))
    comm.flush()
    expected = [
        (source, tag, bytes([source + 1]) * size)
        for tag, size in enumerate(sizes, start=50)
    ]
    assert everyone(got == expected) == [True] * comm.size
    assert everyone(comm.poll()) == [None] * comm.size
    assert everyone(comm.unsent()) == [0] * comm.size


def test_a_message_is_unsent_until_it_has_been_received(
    comm: mpi.Comm, everyone: Everyone
) -> None:
    found = []
    if comm.rank == comm.size - 1:
        comm.post(0, 60, b"abc")
        comm.post(0, 61, b"de")
        found.append(comm.unsent())
    comm.raw.Barrier()  # posted, and nobody has asked for it yet
    if comm.rank == comm.size - 1:
        found.append(comm.unsent())
    comm.raw.Barrier()
    received = []
    while comm.rank == 0 and len(received) < 2:
        if (message := comm.poll()) is not None:
            received.append(bytes(message.data))
        comm.unsent()
    comm.flush()
    found.append(comm.unsent())
    answers = everyone((received, found))
    assert answers[0][0] == [b"abc", b"de"]
    assert answers[-1][1] == [5, 5, 0]


def test_who_receives_looks_around_while_the_sender_does_not_help(
    comm: mpi.Comm, everyone: Everyone
) -> None:
    looks: list[float] = []
    fine = True
    if comm.rank == comm.size - 1:
        comm.post(0, 62, bytes(16 << 20))
        time.sleep(1.0)
    if comm.rank == 0:
        while not comm.raw.Iprobe():
            time.sleep(0.001)
        comm.on_wait = lambda: looks.append(time.monotonic())
        began = time.monotonic()
        message = comm.poll()
        seconds = time.monotonic() - began
        comm.on_wait = None
        # where one may read another's memory there is nothing to wait for
        fine = seconds < 0.5 or len(looks) > 1
        assert message is not None
        assert len(message.data) == 16 << 20
    comm.flush()
    assert all(everyone(fine))


def test_nobody_passes_a_barrier_before_all_have_come(
    comm: mpi.Comm, everyone: Everyone
) -> None:
    memory = comm.allocate_shared(comm.size)
    time.sleep(0.03 * comm.rank)
    memory[comm.rank] = comm.rank + 1
    comm.barrier()
    assert everyone(bytes(memory)) == [bytes(range(1, comm.size + 1))] * comm.size


def test_ranks_of_one_machine_are_one_node_with_one_leader(
    comm: mpi.Comm, everyone: Everyone
) -> None:
    node = comm.node()
    leaders = comm.leaders(node)
    known = (node.rank, node.size, leaders and (leaders.rank, leaders.size))
    expected = [(rank, comm.size, None) for rank in range(comm.size)]
    expected[0] = (0, comm.size, (0, 1))
    assert everyone(known) == expected


def test_shared_memory_is_one_memory(comm: mpi.Comm, everyone: Everyone) -> None:
    size = 100_003
    memory = comm.allocate_shared(size)
    assert everyone((len(memory), memory.format)) == [(size, "B")] * comm.size
    for writer in range(comm.size):
        if comm.rank == writer:
            memory[:] = bytes([writer + 1]) * size
        comm.barrier()
        assert everyone(bytes(memory)) == [bytes([writer + 1]) * size] * comm.size
        comm.barrier()


def test_one_process_is_a_communicator_too(comm: mpi.Comm, everyone: Everyone) -> None:
    alone = mpi.alone()
    found = (alone.rank, alone.size, alone.bcast("x"), alone.gather(comm.rank))
    assert everyone(found) == [(0, 1, "x", [rank]) for rank in range(comm.size)]
    assert everyone((alone.all_true(True), alone.all_true(False))) == (
        [(True, False)] * comm.size
    )


def test_a_message_wakes_a_rank_of_the_node_that_sleeps(
    comm: mpi.Comm, everyone: Everyone
) -> None:
    pids = comm.meet(comm.node())
    everyone(None)
    begun = time.monotonic()
    if comm.rank == 0:
        time.sleep(0.2)
        for rank in range(1, comm.size):
            comm.post(rank, 11, b"wake up")
        comm.flush()
    else:
        seconds = 20.0
        while (message := comm.poll()) is None:
            if comm.bell.wait(seconds):
                seconds = 0.001  # what rang may take some looks to be seen
        assert message.data == b"wake up"
    slept = time.monotonic() - begun
    assert everyone((len(pids), slept < 10.0)) == [(comm.size, True)] * comm.size


def test_who_can_be_rung_by_all_looks_less_often(
    comm: mpi.Comm, everyone: Everyone
) -> None:
    def sleep_after_news() -> float:
        backoff = comm.backoff()
        backoff.rest()
        return backoff.next()

    before = sleep_after_news()
    comm.meet(comm.node())
    longer = sleep_after_news() > 100 * before
    comm.bell.know({})  # as if they were in a network of their own
    deaf = comm.bell.ring(0)
    assert everyone((longer, deaf)) == [(True, False)] * comm.size
