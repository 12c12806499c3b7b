"""What keeps one runner busy and alive: retries, limits, and who is to blame."""

from __future__ import annotations

import pickle
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from mpiens.child import Ended
from mpiens.outcome import PRINTED, Batch, Description, Failure, Tasks
from mpiens.row import Row
from mpiens.runner import BATCH, CLOSED_FILES, DESCRIBE, FAILURE, ROW, TASKS, Runner
from mpiens.spec import Limits

News = tuple[int, bytearray]

START_TRIES = 3  # runners in a row that may end before their first task
STRAY_KILLS = 3  # kills that mpiens did not send, forgiven to a task beyond retries


@dataclass
class Worker:
    """Keeps one runner busy and alive; knows of no other rank.

    A task is retried here, with the same stream, as often as the limits say.
    """

    start: Callable[[], Runner]
    limits: Limits = field(default_factory=Limits)
    _orders: deque[tuple[Tasks, int]] = field(default_factory=deque)
    _given: dict[int, int] = field(default_factory=dict)  # task to attempt
    _held: set[int] = field(default_factory=set)  # run, but held back by the runner
    _strays: Counter[int] = field(default_factory=Counter)
    _row: Row | None = None
    _overdue: bool = False  # we killed the runner, for its task took too long
    _failed_starts: int = 0

    def __post_init__(self) -> None:
        self.runner = self.start()

    @property
    def idle(self) -> bool:
        """Whether the runner has nothing to do that it was told to do."""
        return len(self._given) == len(self._held)

    @property
    def claims(self) -> list[int]:
        """The tasks that it has been dealt and has not told the end of."""
        ordered = [task for tasks, _ in self._orders for task in tasks.tolist()]
        return [*self._given, *ordered]

    def deal(self, tasks: Tasks) -> None:
        """Take a range of tasks."""
        self._orders.append((tasks, 1))

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
        self.runner.send(ROW, pickle.dumps(row))

    def step(self) -> Iterator[News]:
        """Look after the runner and yield its news: (kind, data)."""
        if self.idle and self._orders:
            tasks, attempt = self._orders.popleft()
            self._given.update(dict.fromkeys(tasks.tolist(), attempt))
            self.runner.send(TASKS, pickle.dumps((tasks, attempt)))
        ended = False
        try:
            for kind, data in self.runner.poll():
                yield from self._hear(kind, data)
            self._watch()
        except Ended:
            ended = True
        if ended:  # not within the except: the new runner would inherit the exception
            yield from self._recover()

    def wait(self, seconds: float) -> None:
        """Sleep until the runner has something to say, at most so long."""
        self.runner.wait(seconds)

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
        else:
            failure: Failure = pickle.loads(data)
            self._forget(failure.task)
            yield from self._retry(failure, self.runner.printed(failure.task))

    def _forget(self, task: int) -> None:
        del self._given[task]
        self._held.discard(task)

    def _retry(self, failure: Failure, printed: str) -> Iterator[News]:
        """Try a failed task again, or tell that it failed for good."""
        if failure.attempts <= self.limits.retries + self._strays[failure.task]:
            self._order_again([failure.task], failure.attempts + 1)
            return
        if printed:
            text = f"{failure.text}\n{PRINTED}\n{printed}"
            failure = replace(failure, text=text)
        yield FAILURE, bytearray(pickle.dumps(failure))

    def _order_again(self, tasks: list[int], attempt: int) -> None:
        self._orders.appendleft((np.array(tasks, dtype=np.int64), attempt))

    def _watch(self) -> None:
        """End a runner whose task takes longer than it may."""
        if self.limits.task_seconds is None or self._overdue:
            return
        task, since = self.runner.cell.read()
        if task >= 0 and time.monotonic() - since > self.limits.task_seconds:
            self._overdue = True
            self.runner.kill()

    def _recover(self) -> Iterator[News]:
        """Put a new runner in a dead one's place, and blame the task that it ran."""
        task, since = self.runner.cell.read()
        code = self.runner.bury()
        seconds = time.monotonic() - since if task >= 0 else 0.0
        how = self._tell_end(code)
        if task not in self._given:
            task = self._blame_start()
        stray = not self._overdue and -code in (signal.SIGKILL, signal.SIGTERM)
        self._overdue = False
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
        if stray and self._strays[task] < STRAY_KILLS:
            self._strays[task] += 1
        yield from self._retry(Failure(task, attempt, seconds, how), printed)

    def _blame_start(self) -> int:
        """Return the task to blame where a runner ended before it began one, or -1."""
        self._failed_starts += 1
        if self._failed_starts < START_TRIES:
            return -1
        return next(iter(self._given), -1)

    def _tell_end(self, code: int) -> str:
        if self._overdue:
            limit = self.limits.task_seconds
            return f"the task took longer than task_seconds = {limit} and was ended"
        if code < 0:
            name = signal.Signals(-code).name
            return f"the model's process was ended by {name}"
        if code == CLOSED_FILES:
            return "the model closed files that are not its own, and its process ended"
        return f"the model ended its own process with exit code {code}"
