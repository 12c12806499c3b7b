"""The manager's loop, which deals tasks, and the worker's loop, which runs them.

The manager deals integers: ranges of tasks, sized by what tasks have taken so far, one
range ahead of need where tasks are short.  Every rank, the root too, has a
:class:`Worker` that keeps one runner busy.  All messages are point to point.
"""

from __future__ import annotations

import pickle
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mpiens.child import Ended
from mpiens.outcome import RECORD, Batch, Description, Failure, Tasks
from mpiens.row import Described, Row
from mpiens.runner import BATCH, DESCRIBE, FAILURE, ROW, TASKS, Runner

if TYPE_CHECKING:
    from mpiens.mpi import Backoff, Comm

# tags of the queue's messages; the first three come from the manager
TAG_DEAL, TAG_ROW, TAG_STOP, TAG_NEWS = 11, 12, 13, 14

RANGE_SECONDS = 0.1  # what a range should take
AHEAD_SECONDS = 0.25  # ranges shorter than this are dealt one ahead of need
HELD_BYTES = 64 << 20  # results a rank may hold back while no layout is known
UNSENT_BYTES = 16 << 20  # results a rank may have under way to the root
START_TRIES = 3  # runners in a row that may end before their first task


class Sink(Protocol):
    """Where the manager puts what has been finished."""

    def settle(self, described: Described | None) -> Row:
        """Lay down the file; None where no task of the ensemble has succeeded."""

    def write(self, batch: Batch, rank: int) -> None:
        """Keep finished tasks."""

    def fail(self, failure: Failure, rank: int) -> None:
        """Keep a failed task."""

    def tick(self) -> None:
        """Called often, for progress and clocks."""


@dataclass
class Worker:
    """Keeps one runner busy and alive; knows of no other rank.

    A task is retried here, with the same stream, as often as ``retries`` says.
    """

    start: Callable[[], Runner]
    retries: int = 0
    task_seconds: float | None = None
    _orders: deque[tuple[Tasks, int]] = field(default_factory=deque)
    _given: dict[int, int] = field(default_factory=dict)  # task to attempt
    _held: set[int] = field(default_factory=set)  # run, but held back by the runner
    _row: Row | None = None
    _killed_at: float | None = None
    _failed_starts: int = 0

    def __post_init__(self) -> None:
        self.runner = self.start()

    def deal(self, tasks: Tasks) -> None:
        """Take a range of tasks."""
        self._orders.append((tasks, 1))

    def settle(self, row: Row) -> None:
        """Take the layout of rows, which releases results held back for it."""
        self._row = row
        self.runner.send(ROW, pickle.dumps(row))

    def step(self) -> Iterator[tuple[int, bytearray]]:
        """Look after the runner and yield its news: (kind, data)."""
        if len(self._given) == len(self._held) and self._orders:
            self._order(*self._orders.popleft())
        try:
            for kind, data in self.runner.poll():
                yield from self._hear(kind, data)
            self._watch()
        except Ended:
            yield from self._recover()

    def wait(self, seconds: float) -> None:
        """Sleep until the runner has something to say, at most so long."""
        self.runner.wait(seconds)

    def close(self) -> None:
        """End the runner."""
        self.runner.close()

    def _order(self, tasks: Tasks, attempt: int) -> None:
        self._given.update(dict.fromkeys(tasks.tolist(), attempt))
        self.runner.send(TASKS, pickle.dumps((tasks, attempt)))

    def _hear(self, kind: int, data: bytearray) -> Iterator[tuple[int, bytearray]]:
        self._failed_starts = 0
        if kind == BATCH:
            count = int.from_bytes(data[:8], "little")
            for task in np.frombuffer(data, RECORD, count, offset=8)["task"].tolist():
                self._forget(task)
            yield kind, data
        elif kind == DESCRIBE:
            news: Description = pickle.loads(data)
            self._held.add(news.task)
            yield kind, data
        else:
            failure: Failure = pickle.loads(data)
            self._forget(failure.task)
            yield from self._retry(failure)

    def _forget(self, task: int) -> None:
        del self._given[task]
        self._held.discard(task)

    def _retry(self, failure: Failure) -> Iterator[tuple[int, bytearray]]:
        """Try a failed task again, or tell that it failed for good."""
        if failure.attempts <= self.retries:
            again = np.array([failure.task], dtype=np.int64)
            self._orders.appendleft((again, failure.attempts + 1))
            return
        if self.runner.tail:
            printed = bytes(self.runner.tail).decode(errors="replace")
            text = f"{failure.text}\nThe model's last lines of output:\n{printed}"
            failure = replace(failure, text=text)
        yield FAILURE, bytearray(pickle.dumps(failure))

    def _watch(self) -> None:
        """End a runner whose task takes longer than it may."""
        if self.task_seconds is None or self._killed_at is not None:
            return
        task, since = self.runner.cell.read()
        if task >= 0 and time.monotonic() - since > self.task_seconds:
            self._killed_at = time.monotonic()
            self.runner.kill()

    def _recover(self) -> Iterator[tuple[int, bytearray]]:
        """Put a new runner in a dead one's place and blame the task that it ran."""
        task, since = self.runner.cell.read()
        how = self.runner.bury()
        if self._killed_at is not None:
            how = f"the task took longer than task_seconds = {self.task_seconds}"
        seconds = time.monotonic() - since if task >= 0 else 0.0
        if task < 0 and self._given:
            self._failed_starts += 1
            if self._failed_starts >= START_TRIES:
                task = next(iter(self._given))
        self._killed_at = None
        dead, self.runner = self.runner, self.start()
        if self._row is not None:
            self.runner.send(ROW, pickle.dumps(self._row))
        blamed = self._given.pop(task, None)
        for attempt in sorted(set(self._given.values())):
            lost = [t for t, a in self._given.items() if a == attempt]
            self._orders.appendleft((np.array(lost, dtype=np.int64), attempt))
        self._given, self._held = {}, set()
        if blamed is not None:
            self.runner.tail = dead.tail
            failure = Failure(task, blamed, seconds, f"task {task}: {how}")
            yield from self._retry(failure)
            self.runner.tail = bytearray()


