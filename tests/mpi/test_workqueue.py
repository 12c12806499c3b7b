"""The queue: every task is run once, whatever the ranks, and faults cost one task."""

from __future__ import annotations

import contextlib
import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpiens import mpi
from mpiens.deadline import Deadline
from mpiens.heartbeat import SILENT, Heartbeat
from mpiens.outcome import Batch, Failure
from mpiens.reader import decode
from mpiens.row import Described, Row, checksum, settle
from mpiens.runner import Inline, Process
from mpiens.spec import Limits, Spec
from mpiens.window import nothing
from mpiens.worker import Worker
from mpiens.workqueue import Ending, Manager, SilentRank, Watch, work

Everyone = Callable[[Any], list[Any]]

pytestmark = pytest.mark.mpi
RUNNERS = {"process": Process, "none": Inline}
MODELS = """
import os
import time

import numpy as np


def draws(rng):
    return {"draw": rng.normal(size=3), "count": rng.integers(99)}


def fails_for_some(rng, replicate):
    if replicate % 5 == 2:
        raise RuntimeError(f"no replicate {replicate}")
    return draws(rng)


def begins_late(rng, replicate):
    if replicate < 3:
        raise RuntimeError(f"no replicate {replicate}")
    if replicate == 3:
        time.sleep(0.3)  # the others are there before it
        return {"draw": rng.normal(size=3)}
    if replicate % 4 == 0:
        return {"draw": rng.normal(size=2)}
    return {"draw": np.arange(3) + replicate}


def never_succeeds(replicate):
    raise RuntimeError(f"no replicate {replicate}")


def says_when():
    return {"when": time.monotonic()}


def has_one_that_is_long(replicate):
    began = time.monotonic()
    time.sleep(3.0 if replicate == 30 else 0.03)
    return {"when": began}


def says_who(replicate):
    return {"pid": os.getpid()}


def dies_for_some(rng, replicate):
    if replicate % 5 == 2:
        os._exit(7)
    return draws(rng)


def succeeds_the_second_time(rng, replicate):
    number = rng.normal()
    with open(f"{FOLDER}/{replicate}", "a") as log:
        log.write(f"{number.hex()}\\n")
        again = log.tell() > len(number.hex()) + 1
    if replicate % 3 == 1 and not again:
        raise RuntimeError("try again")
    return {"draw": number}
"""


@dataclass
class Kept:
    """What the manager hands over, in the order in which it does."""

    spec: Spec
    row: Row | None = None
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)

    def settle(self, described: Described | None) -> Row:
        assert self.row is None
        self.row = settle(self.spec, described) if described else Row(())
        return self.row

    def lay_down(self, meanwhile: Callable[[], object]) -> None:
        meanwhile()

    def write(self, batch: Batch, ranks: Any) -> None:
        assert self.row is not None
        for record, row, rank in zip(batch.records, batch.rows, ranks, strict=True):
            task = int(record["task"])
            assert task not in self.rows  # once, and never again
            assert checksum(row.tobytes()) == record["checksum"]
            self.rows[task] = {o.name: row[o.name].tolist() for o in self.row.outputs}
            self.attempts[task] = int(record["attempts"])
            self.ranks[task] = int(rank)

    def fail(self, failure: Failure, rank: int) -> None:
        assert failure.task not in self.failures
        self.failures[failure.task] = failure.text
        self.attempts[failure.task] = failure.attempts
        self.ranks[failure.task] = rank

    def expect(self, tasks: Any, *, wary: bool = False) -> Any:
        return np.full(len(tasks), np.nan)

    def tick(self) -> bool:
        return False


Run = Callable[..., Kept]


