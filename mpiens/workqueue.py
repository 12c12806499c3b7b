"""The manager's loop, which deals tasks, and the worker's loop, which runs them.

The manager deals integers: ranges of tasks, sized by what tasks have taken so far, one
range ahead of need where tasks are short.  Every rank, the root too, has a
:class:`Worker` that keeps one runner busy.  All messages are point to point.
"""

from __future__ import annotations

import pickle
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from mpiens.deadline import GRACE, Deadline
from mpiens.heartbeat import Heartbeat
from mpiens.outcome import (
    BACK,
    BATCH,
    DESCRIBE,
    FAILURE,
    STEP,
    Batch,
    Description,
    Failure,
    Inputs,
    Ranks,
    StepResult,
    Tasks,
    join,
)
from mpiens.row import Described, Row
from mpiens.worker import Worker

if TYPE_CHECKING:
    from mpiens.mpi import Backoff, Comm, Message

# tags of the queue's messages; the first four come from the manager, the last from all
TAG_DEAL, TAG_ROW, TAG_STOP, TAG_RECALL = range(11, 15)
TAG_NEWS, TAG_ASK, TAG_BYE, TAG_PULSE = range(15, 19)
_SECONDS = struct.Struct("<d")

RANGE_SECONDS = 0.02  # what a range should take at most, and more by that for each rank
RANK_SECONDS = 1e-4
LEAST_SECONDS = 2.5e-3  # what a range should take at least, to be worth its message
GUESS_SECONDS = 0.25  # what a task takes while nothing is known
PEEK = 1000  # tasks, at least, of which it is asked how long they will take
LOOK_SECONDS = 0.1  # between two looks whether all that is pending still fits in time
TURN = 256  # messages, and bytes of rows, at most, that are heard before any is written
TURN_BYTES = 1 << 20
# ranges shorter than this are dealt one ahead of need: to ranks that the root can wake,
# and to others
NEAR_SECONDS, FAR_SECONDS = 0.03, 0.25
# and up to that while there are tasks for all; they are called back if others are idle
MANY_SECONDS = 1.0
RECALL_SECONDS = 0.01  # what is worth to be called back
LATE = 5.0  # seconds of the deadline's margin for tasks longer than expected
HELD_BYTES = 64 << 20  # results a rank may hold back while no layout is known
UNSENT_BYTES = 16 << 20  # results a rank may have under way to the root


class Sink(Protocol):
    """Where the manager puts what has been finished."""

    def settle(self, described: Described | None) -> Row:
        """Return what rows are like; None where no task of the ensemble has succeeded.

        From now on rows may be written.
        """

    def lay_down(self, meanwhile: Callable[[], object]) -> None:
        """Lay down the file, now that rows are settled; ``meanwhile`` is called often.

        It may bring the first rows.
        """

    def write(self, batch: Batch, ranks: Ranks) -> None:
        """Keep finished tasks; which rank has run each stands beside them."""

    def fail(self, failure: Failure, rank: int) -> None:
        """Keep a failed task."""

    def expect(self, tasks: Tasks, *, wary: bool = False) -> NDArray[np.float64]:
        """Return the seconds that tasks will take; NaN where nothing is known.

        Where others are known, that are what they take in the mean; who is ``wary``
        is told what they take at most.
        """

    def keep(self, result: StepResult, rank: int) -> None:
        """Keep what a scenario's step has made."""

    def inputs(self, scenario: int) -> bytes:
        """Return what the next range's tasks of a scenario are given, if anything."""

    def tick(self) -> bool:
        """Called often, for progress; whether the run is hopeless and should end."""


class Source(Protocol):
    """Where the manager gets tasks that are not known when it begins."""

    @property
    def over(self) -> bool:
        """Whether no more will come, and none is waited for."""

    @property
    def hurry(self) -> bool:
        """Whether more will come, and a rank of another node would wait for it."""

    def more(self, tasks: int, *, begin: bool) -> tuple[list[int], list[int]]:
        """Return what else is to be run: before all that is pending, and after it.

        ``tasks`` are dealt or pending; nothing new is begun where time is short.
        """