def work(comm: Comm, worker: Worker, backoff: Backoff) -> None:
    """Run what the manager deals until it says stop: the loop of all other ranks."""
    stopped = False
    while not stopped:
        busy = False
        while (message := comm.poll()) is not None:
            busy = True
            if message.tag == TAG_DEAL:
                worker.deal(np.frombuffer(message.data, dtype=np.int64))
            elif message.tag == TAG_ROW:
                worker.settle(pickle.loads(message.data))
            else:
                stopped = True
        if comm.unsent() < UNSENT_BYTES:  # else the root is behind: let it catch up
            for kind, data in worker.step():
                busy = True
                comm.post(0, TAG_NEWS, bytes([kind]) + data)
        if busy:
            backoff.reset()
        else:
            worker.wait(backoff.next())
    comm.flush()


@dataclass
class Rank:
    """What the manager knows of one rank."""

    left: int = 0  # tasks dealt to it and not finished
    last: int = 0  # tasks of the range it was dealt last
    held: int = 0  # tasks it has run but holds back while no layout is known
    held_bytes: int = 0


@dataclass
class Manager:
    """Deals the pending tasks to all ranks and hands what they finish to the sink.

    ``pending`` is in the order in which tasks are to be dealt.  Where ``row`` is None
    the layout is settled by the first task in task order that succeeds.
    """

    comm: Comm
    worker: Worker
    sink: Sink
    pending: Tasks
    row: Row | None

    def __post_init__(self) -> None:
        self._ranks = [Rank() for _ in range(self.comm.size)]
        self._next = 0
        self._open = set(self.pending.tolist())
        self._seconds = 0.0
        self._finished = 0
        self._described: dict[int, Described] = {}
        self._undecided: deque[int] = deque(sorted(self._open))

    def run(self, backoff: Backoff) -> None:
        """Deal until every task is finished: the root's loop."""
        if self.row is not None:
            self._settle(self.row)
        while self._open or self.row is None:
            self._deal()
            busy = False
            while (message := self.comm.poll()) is not None:
                busy = True
                news = memoryview(message.data)
                self._hear(message.source, news[0], news[1:])
            for kind, data in self.worker.step():
                busy = True
                self._hear(0, kind, memoryview(data))
            self.comm.unsent()
            self.sink.tick()
            if busy:
                backoff.reset()
            else:
                self.worker.wait(backoff.next())
        for rank in range(1, self.comm.size):
            self.comm.post(rank, TAG_STOP, b"")
        self.comm.flush()

    def _hear(self, rank: int, kind: int, data: memoryview) -> None:
        if kind == BATCH and self.row is not None:
            batch = Batch.from_bytes(data, self.row)
            self.sink.write(batch, rank)
            self._finish(rank, batch.records["task"].tolist())
            self._seconds += float(batch.records["seconds"].sum())
        elif kind == FAILURE:
            failure: Failure = pickle.loads(data)
            self._finish(rank, [failure.task])
            self._seconds += failure.seconds
            self.sink.fail(failure, rank)
            if self.row is None:
                self._described[failure.task] = {}
                self._decide()
        elif kind == DESCRIBE:
            news: Description = pickle.loads(data)
            self._ranks[rank].held += 1
            self._ranks[rank].held_bytes += news.nbytes
            if self.row is None:
                self._described[news.task] = news.described
                self._decide()

    def _finish(self, rank: int, tasks: list[int]) -> None:
        self._ranks[rank].left -= len(tasks)
        self._finished += len(tasks)
        self._open.difference_update(tasks)

    def _decide(self) -> None:
        """Settle the layout once the first task in order that succeeded is known."""
        while self.row is None and self._undecided:
            described = self._described.get(self._undecided[0])
            if described is None:
                return
            if described:
                self._settle(self.sink.settle(described))
            self._undecided.popleft()
        if self.row is None:
            self._settle(self.sink.settle(None))

    def _settle(self, row: Row) -> None:
        self.row = row
        data = pickle.dumps(row)
        for rank in range(1, self.comm.size):
            self.comm.post(rank, TAG_ROW, data)
        self.worker.settle(row)
        for known in self._ranks:
            known.held = 0

    def _deal(self) -> None:
        """Give work to every rank that runs out of it."""
        while self._next < len(self.pending):
            dealt = False
            for number, rank in enumerate(self._ranks):
                if self._next < len(self.pending) and self._wants(rank):
                    self._deal_range(number, rank)
                    dealt = True
            if not dealt:
                return

    def _wants(self, rank: Rank) -> bool:
        if self.row is None:  # one at a time, while the rank may hold back more
            return rank.left <= rank.held and rank.held_bytes < HELD_BYTES
        short = self._range() * self._mean() < AHEAD_SECONDS
        return rank.left <= (rank.last if short else 0)

    def _deal_range(self, number: int, rank: Rank) -> None:
        count = self._range()
        tasks = self.pending[self._next : self._next + count]
        self._next += len(tasks)
        rank.left += len(tasks)
        rank.last = len(tasks)
        if number == 0:
            self.worker.deal(tasks)
        else:
            self.comm.post(number, TAG_DEAL, tasks.tobytes())

    def _mean(self) -> float:
        """Return the seconds that a task takes, as far as is known."""
        return self._seconds / self._finished if self._finished else AHEAD_SECONDS

    def _range(self) -> int:
        """Return how many tasks the next range holds.

        Guided (Polychronopoulos and Kuck, IEEE Trans. Comput. C-36, 1987), so that
        the last ranges are short, and never longer than RANGE_SECONDS.
        """
        if self.row is None or not self._finished:
            return 1
        left = len(self.pending) - self._next
        guided = -(-left // (2 * self.comm.size))
        return max(1, min(guided, int(RANGE_SECONDS / max(self._mean(), 1e-7))))