@pytest.fixture
def run(comm: mpi.Comm, common_path: Path) -> Run:
    """Run a model of this file on all ranks; every rank is told what was kept."""
    source = f"FOLDER = {str(common_path)!r}\n" + MODELS
    if comm.rank == 0:
        (common_path / "models.py").write_text(source)
    comm.raw.Barrier()

    def act(
        model: str,
        isolation: str = "process",
        replicates: int = 60,
        pending: list[int] | None = None,
        row: Row | None = None,
        **limits: Any,
    ) -> Kept:
        text = f"""
            [ensemble]
            model = "models.py:{model}"
            replicates = {replicates}
            seed = 11
            """
        document = textwrap.dedent(text)
        spec = decode(document, f"{common_path}/sweep.toml").require()
        kept = Kept(spec, row)
        start = partial(RUNNERS[isolation], spec, nothing)
        worker = Worker(start, Limits(**limits))
        watch = Watch(Deadline(), Heartbeat(30.0))
        with contextlib.closing(worker):
            if comm.rank == 0:
                tasks = range(replicates) if pending is None else pending
                order = np.array(tasks, dtype=np.int64)
                claims: list[list[int]] = [[] for _ in range(comm.size)]
                manager = Manager(comm, worker, kept, watch, order, row, claims)
                assert manager.run(mpi.Backoff(), []) is Ending.COMPLETE
            else:
                work(comm, worker, watch, mpi.Backoff(), [])
        told: Kept = comm.raw.bcast(kept)
        return told

    return act


def draw(replicate: int) -> dict[str, Any]:
    """Return what ``draws`` returns under the stream of the design."""
    stream = np.random.SeedSequence(11, spawn_key=(replicate,))
    rng = np.random.default_rng(stream)
    return {"draw": rng.normal(size=3).tolist(), "count": int(rng.integers(99))}


@pytest.mark.parametrize("isolation", RUNNERS)
@pytest.mark.parametrize("replicates", [1, 2, 60, 3000])
def test_every_task_is_run_once_under_its_own_stream(
    run: Run, isolation: str, replicates: int
) -> None:
    kept = run("draws", isolation, replicates)
    assert kept.rows == {replicate: draw(replicate) for replicate in range(replicates)}
    assert kept.failures == {}
    assert set(kept.attempts.values()) == {1}


@pytest.mark.parametrize("isolation", RUNNERS)
def test_a_model_that_fails_costs_its_tasks_and_no_others(
    run: Run, isolation: str
) -> None:
    kept = run("fails_for_some", isolation)
    assert kept.rows == {r: draw(r) for r in range(60) if r % 5 != 2}
    assert sorted(kept.failures) == list(range(2, 60, 5))
    for replicate, text in kept.failures.items():
        assert f"RuntimeError: no replicate {replicate}" in text


def test_a_model_that_ends_its_process_costs_its_tasks_and_no_others(run: Run) -> None:
    kept = run("dies_for_some", replicates=20)
    assert kept.rows == {r: draw(r) for r in range(20) if r % 5 != 2}
    assert sorted(kept.failures) == [2, 7, 12, 17]
    assert all("exit code 7" in text for text in kept.failures.values())


@pytest.mark.parametrize("isolation", RUNNERS)
def test_the_first_task_in_order_that_succeeds_settles_the_layout(
    run: Run, isolation: str
) -> None:
    kept = run("begins_late", isolation, replicates=40)
    assert kept.row is not None
    [output] = kept.row.outputs
    assert (output.name, output.shape, output.dtype) == ("draw", (3,), "<f8")
    whole = {r: [0.0 + r, 1.0 + r, 2.0 + r] for r in range(5, 40) if r % 4 != 0}
    assert kept.rows == {3: {"draw": draw(3)["draw"]}} | {
        replicate: {"draw": numbers} for replicate, numbers in whole.items()
    }
    assert sorted(kept.failures) == [0, 1, 2, *range(4, 40, 4)]
    assert all("shape (2,)" in kept.failures[r] for r in range(4, 40, 4))


@pytest.mark.parametrize("isolation", RUNNERS)
def test_where_no_task_succeeds_there_is_no_row(run: Run, isolation: str) -> None:
    kept = run("never_succeeds", isolation, replicates=12)
    assert kept.row == Row(())
    assert kept.rows == {}
    assert sorted(kept.failures) == list(range(12))


