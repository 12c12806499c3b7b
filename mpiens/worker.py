"""What keeps one runner busy and alive: retries, limits, and who is to blame."""

from __future__ import annotations

import pickle
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from mpiens.bell import Bell
from mpiens.child import Ended, is_stopped
from mpiens.heartbeat import Stillness
from mpiens.outcome import (
    BATCH,
    DESCRIBE,
    FAILURE,
    PRINTED,
    ROW,
    STEP,
    TASKS,
    Batch,
    Description,
    Failure,
    Inputs,
    StepResult,
    Tasks,
)
from mpiens.program import tell_kept
from mpiens.row import Row
from mpiens.runner import WHERE, Runner, tell_end, tell_overdue
from mpiens.spec import Limits

News = tuple[int, bytearray]

LAST_WORDS = 0.3  # seconds in which a task that is ended may say where it was
LOOK_SECONDS = 1.0  # a supervisor that looked away for longer was held up itself
START_TRIES = 3  # runners in a row that may end before their first task
STRAY_KILLS = 3  # kills that mpiens did not send, forgiven to a task beyond retries


@dataclass
class Worker:
    """Keeps one runner busy and alive; knows of no other rank.

    A task is retried here, with the same stream, as often as the limits say.
    """

    start: Callable[[], Runner]
    limits: Limits = field(default_factory=Limits)
    scenario_of: Callable[[int], int] = int
    _orders: deque[tuple[Tasks, int]] = field(default_factory=deque)
    _given: dict[int, int] = field(default_factory=dict)  # task to attempt
    _held: set[int] = field(default_factory=set)  # run, but held back by the runner
    _inputs: dict[int, bytes] = field(default_factory=dict)  # by scenario
    _strays: Counter[int] = field(default_factory=Counter)
    _row: Row | None = None
    _overdue: tuple[int, float] = (-1, 0.0)  # a task that takes too long, and its start
    _stopped: bool = False  # we killed the runner, for somebody had stopped it
    _looked: float = 0.0
    _away: tuple[int, float, float] = (-1, 0.0, 0.0)  # a task, its start, time forgiven
    _failed_starts: int = 0
    _careful: bool = False  # a runner died in a burst: none of ours has any from now on

    def __post_init__(self) -> None:
        self.runner = self.start()
        self._stillness = Stillness(self.limits.heartbeat)

    @property
    def idle(self) -> bool:
        """Whether the runner has nothing to do that it was told to do."""
        return len(self._given) == len(self._held)

    @property
    def claims(self) -> list[int]:
        """The tasks that it has been dealt and has not told the end of."""
        ordered = [task for tasks, _ in self._orders for task in tasks.tolist()]
        return [*self._given, *ordered]

    def deal(self, tasks: Tasks, inputs: Inputs | None = None) -> None:
        """Take a range of tasks, and inputs of scenarios where they are new.

        Those of the last range's scenarios, and of all claims, are kept.
        """
        self._orders.append((tasks, 1))
        self._inputs.update(inputs or {})
        if self._inputs:
            needed = {self.scenario_of(task) for task in self.claims}
            self._inputs = {k: v for k, v in self._inputs.items() if k in needed}

    def give_back(self) -> Tasks:
        """Give back what the runner has not been given; what is tried again stays."""
        back = [tasks for tasks, attempt in self._orders if attempt == 1]
        self._orders = deque(order for order in self._orders if order[1] > 1)
        return np.concatenate([np.zeros(0, np.int64), *back])

    def drop(self) -> None:
        """Forget what the runner has not begun; the rest may still end."""
        self._orders.clear()

    def reset(self) -> None:
        """Forget everything: what was run before a layout was known is run again."""
        if self.claims:
            self.runner.close()
            self.runner = self.start()
            self._orders.clear()
            self._given.clear()
            self._held.clear()

    def settle(self, row: Row) -> None:
        """Take the layout of rows, which releases results held back for it."""
        self._row = row
        self._held.clear()
        self.runner.send(ROW, pickle.dumps(row))

    def step(self) -> Iterator[News]:
        """Look after the runner and yield its news: (kind, data)."""
        if self.idle and self._orders:
            tasks, attempt = self._orders.popleft()
            self._given.update(dict.fromkeys(tasks.tolist(), attempt))
            inputs: Inputs = {}
            if self._inputs:
                wanted = {self.scenario_of(task) for task in tasks.tolist()}
                inputs = {k: v for k, v in self._inputs.items() if k in wanted}
            order = tasks, attempt, inputs, self._careful
            self.runner.send(TASKS, pickle.dumps(order))
        ended = False
        try:
            for kind, data in self.runner.poll():
                yield from self._hear(kind, data)
            self._watch()
        except Ended:
            ended = True
        if ended:  # not within the except: the new runner would inherit the exception
            yield from self._recover()

    def wait(self, seconds: float, bell: Bell) -> bool:
        """Sleep until the runner has something to say or the bell rings: if it did."""
        return self.runner.wait(seconds, bell)

    def close(self) -> None:
        """End the runner."""
        self.runner.close()

    def _hear(self, kind: int, data: bytearray) -> Iterator[News]:
        self._failed_starts = 0
        if kind == DESCRIBE:
            news: Description = pickle.loads(data)
            self._held.add(news.task)
            yield kind, data
        elif kind == BATCH:
            for task in Batch.tasks_of(data):
                self._forget(task)
            yield kind, data
        elif kind == STEP:
            done: StepResult = pickle.loads(data)
            self._forget(done.task)
            yield kind, data
        else:
            failure: Failure = pickle.loads(data)
            self._forget(failure.task)
            if failure.stray:
                self._forgive(failure.task)
            yield from self._retry(failure, self.runner.printed(failure.task))

    def _forget(self, task: int) -> None:
        del self._given[task]
        self._held.discard(task)

    def _forgive(self, task: int) -> None:
        """Let a task be tried once more, for nobody knows whose fault a kill was."""
        if self._strays[task] < STRAY_KILLS:
            self._strays[task] += 1

    def _retry(self, failure: Failure, printed: str) -> Iterator[News]:
        """Try a failed task again, or tell that it failed for good."""
        if failure.attempts <= self.limits.retries + self._strays[failure.task]:
            self._order_again([failure.task], failure.attempts + 1)
            return
        told = {*failure.text.splitlines()}  # of a program what it said, perhaps
        if not told.issuperset(printed.splitlines()):
            text = f"{failure.text}\n{PRINTED}\n{printed}"
            failure = replace(failure, text=text)
        yield FAILURE, bytearray(pickle.dumps(failure))

    def _order_again(self, tasks: list[int], attempt: int) -> None:
        self._orders.appendleft((np.array(tasks, dtype=np.int64), attempt))

    def _watch(self) -> None:
        """End a runner that was stopped, or whose task takes longer than it may."""
        if self._stillness.is_due():
            self.runner.tidy()
            if any(self._stillness.lasts(pid) for pid in self.runner.processes):
                self._stopped = True  # by somebody else: the task is dealt again
                self.runner.kill()
        limit = self.limits.task_seconds
        if limit is None or self._stopped:
            return
        seconds = self._seconds(time.monotonic())
        if seconds <= limit or any(map(is_stopped, self.runner.processes)):
            return
        if (running := self.runner.cell.read()) != self._overdue:
            self._overdue = running
            self.runner.end()
        elif seconds > limit + LAST_WORDS:
            self.runner.kill()

    def _seconds(self, now: float) -> float:
        """Return how long the task has run, but for time in which we stood still too.

        A job that was suspended must not lose its tasks when it goes on.
        """
        task, since = self.runner.cell.read()
        gap, self._looked = now - self._looked, now
        if task < 0:
            return 0.0
        before = self._away if self._away[:2] == (task, since) else (task, since, 0.0)
        forgiven = before[2] + (min(gap, now - since) if gap > LOOK_SECONDS else 0.0)
        self._away = (task, since, forgiven)
        return now - since - forgiven

    def _recover(self) -> Iterator[News]:
        """Put a new runner in a dead one's place, and blame the task that it ran."""
        task, since = self.runner.cell.read()
        if burst := self.runner.cell.burst:  # one of many, to be found with care
            task, self._careful = -1, True
        code = self.runner.bury()
        seconds = time.monotonic() - since if task >= 0 else 0.0
        overdue = task >= 0 and (task, since) == self._overdue
        self._stopped = False
        how = tell_overdue(self.limits.task_seconds) if overdue else tell_end(code)
        how += tell_kept(task)
        if task not in self._given and not burst:
            task = self._blame_start()
        stray = not overdue and -code in (signal.SIGKILL, signal.SIGTERM, WHERE)
        attempt = self._given.pop(task, None)
        for number in sorted(set(self._given.values())):
            self._order_again(
                [t for t, a in self._given.items() if a == number], number
            )
        self._given.clear()
        self._held.clear()
        printed = self.runner.printed(task)
        self.runner = self.start()
        if self._row is not None:
            self.runner.send(ROW, pickle.dumps(self._row))
        if attempt is None:
            return
        if stray:
            self._forgive(task)
        yield from self._retry(Failure(task, attempt, seconds, how), printed)

    def _blame_start(self) -> int:
        """Return the task to blame where a runner ended before it began one, or -1."""
        self._failed_starts += 1
        if self._failed_starts < START_TRIES:
            return -1
        return next(iter(self._given), -1)
