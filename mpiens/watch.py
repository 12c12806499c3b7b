"""A file that is being written, looked at again and again: how far it is, and so far.

Nothing but the file is asked, so that it works from any machine that sees it.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mpiens import bands
from mpiens.fault import Fault, SpecError
from mpiens.grid import Grid
from mpiens.layout import DONE, FAILED, UNUSED
from mpiens.lock import is_held
from mpiens.progress import format_seconds, terminal_width
from mpiens.store import PARTIAL, Store
from mpiens.table import samples
from mpiens.wording import write_number, write_percent

SCENARIOS = 20  # that are shown: those with tasks left first
FAILURES = 3
_LOOKS = 12  # over which the rate is told


class Look:
    """What a file holds at one moment."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._layout = store.layout
        status = store.status.reshape(self._layout.by_task)
        self.done, self.failed = status == DONE, status == FAILED
        self._total = (status != UNUSED).sum(axis=1)
        self.finished = int(self.done.sum() + self.failed.sum())
        self.total = int(self._total.sum())
        self.complete = "digest" in store.attributes

    def draw(self) -> Any:
        """Return a table: how far each scenario is, and its summaries so far."""
        summaries = [*self._layout.summaries()][:3]
        levels = self._layout.spec.bands.levels
        drawn = Grid(self._store.path.name)
        columns = ["done", "failed", "of"]
        band = f"[{write_percent(levels[0])}, {write_percent(levels[-1])}]"
        columns += [
            f"{output.name}, {kind.replace('_', ' ')} {band}"
            for output, kind in summaries
        ]
        drawn.add_columns("scenario", columns)
        for index in self._choose():
            counts = [self.done[index].sum(), self.failed[index].sum()]
            cells = [self._layout.spec.scenarios[index].name]
            cells += [f"{int(count):,}" for count in (*counts, self._total[index])]
            for output, kind in summaries:
                own = samples(self._store, output, kind, index)[self.done[index]]
                low, middle, high = bands.quantiles(own, [levels[0], 0.5, levels[-1]])
                texts = [write_number(float(value)) for value in (middle, low, high)]
                cells.append(f"{texts[0]} [{texts[1]}, {texts[2]}]")
            drawn.add_row(cells)
        return drawn.drawn

    def failures(self) -> Iterator[str]:
        """Yield the last lines of a few failures."""
        spec = self._layout.spec
        for task, text in [*self._store.failures()][:FAILURES]:
            step, scenario = spec.step_of(task)
            if step is None:
                last = text.strip().splitlines()[-1] if text.strip() else "?"
                name = spec.scenarios[scenario].name
                replicate = task % spec.replicates
                yield f"failed: scenario {name}, replicate {replicate}: {last}"

    def _choose(self) -> list[int]:
        """Return the scenarios that are shown: those that are not over, in order."""
        left = self._total - self.done.sum(axis=1) - self.failed.sum(axis=1)
        order = np.argsort(left == 0, kind="stable")[:SCENARIOS]
        return sorted(order.tolist())


class Pace:
    """How fast tasks become finished, as it is seen from outside."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=_LOOKS)

    def enter(self, finished: int, now: float) -> None:
        """Remember how many are finished now."""
        self._seen.append((now, finished))

    def tell(self, left: int) -> str:
        """Say how fast it goes, and how long it will take; after two looks."""
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        if last <= first:
            return "looking"
        rate = (after - before) / (last - first)
        if rate <= 0:
            return "nothing finished lately"
        return f"{60 * rate:,.0f} tasks/min, {format_seconds(left / rate)} left"


def watch(file: Path, *, every: float, once: bool) -> int:
    """Show a running or partial file again and again, until it is complete.

    Returns 0 once it is, or after one look.  Raises SpecError where there is none, and
    nobody is about to write one.
    """
    pace = Pace()
    terminal = terminal_width("stdout") is not None
    show = _Screen().show if terminal else partial(_print, whole=once)
    while True:
        path = _find(file)
        if path is None:
            print(f"mpiens: waiting for the first task of {file}", file=sys.stderr)
        else:
            try:
                store = Store(path)
            except (FileNotFoundError, SpecError):
                if path.exists() and not is_held(file):
                    raise
                continue  # it has just got its last name, or is being completed
            look = Look(store)
            pace.enter(look.finished, time.monotonic())
            show(look, [*_tell(look, pace, file)])
            store.close()
            if look.complete or once:
                return 0
        time.sleep(every)


def _find(file: Path) -> Path | None:
    """Return the file, or what will become it; None while it is yet to be laid down."""
    partial = file.with_name(file.name + PARTIAL)
    for path in (partial, file):  # a file that is being grown has both
        if path.exists():
            return path
    if is_held(file):
        return None
    text = "is not there, and nobody is about to write it; name the file of a run"
    raise SpecError([Fault("", text)], str(file))


def _tell(look: Look, pace: Pace, file: Path) -> Iterator[str]:
    """Yield what there is to say beside the table."""
    share = 100 * look.finished / max(1, look.total)
    failed = int(look.failed.sum())
    line = (
        f"{look.finished:,} of {look.total:,} tasks ({share:.0f}%), {failed:,} failed"
    )
    if look.complete:
        yield f"{line}: complete"
    elif is_held(file):
        yield f"{line}, {pace.tell(look.total - look.finished)}"
    else:
        yield f"{line}: nobody is writing it; the same command goes on"
    yield from look.failures()


def _print(look: Look, told: list[str], *, whole: bool) -> None:
    """Print what is told, for a log; and the table where all is to be seen at once."""
    if whole or look.complete:
        from rich.console import Console  # noqa: PLC0415

        Console(highlight=False, emoji=False, width=200).print(look.draw())
    print("\n".join(told), flush=True)


class _Screen:
    """A terminal on which the last look replaces the one before."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415

        width = terminal_width("stdout")
        console = Console(force_terminal=True, width=width, highlight=False)
        self._live: Any = Live(console=console, auto_refresh=False)
        self._live.start()

    def show(self, look: Look, told: list[str]) -> None:
        """Draw a look in place of the last one."""
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        self._live.update(Group(look.draw(), *map(Text, told)), refresh=True)