@pytest.mark.parametrize("pending", [[], [7], [41, 3, 59, 0, 8], [*range(59, 29, -1)]])
def test_what_is_pending_is_run_and_nothing_else(run: Run, pending: list[int]) -> None:
    row = run("draws", replicates=1).row
    kept = run("draws", pending=pending, row=row)
    assert kept.rows == {replicate: draw(replicate) for replicate in pending}


def test_tasks_are_dealt_in_the_order_in_which_they_are_pending(
    comm: mpi.Comm, run: Run
) -> None:
    pending = [int(task) for task in np.random.default_rng(2).permutation(60)]
    row = run("says_when", replicates=1).row
    kept = run("says_when", pending=pending, row=row)
    firsts = [kept.ranks[task] for task in pending[: comm.size]]
    assert firsts == list(range(comm.size))
    for rank in range(comm.size):
        own = [task for task in pending if kept.ranks[task] == rank]
        assert own == sorted(own, key=lambda task: float(kept.rows[task]["when"]))


def test_what_waits_behind_a_long_task_is_given_to_idle_ranks(
    comm: mpi.Comm, run: Run
) -> None:
    kept = run("has_one_that_is_long", replicates=40)
    assert sorted(kept.rows) == [*range(40)]
    when = {task: float(row["when"]) for task, row in kept.rows.items()}
    own = [task for task in kept.rows if kept.ranks[task] == kept.ranks[30]]
    later = [task for task in own if when[task] > when[30]]
    assert later == ([] if comm.size > 1 else sorted(set(range(31, 40))))


@pytest.mark.parametrize("isolation", RUNNERS)
def test_all_ranks_run_tasks_and_the_roots_too(
    comm: mpi.Comm, everyone: Everyone, run: Run, isolation: str
) -> None:
    kept = run("says_who", isolation, replicates=4 * comm.size)
    assert set(kept.ranks.values()) == set(range(comm.size))
    pids: list[set[int]] = [set() for _ in range(comm.size)]
    for task, rank in kept.ranks.items():
        pids[rank].add(kept.rows[task]["pid"])
    assert [len(own) for own in pids] == [1] * comm.size  # one runner each
    supervisors = everyone(os.getpid())
    inline = [own == {pid} for own, pid in zip(pids, supervisors, strict=True)]
    assert inline == [isolation == "none"] * comm.size


@pytest.mark.parametrize("isolation", RUNNERS)
def test_a_task_is_tried_again_under_the_same_stream(
    run: Run, common_path: Path, isolation: str
) -> None:
    kept = run("succeeds_the_second_time", isolation, replicates=12, retries=1)
    assert kept.failures == {}
    for replicate in range(12):
        tries = 2 if replicate % 3 == 1 else 1
        assert kept.attempts[replicate] == tries
        drawn = kept.rows[replicate]["draw"].hex()
        log = (common_path / str(replicate)).read_text()
        assert log == f"{drawn}\n" * tries


def test_a_root_that_is_silent_and_that_nobody_could_end_is_given_up(
    comm: mpi.Comm, everyone: Everyone, common_path: Path
) -> None:
    spec = bare_spec(comm, common_path)
    worker = Worker(lambda: Inline(spec, nothing), Limits())

    def act() -> str:
        if comm.rank == 0:
            return "silent"  # as one that is stopped
        watch = Watch(Deadline(), Heartbeat(0.5))
        try:
            work(comm, worker, watch, mpi.Backoff(), [])
        except SilentRank as news:
            return str(news)
        return "ended"

    told = ["silent"] + ["rank 0 has not answered for a long time"] * (comm.size - 1)
    assert everyone(act) == told