class SilentRank(RuntimeError):  # noqa: N818  (it is news, not an error)
    """A rank does not answer, and nobody could end it."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"rank {rank} has not answered for a long time")


class Ending(Enum):
    """How dealing came to its end."""

    COMPLETE = "complete"
    STOPPED = "stopped"  # by a signal, or for want of time
    GIVEN_UP = "given up"  # too many tasks failed


@dataclass(frozen=True)
class Watch:
    """What a rank looks at beside its work."""

    deadline: Deadline
    heartbeat: Heartbeat


def work(
    comm: Comm,
    worker: Worker,
    watch: Watch,
    backoff: Backoff,
    unsent: list[bytes],
) -> None:
    """Run what the manager deals until it says stop: the loop of all other ranks.

    ``unsent`` is news that an earlier root may have missed; it is emptied.  Raises
    RankLost where another rank has died, and SilentRank where the root has stopped and
    nobody could end it; the worker goes on all the same.
    """
    deadline, heartbeat = watch.deadline, watch.heartbeat
    while unsent:
        comm.post(0, TAG_NEWS, unsent.pop())
    stop: float | None = None  # when running tasks are dropped, on the deadline's clock
    asked = False
    while True:
        busy = False
        while (message := comm.poll()) is not None:
            busy = True
            heartbeat.hear(message.source)
            if message.tag == TAG_RECALL:
                back = worker.give_back().tobytes()
                comm.post(0, TAG_NEWS, back + bytes([BACK]))
            elif (grace := _obey(message, worker)) is not None:
                stop = deadline.clock() + grace
        if heartbeat.is_due():
            comm.whisper(0, TAG_PULSE)
        if heartbeat.silent([0]):
            raise SilentRank(0)
        if deadline.asked and not asked:
            asked = True
            comm.post(0, TAG_ASK, deadline.reason.encode())
        if comm.unsent() < UNSENT_BYTES:  # else the root is behind: let it catch up
            for kind, data in worker.step():
                busy = True
                data.append(kind)  # at the end, where it costs no copy
                comm.post(0, TAG_NEWS, data)
        if stop is not None and (worker.idle or deadline.clock() >= stop):
            break
        _rest(comm, worker, backoff, busy=busy)
    comm.post(0, TAG_BYE, b"")
    comm.flush()


def _rest(comm: Comm, worker: Worker, backoff: Backoff, *, busy: bool) -> None:
    """Sleep until something happens, but for who was ``busy`` just now."""
    if not busy:
        rang = worker.wait(backoff.next(), comm.bell)
    elif comm.is_laden():
        rang = True
    else:
        rang = False
        backoff.rest()
    if rang:
        backoff.reset()


def _obey(message: Message, worker: Worker) -> float | None:
    """Do what the manager says; return the seconds that are left where it says stop."""
    if message.tag == TAG_DEAL:
        worker.deal(*unpack_range(message.data))
    elif message.tag == TAG_ROW:
        worker.settle(pickle.loads(message.data))
    elif message.tag == TAG_STOP:
        worker.drop()
        seconds: float = _SECONDS.unpack(message.data)[0]
        return seconds
    return None


def pack_range(tasks: Tasks, inputs: Inputs) -> bytes:
    """Write a range of tasks, and what they are given, as one message."""
    head = len(tasks).to_bytes(8, "little") + tasks.tobytes()
    return head + pickle.dumps(inputs) if inputs else head


def unpack_range(data: bytes | bytearray | memoryview) -> tuple[Tasks, Inputs]:
    """Read a range of tasks, and what they are given."""
    count = int.from_bytes(data[:8], "little")
    tasks = np.frombuffer(data, np.int64, count, offset=8)
    rest = memoryview(data)[8 + tasks.nbytes :]
    return tasks, pickle.loads(rest) if rest else {}


def tasks_of_news(news: list[bytes]) -> list[int]:
    """Return the tasks whose end is told."""
    tasks: list[int] = []
    for data in news:
        if data[-1] == BATCH:
            tasks += Batch.tasks_of(memoryview(data)[:-1])
        elif data[-1] in (FAILURE, STEP):
            tasks.append(pickle.loads(memoryview(data)[:-1]).task)
    return tasks


@dataclass
class Rank:
    """What the manager knows of one rank."""

    left: int = 0  # tasks dealt to it and not finished
    last: int = 0  # tasks of the range it was dealt last
    seconds: float = GUESS_SECONDS  # what that range should take
    near: bool = True  # it can be woken, and needs next to nothing ahead of need
    recalled: bool = False  # it has been asked to give back what it has not begun
    held: int = 0  # tasks it has run but holds back while no layout is known
    held_bytes: int = 0
    scenarios: frozenset[int] = frozenset()  # whose inputs it has


@dataclass(frozen=True)
class Gate:
    """Tasks that wait for a step of their scenario.

    ``steps`` has the number of every scenario's step, and ``done`` says which of them
    need not be run.  What tasks are given takes some ``nbytes`` a scenario.
    """

    steps: Tasks
    done: NDArray[np.bool_]
    nbytes: int = 1


@dataclass
class Manager:
    """Deals the pending tasks to all ranks and hands what they finish to the sink.

    ``pending`` is in the order in which tasks are to be dealt.  Where ``row`` is None
    the layout is settled by the first task in task order that succeeds.
    """

    comm: Comm
    worker: Worker
    sink: Sink
    watch: Watch
    pending: Tasks
    row: Row | None
    claims: list[list[int]]  # by rank: tasks dealt by a manager before this one
    scouts: Tasks | None = None  # those that may settle the layout, if not the pending
    gate: Gate | None = None
    source: Source | None = None

    def __post_init__(self) -> None:
        self._ranks = [Rank(left=len(claimed)) for claimed in self.claims]
        for number, rank in enumerate(self._ranks):
            rank.near = number == 0 or self.comm.bell.knows(number)
        self._hungry = {*range(self.comm.size)}  # ranks that may want work
        self._open = set(self.pending.tolist())
        self._claimed = {task for tasks in self.claims for task in tasks}
        self._blocked: dict[int, Tasks] = {}  # by the step that they wait for
        todo = self.pending[~np.isin(self.pending, list(self._claimed))]
        self.pending = todo[:0]
        self._admit(todo)
        self._seconds = 0.0
        self._finished = 0
        self._guess = GUESS_SECONDS
        self._working = set(range(1, self.comm.size))  # that have not said goodbye
        self.deadline = self.watch.deadline
        self.trouble: OSError | None = None
        self.seconds = 0.0  # from the first range that was dealt to the last row
        self._short_of_time = False  # some tasks have been left out
        self._stopping = False  # the others have been told, and may be gone
        self._heard: list[tuple[Batch, int]] = []  # rows that are to be written
        self._heard_bytes = 0
        self._ends = np.zeros(0)  # what the next pending tasks take, added up
        self._at = 0  # how many of those have been dealt
        self._left_out = float("-inf")  # when it was looked which do not fit
        self._laid = self.row is not None  # there is a file
        self._described: dict[int, Described] = {}
        scouts = self.pending if self.scouts is None else self.scouts
        self._undecided: deque[int] = deque(sorted(scouts.tolist()))

    def run(self, backoff: Backoff, unsent: list[bytes]) -> Ending:
        """Deal until every task is finished, or there is a reason to stop.

        An OSError of the sink, such as a full disk, is such a reason: it is kept as
        ``trouble``, and no further news is taken.
        """
        before, self.comm.on_wait = self.comm.on_wait, self._beat
        try:
            return self._run(backoff, unsent)
        finally:
            self.comm.on_wait = before

    def _run(self, backoff: Backoff, unsent: list[bytes]) -> Ending:
        began = time.monotonic()
        if self.row is not None:
            self._settle(self.row)
        self._scout()
        self._restock()  # before any news: some of it may be of what comes here
        while unsent:
            news = memoryview(unsent.pop())
            self._hear(0, news[-1], news[:-1])
        self._write()
        while True:
            self._lay_down()
            self._deal()  # before more is asked for, which may take a while
            self._restock()
            if (ending := self._judge()) is not None:
                break
            self._turn(backoff)
        self.seconds = time.monotonic() - began
        self._stopping = True
        left = self.deadline.remaining()
        grace = GRACE if left is None else max(left, LATE)
        grace = grace if ending is Ending.STOPPED else 0.0
        stop = self.deadline.clock() + grace
        for rank in range(1, self.comm.size):
            self.comm.post(rank, TAG_STOP, _SECONDS.pack(grace))
        self.worker.drop()
        while self._working or not (self.worker.idle or self.deadline.clock() >= stop):
            self._turn(backoff)
        self._lay_down()  # of the last that was heard
        self.comm.flush()
        return ending

    def _is_sated(self) -> bool:
        """Whether no more tasks will come from anywhere."""
        return self.source is None or self.source.over

    def _count_open(self) -> int:
        """Return how many tasks are dealt or pending, but for those that are held."""
        held = sum(rank.held for rank in self._ranks) if self.row is None else 0
        return len(self._open) - held

    def _restock(self) -> None:
        """Take what more there is to be run, unless dealing is about to end."""
        if self.source is None or self.trouble is not None or self.deadline.asked:
            return
        try:
            tasks, begin = self._count_open(), not self._short_of_time
            urgent, rest = self.source.more(tasks, begin=begin)
            new = [t for t in rest if t not in self._claimed]
            first = [t for t in urgent if t not in self._claimed]
            self._open.update(urgent, rest)
            parts = np.array(first, np.int64), self.pending, np.array(new, np.int64)
            self.pending = np.concatenate(parts)
            if self.row is None and (rest or not self._open):
                self._undecided.extend(rest)
                self._decide()
        except OSError as error:
            self.trouble = error

    def _judge(self) -> Ending | None:
        """Return how dealing has ended, or None while it goes on."""
        if self.trouble is not None:
            return Ending.STOPPED
        if not self._open and self.row is not None and self._is_sated():
            return Ending.COMPLETE
        if self.sink.tick():
            return Ending.GIVEN_UP
        nothing_fits = not len(self.pending) and all(r.left <= 0 for r in self._ranks)
        over = self.deadline.asked or self.deadline.remaining() == 0
        return Ending.STOPPED if over or nothing_fits else None

    def _beat(self) -> None:
        """Look after the ranks of this node, and let all ranks hear from the root."""
        heartbeat = self.watch.heartbeat
        heartbeat.look()
        if heartbeat.is_due():
            for rank in range(1, self.comm.size):
                self.comm.whisper(rank, TAG_PULSE)

    def _lay_down(self) -> None:
        """Have the file laid down once rows are settled, and go on dealing meanwhile.

        This is no part of hearing the news that settles them, for it hears news itself.
        """
        if self.row is None or self._laid:
            return
        self._laid = True

        try:
            self.sink.lay_down(self._go_on)
        except OSError as error:
            self.trouble = error

    def _turn(self, backoff: Backoff) -> None:
        """Hear all news there is, or sleep a little."""
        _rest(self.comm, self.worker, backoff, busy=self._go_on())

    def _go_on(self) -> bool:
        """Hear all news there is, deal, write what was heard; return whether any was.

        In that order, for who has told is waiting for more.
        """
        heard = self._listen()
        over = self._stopping or self.deadline.asked or self.sink.tick()
        if not over:
            self._deal()
            if heard:
                self._recall()
                self._deal()
        self._write()
        return heard

    def _listen(self) -> bool:
        """Hear all news there is; whether there was any."""
        heard = 0
        while heard < TURN and (message := self.comm.poll()) is not None:
            heard += 1
            self.watch.heartbeat.hear(message.source)
            if message.tag == TAG_NEWS:
                news = memoryview(message.data)
                self._hear(message.source, news[-1], news[:-1])
            elif message.tag == TAG_ASK:
                self.deadline.ask(f"{message.data.decode()} by rank {message.source}")
            elif message.tag == TAG_BYE:
                self._working.discard(message.source)
        for kind, data in self.worker.step():
            heard += 1
            self._hear(0, kind, memoryview(data))
        if silent := self.watch.heartbeat.silent(self._working):
            raise SilentRank(silent[0])
        self.comm.unsent()
        return heard > 0

    def _hear(self, rank: int, kind: int, data: memoryview) -> None:
        self._hungry.add(rank)
        if self.trouble is not None:
            return
        try:
            self._take(rank, kind, data)
        except OSError as error:
            self.trouble = error

    def _take(self, rank: int, kind: int, data: memoryview) -> None:
        if kind == BATCH and self.row is not None:
            batch = Batch.from_bytes(data, self.row)
            if self._is_news(rank, batch.records["task"].tolist()):
                self._heard.append((batch, rank))
                self._heard_bytes += batch.rows.nbytes
                if self._heard_bytes > TURN_BYTES:
                    self._write()
                self._finish(rank, batch.records["task"].tolist())
                self._seconds += float(batch.records["seconds"].sum())
        elif kind == FAILURE:
            failure: Failure = pickle.loads(data)
            if self._is_news(rank, [failure.task]):
                self._finish(rank, [failure.task])
                self._fail(failure, rank)
        elif kind == STEP:
            result: StepResult = pickle.loads(data)
            if self._is_news(rank, [result.task]):
                self._finish(rank, [result.task])
                self._seconds += result.seconds
                self.sink.keep(result, rank)
                self._release(result.task)
        elif kind == BACK:
            self._take_back(rank, np.frombuffer(data, np.int64))
        elif kind == DESCRIBE:
            news: Description = pickle.loads(data)
            self._ranks[rank].held += 1
            self._ranks[rank].held_bytes += news.nbytes
            self._guess = min(self._guess, news.seconds)
            if self.row is None:
                self._described[news.task] = news.described
                self._decide()

    def _write(self) -> None:
        """Hand over the rows that were heard, together, for that takes less."""
        heard, self._heard, self._heard_bytes = self._heard, [], 0
        try:
            for batch, ranks in join(heard) if self.trouble is None else ():
                self.sink.write(batch, ranks)
        except OSError as error:
            self.trouble = error

    def _fail(self, failure: Failure, rank: int) -> None:
        self._seconds += failure.seconds
        waiting = self._blocked.pop(failure.task, None)
        self.sink.fail(failure, rank)
        if self.row is None:
            self._described[failure.task] = {}
            self._decide()
        text = f"[prepare] of its scenario failed:\n{failure.text}"
        for task in [] if waiting is None else waiting.tolist():
            self._open.discard(task)  # without the step there is no such task
            self._fail(replace(failure, task=task, seconds=0.0, text=text), rank)

    def _admit(self, tasks: Tasks) -> None:
        """Put tasks in front, or behind the step that they wait for."""
        if self.gate is None or not len(tasks):
            self.pending = np.r_[tasks, self.pending]
            return
        scenarios = np.array([self.worker.scenario_of(t) for t in tasks.tolist()])
        waits = ~self.gate.done[scenarios]
        steps: list[int] = []
        waiting: dict[int, list[int]] = {}
        steps_of = self.gate.steps[scenarios[waits]].tolist()
        for step, task in zip(steps_of, tasks[waits].tolist(), strict=True):
            waiting.setdefault(step, []).append(task)
        for step, own in waiting.items():
            before = self._blocked.get(step, self.pending[:0])
            self._blocked[step] = np.r_[before, np.array(own, dtype=np.int64)]
            if not (step in self._open or step in self._claimed):
                steps.append(step)
            self._open.add(step)
        ready = tasks[~waits], self.pending, np.array(steps, dtype=np.int64)
        self.pending = np.concatenate(ready)

    def _release(self, step: int) -> None:
        """Let those tasks be dealt that have waited for a step."""
        if self.gate is not None:
            self.gate.done[self.gate.steps == step] = True
        waiting = self._blocked.pop(step, self.pending[:0])
        self.pending = np.r_[self.pending, waiting]

    def _is_news(self, rank: int, tasks: list[int]) -> bool:
        """Whether tasks are still open: a root that died may have written them."""
        known = self._open.isdisjoint(tasks)
        if known:
            self._ranks[rank].left -= len(tasks)
        return not known

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
            self._scout()
        if self.row is None and self._is_sated():
            self._settle(self.sink.settle(None))

    def _scout(self) -> None:
        """Deal the task next that decides the layout, be it another shard's."""
        if self.row is None and self._undecided:
            head = self._undecided[0]
            if head not in self._open and head not in self._described:
                self._open.add(head)
                if head not in self._claimed:
                    self._admit(np.array([head], dtype=np.int64))

    def _settle(self, row: Row) -> None:
        self.row = row
        data = pickle.dumps(row)
        # after a stop others may have gone, and would never receive it
        for rank in () if self._stopping else range(1, self.comm.size):
            self.comm.post(rank, TAG_ROW, data)
        self.worker.settle(row)
        for known in self._ranks:
            known.held, known.seconds = 0, self._guess
        self._hungry.update(range(self.comm.size))
        if not self._stopping:
            self._deal()

    def _deal(self) -> None:
        """Give work to every rank that runs out of it."""
        self._ends, self._at = self._ends[:0], 0  # much may have changed
        dealt = True
        while dealt and len(self.pending):
            dealt = False
            for number in self._in_turn():
                rank = self._ranks[number]
                if not len(self.pending):
                    return
                if not self._wants(rank):
                    self._hungry.discard(number)
                    continue
                if self.gate is not None and self.comm.unsent() > UNSENT_BYTES:
                    return
                if not self._leave_out() or not len(self.pending):
                    return
                self._deal_range(number, rank)
                dealt = True

    def _recall(self) -> None:
        """Call back what some ranks have not begun while others have nothing to do.

        A range that was dealt ahead of need waits where a task proves to be long.
        """
        if self.row is None or len(self.pending):
            return
        idle = sum(rank.left <= 0 for rank in self._ranks)
        idle -= sum(rank.recalled for rank in self._ranks)
        usual = self._seconds / self._finished if self._finished else self._guess
        waiting = [
            number
            for number, rank in enumerate(self._ranks)
            if rank.left > rank.last and not rank.recalled
            # what it was expected to take when it was dealt, or what others have taken
            if min(rank.seconds, 10 * usual * rank.last) >= RECALL_SECONDS
        ]
        for number in waiting[: max(0, idle)]:
            if number == 0:
                self._take_back(0, self.worker.give_back())
            else:
                self._ranks[number].recalled = True
                self.comm.post(number, TAG_RECALL, b"")

    def _take_back(self, number: int, tasks: Tasks) -> None:
        rank = self._ranks[number]
        rank.left -= len(tasks)
        rank.recalled = False
        rank.last = 0  # what it has now it has begun
        self.pending = np.r_[tasks, self.pending]

    def _in_turn(self) -> list[int]:
        """Return the ranks that may want work in the order in which they get it.

        Of few tasks the idle ranks get theirs before others get one ahead of need.
        """
        if self.source is None and self.row is not None:
            return sorted(self._hungry)
        ranks = range(self.comm.size)  # what they want may have changed without news
        if self.source is None:
            return [*ranks]
        return sorted(ranks, key=lambda number: self._ranks[number].left)

    def _leave_out(self) -> bool:
        """Take tasks off for good that the remaining time will not hold.

        False, and all are left, while Slurm is asked whether the job's end has moved.
        """
        now = self.deadline.clock()
        if now - self._left_out < LOOK_SECONDS and len(self.pending) > PEEK:
            return True
        self._left_out = now
        if self.deadline.remaining() is not None and self._too_long().any():
            self._ends = self._ends[:0]
            if self.deadline.doubt():
                self._left_out = float("-inf")
                return False
            long = self._too_long()  # by what is known now
            self._short_of_time |= bool(long.any())
            self.pending = self.pending[~long]
        return True

    def _too_long(self) -> NDArray[np.bool_]:
        """Tell of every pending task whether the remaining time will not hold it."""
        remaining = self.deadline.remaining()
        limit = np.inf if remaining is None else remaining
        return np.asarray(self.sink.expect(self.pending, wary=True) > limit)

    def _wants(self, rank: Rank) -> bool:
        if self.row is None:  # one at a time, while the rank may hold back more
            return rank.left <= rank.held and rank.held_bytes < HELD_BYTES
        if rank.recalled:
            return False
        usual = NEAR_SECONDS if rank.near else FAR_SECONDS
        many = len(self.pending) >= self.comm.size and self.source is None
        ahead = rank.seconds < (MANY_SECONDS if many else usual)
        if not rank.near and self.source is not None:
            ahead = ahead or self.source.hurry
        return rank.left <= (rank.last if ahead else 0)

    def _deal_range(self, number: int, rank: Rank) -> None:
        count, seconds = self._range()
        tasks, self.pending = self.pending[:count], self.pending[count:]
        self._at += count
        rank.left += len(tasks)
        rank.last, rank.seconds = len(tasks), seconds
        inputs = self._inputs(rank, tasks)
        if number == 0:
            self.worker.deal(tasks, inputs)
        else:
            self.comm.post(number, TAG_DEAL, pack_range(tasks, inputs))

    def _inputs(self, rank: Rank, tasks: Tasks) -> Inputs:
        """Return what tasks are given, but for what the rank has of its last range."""
        if self.gate is None:
            return {}
        before = rank.scenarios
        scenarios = set(map(self.worker.scenario_of, tasks.tolist()))
        rank.scenarios = frozenset(s for s in scenarios if self.gate.done[s])
        return {s: self.sink.inputs(s) for s in rank.scenarios - before}

    def _range(self) -> tuple[int, float]:
        """Return how many tasks the next range holds, and the seconds it should take.

        Guided (Polychronopoulos and Kuck, IEEE Trans. Comput. C-36, 1987), so that
        the last ranges are short; but neither too short to be worth a message nor
        longer than it takes the root to serve all ranks.
        """
        if self.row is None:
            return 1, GUESS_SECONDS
        guided = -(-len(self.pending) // (2 * self.comm.size))
        usual = self._seconds / self._finished if self._finished else self._guess
        longest = RANGE_SECONDS + RANK_SECONDS * self.comm.size
        if len(self._ends) - self._at < min(guided, PEEK):
            enough = max(PEEK, min(guided, int(2 * longest / max(usual, 1e-7))))
            expected = self.sink.expect(self.pending[:enough])
            self._ends = np.cumsum(np.where(np.isnan(expected), usual, expected))
            self._at = 0
        before = float(self._ends[self._at - 1]) if self._at else 0.0
        ends = self._ends[self._at :]
        least = int(np.searchsorted(ends, before + LEAST_SECONDS))
        most = int(np.searchsorted(ends, before + longest))
        count = max(1, least, min(guided, most))
        if self.gate is not None:
            count = min(count, max(1, UNSENT_BYTES // self.gate.nbytes))
        if (remaining := self.deadline.remaining()) is not None:
            fitting = int(np.searchsorted(ends, before + remaining, side="right"))
            count = max(1, min(count, fitting))  # together, too, they end in time
        count = min(count, len(ends))
        return count, float(ends[count - 1]) - before
