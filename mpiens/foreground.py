"""One task in the foreground, without MPI: to try a model, or to replay a result."""

from __future__ import annotations

import faulthandler
import pdb
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mpiens import steps, streams, window
from mpiens.child import (
    Cell,
    ChildDied,
    adopt_orphans,
    ask_child,
    children,
    end_children,
    on_standard_error,
)
from mpiens.fault import Fault, SpecError, nearest
from mpiens.layout import DONE, FAILED
from mpiens.model import Model, format_failure
from mpiens.program import tell_kept
from mpiens.reader import locate_faults, read
from mpiens.row import checksum, describe
from mpiens.runner import Watch, tell_end, tell_overdue
from mpiens.spec import Spec, Step
from mpiens.steps import Steps
from mpiens.store import Store

GOOD, BAD = 0, 3
OVERDUE = 1  # how a process ends that faulthandler ends
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Trial:
    """What one task returned, and what it took."""

    returned: Any
    seconds: float
    peak_bytes: int


def try_task(path: Path, scenario: str | None, replicate: int, *, pdb: bool) -> int:
    """Run one task of a spec and print what it returned; return the exit code."""
    reading = read(path)
    spec = reading.require()

    def attempt() -> list[str] | None:
        steps.inspect_all(spec)
        trial = _run(spec, task, enter_pdb=pdb)
        return None if trial is None else _describe(spec, trial)

    try:
        task = find_task(spec, scenario, replicate)
        lines = _contain(spec, task, attempt, pdb)
    except SpecError as error:
        faults = locate_faults(error.faults, path)
        raise SpecError(faults, str(path)) from error.__cause__
    if lines is None:
        return BAD
    name = spec.scenarios[spec.locate(task)[0]].name
    print(f"scenario {name}, replicate {replicate}", *lines, sep="\n")
    return GOOD


def replay_task(path: Path, scenario: str, replicate: int, *, pdb: bool) -> int:
    """Run one task of a result file again and say whether it gives the same bits.

    A failure is reproduced too, under the limits that it met, but for a debugger.
    """
    store = Store(path)
    spec = store.layout.spec
    task = find_task(spec, scenario, replicate)

    def attempt() -> int | None:
        trial = _run(spec, task, enter_pdb=pdb)
        if trial is None:
            return None
        row = np.zeros(1, store.layout.row.dtype)
        try:
            store.layout.row.fill(row[0], trial.returned)
        except ValueError as error:
            print(f"mpiens: {error}", file=sys.stderr)
            return None
        return checksum(row.tobytes())

    found = _contain(spec, task, attempt, pdb)
    status = int(store.status[task])
    what = f"scenario {scenario}, replicate {replicate}:"
    if found is None:
        known = "as it did in the file" if status == FAILED else "unlike in the file"
        print(f"{what} failed, {known}")
        return BAD
    if status != DONE:
        print(f"{what} succeeded, unlike in the file, which has no row of it")
        return BAD
    same = found == int(store.read("/tasks/checksum").reshape(-1)[task])
    print(f"{what} {'bit-identical' if same else 'NOT bit-identical'}")
    return GOOD if same else BAD


def find_task(spec: Spec, scenario: str | None, replicate: int) -> int:
    """Return the task of a scenario's name and a replicate; SpecError if none is."""
    names = [s.name for s in spec.scenarios]
    wanted = names[0] if scenario is None else scenario
    if wanted not in names:
        text = f"there is no scenario {wanted!r}{nearest(wanted, names)}"
        raise SpecError([Fault("", text)])
    if not 0 <= replicate < spec.replicates:
        text = f"there is no replicate {replicate}; they are 0 to {spec.replicates - 1}"
        raise SpecError([Fault("", text)])
    return spec.number(names.index(wanted), replicate)


def _contain(
    spec: Spec, task: int, attempt: Callable[[], Answer], pdb: bool
) -> Answer | None:
    """Return what an attempt at a task returns, or None where it ended the process.

    It is made in a child, as by a runner, unless it may end in a debugger.
    """
    if pdb:
        with on_standard_error():
            return attempt()
    adopt_orphans()
    others = children()
    began = time.monotonic()
    try:
        answer: Answer = ask_child(attempt)
    except ChildDied as news:
        limit = spec.limits.task_seconds
        late = limit is not None and time.monotonic() - began > limit
        overdue = late and news.code == OVERDUE
        text = tell_overdue(limit) if overdue else tell_end(news.code)
        print(f"mpiens: {text}{tell_kept(task)}", file=sys.stderr)
        return None
    finally:
        end_children(others)
    return answer


def _run(spec: Spec, task: int, *, enter_pdb: bool) -> Trial | None:
    """Run one task; its fault is printed, and looked at in the debugger if asked."""
    runs = Model(spec, lambda: window.hold(spec))
    scenario, _ = spec.locate(task)
    step = spec.step(Step.PREPARE, scenario)
    [stream, own] = streams.of(spec, [task, step])
    watch = Watch(Cell(), memory=None if enter_pdb else spec.limits.task_memory)
    faulthandler.enable()
    if spec.limits.task_seconds is not None and not enter_pdb:
        faulthandler.dump_traceback_later(spec.limits.task_seconds, exit=True)
    watch.begin(task)
    start = time.perf_counter()
    try:
        given = b""
        if spec.prepare is not None:
            given = Steps(spec, runs).run(Step.PREPARE, scenario, own, b"")
        returned = runs.run(task, stream, given)
    except (Exception, SystemExit) as error:
        watch.end()
        print(format_failure(error), file=sys.stderr)
        parameters = dict(spec.scenarios[scenario].parameters)
        print(f"parameters: {parameters}", file=sys.stderr)
        print(f"seed: {stream.seed}, spawn key: {stream.key}", file=sys.stderr)
        if enter_pdb:
            pdb.post_mortem(error.__traceback__)
        return None
    finally:
        faulthandler.cancel_dump_traceback_later()
    watch.end()
    seconds = time.perf_counter() - start
    who = resource.RUSAGE_CHILDREN if spec.model.command else resource.RUSAGE_SELF
    peak = resource.getrusage(who).ru_maxrss * 1024
    return Trial(returned, seconds, peak)


def _describe(spec: Spec, trial: Trial) -> list[str] | None:
    """Return what a task returned in words; None where no task may return that."""
    try:
        described = describe(spec, trial.returned)
    except ValueError as error:
        print(f"mpiens: {error}", file=sys.stderr)
        return None
    lines = []
    for output, (shape, dtype) in described.items():
        value = np.asarray(trial.returned[output])
        shown = np.array2string(value, threshold=6, edgeitems=3, precision=4)
        lines.append(f"{output}: shape {shape}, {np.dtype(dtype)}: {shown}")
    peak = f"{trial.peak_bytes / 2**20:,.0f} MiB at most"
    return [*lines, f"{trial.seconds:.3g} s, {peak}"]