def test_a_root_that_is_busy_lets_the_others_hear(
    comm: mpi.Comm, everyone: Everyone, common_path: Path
) -> None:
    spec = bare_spec(comm, common_path)
    beat = 0.6

    @dataclass
    class Busy(Kept):
        def lay_down(self, meanwhile: Callable[[], object]) -> None:
            end = time.monotonic() + 1.5 * SILENT * beat
            while time.monotonic() < end:  # it lays down a large file
                comm.look()
                time.sleep(0.01)
            super().lay_down(meanwhile)

    watch = Watch(Deadline(), Heartbeat(beat))
    with contextlib.closing(Worker(lambda: Process(spec, nothing), Limits())) as worker:
        if comm.rank == 0:
            claims: list[list[int]] = [[] for _ in range(comm.size)]
            order = np.arange(spec.tasks)
            manager = Manager(comm, worker, Busy(spec), watch, order, None, claims)
            ended = manager.run(mpi.Backoff(), []) is Ending.COMPLETE
        else:
            work(comm, worker, watch, mpi.Backoff(), [])
            ended = True
    assert all(everyone(ended))


def test_a_stop_before_any_layout_is_known_holds_up_nobody(
    comm: mpi.Comm, everyone: Everyone, common_path: Path
) -> None:
    spec = bare_spec(comm, common_path)
    kept = Kept(spec)
    deadline = Deadline()

    class Asked(Deadline):
        """Asks for a stop once it has been looked at so often: tasks are under way."""

        looks = 0

        @property
        def asked(self) -> bool:
            self.looks += 1
            if self.looks == 2:
                self.ask("the test says so")
            return super().asked

    watch = Watch(Asked() if comm.rank == 0 else deadline, Heartbeat(30.0))
    with contextlib.closing(Worker(lambda: Process(spec, nothing), Limits())) as worker:
        if comm.rank == 0:
            claims: list[list[int]] = [[] for _ in range(comm.size)]
            order = np.arange(spec.tasks)
            manager = Manager(comm, worker, kept, watch, order, None, claims)
            ended = manager.run(mpi.Backoff(), []) is Ending.STOPPED
        else:
            work(comm, worker, watch, mpi.Backoff(), [])
            ended = True
    assert all(everyone(ended))
    # what the root itself had begun is kept all the same
    assert 0 in everyone(sorted(kept.rows))[0]


@pytest.mark.parametrize("moved", [True, False])
def test_no_task_is_left_out_while_it_is_asked_whether_the_end_has_moved(
    comm: mpi.Comm, everyone: Everyone, common_path: Path, moved: bool
) -> None:
    spec = bare_spec(comm, common_path)

    @dataclass
    class Long(Kept):
        """By what it knows, no task fits into the time that is left at first."""

        def expect(self, tasks: Any, *, wary: bool = False) -> Any:
            return np.full(len(tasks), 1000.0)

    class Doubtful(Deadline):
        """Has an answer when it has been asked so often."""

        doubts = 0

        def doubt(self) -> bool:
            self.doubts += 1
            if self.doubts == 5 and moved and self.end is not None:
                self.end += 1000
            return self.doubts < 5

    deadline = Doubtful(time.time() + 600 if comm.rank == 0 else None)
    watch = Watch(deadline, Heartbeat(30.0))
    kept = Long(spec)
    with contextlib.closing(Worker(lambda: Process(spec, nothing), Limits())) as worker:
        if comm.rank == 0:
            claims: list[list[int]] = [[] for _ in range(comm.size)]
            order = np.arange(spec.tasks)
            manager = Manager(comm, worker, kept, watch, order, None, claims)
            ending = manager.run(mpi.Backoff(), [])
            expected = Ending.COMPLETE if moved else Ending.STOPPED
            ended = ending is expected and deadline.doubts >= 5
        else:
            work(comm, worker, watch, mpi.Backoff(), [])
            ended = True
    assert all(everyone(ended))
    assert len(everyone(sorted(kept.rows))[0]) == (spec.tasks if moved else 0)


def bare_spec(comm: mpi.Comm, folder: Path) -> Spec:
    """A spec of one scenario, whose model every rank can find."""
    if comm.rank == 0:
        (folder / "models.py").write_text(f"FOLDER = {str(folder)!r}\n" + MODELS)
    comm.raw.Barrier()
    text = '[ensemble]\nmodel = "models.py:draws"\nreplicates = 12\nseed = 11\n'
    return decode(text, f"{folder}/sweep.toml").require()
