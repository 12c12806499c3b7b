"""One task in the foreground, without MPI: to try a model, or to replay a result."""

from __future__ import annotations

import faulthandler
import pdb
import pickle
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
from mpiens.executor import Watch
from mpiens.fault import Fault, SpecError, nearest
from mpiens.layout import COMPLETE, DONE, FAILED, FAILED_TRIAL
from mpiens.ledger import Ledger
from mpiens.model import Model, format_failure
from mpiens.pilot import settle_windows
from mpiens.program import tell_kept
from mpiens.reader import locate_faults, read
from mpiens.row import Row, checksum, describe
from mpiens.runner import tell_end, tell_overdue
from mpiens.scoring import Scorer
from mpiens.spec import Spec, Step
from mpiens.steps import Steps, unpack
from mpiens.store import Store
from mpiens.trial import Given, make_example

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
    reading = settle_windows(read(path))
    spec = reading.require()

    def attempt() -> list[str] | None:
        steps.inspect_all(spec)
        given = make_example(spec) if spec.calibrate is not None else None
        trial = _run(spec, task, given, enter_pdb=pdb)
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
    task = find_task(store.layout.spec, scenario, replicate)
    return _replay(store, task, pdb=pdb)[0]


def replay_trial(path: Path, trial: int) -> int:
    """Run a trial of a calibration again: its replicates, and its loss."""
    store = Store(path)
    spec = store.layout.spec
    if spec.calibrate is None:
        text = "is no calibration, and has no trials; give SCENARIO and REPLICATE"
        raise SpecError([Fault("--trial", text)], str(path))
    ledger = Ledger.of(store)
    if not 0 <= trial < ledger.asked:
        text = f"there is no trial {trial}; they are 0 to {ledger.asked - 1}"
        raise SpecError([Fault("--trial", text)], str(path))
    each, row = spec.per_trial, store.layout.row
    code, scenarios = GOOD, []
    for scenario in range(trial * each, (trial + 1) * each):
        rows = []
        for replicate in range(spec.replicates):
            task = spec.number(scenario, replicate)
            own, made = _replay(store, task, pdb=False)
            code = max(code, own)
            if made is not None:
                rows.append(np.frombuffer(made, row.dtype))
        whole = np.concatenate([np.zeros(0, row.dtype), *rows])
        scenarios.append(whole)
    known, state = ledger.losses(trial), int(ledger.state[trial])
    if state not in (COMPLETE, FAILED_TRIAL):
        print(f"trial {trial}: has no loss yet in the file")
        return BAD
    complete = all(len(rows) == spec.replicates for rows in scenarios)
    losses = None
    if complete or spec.calibrate.failed == "drop":
        losses = ask_child(lambda: _score(spec, row, scenarios))
    total = "no loss" if losses is None else repr(spec.calibrate.total(losses))
    same = losses == known
    like = "bit-identical" if same else f"NOT bit-identical to {known}"
    print(f"trial {trial}: loss {total}, {like}")
    return code if same else BAD


def _score(spec: Spec, row: Row, scenarios: list[Any]) -> dict[str, float] | None:
    """Return a trial's losses, or None where it has none."""
    try:
        return Scorer(spec).score([unpack(row, rows) for rows in scenarios])
    except (Exception, SystemExit) as error:
        print(format_failure(error), file=sys.stderr)
        return None


def _replay(store: Store, task: int, *, pdb: bool) -> tuple[int, bytes | None]:
    """Run one task again and say whether it is the same; also return its row."""
    spec = store.layout.spec
    index, replicate = spec.locate(task)
    scenario = spec.scenarios[index].name
    given = _find_given(store, index)

    def attempt() -> bytes | None:
        trial = _run(spec, task, given, enter_pdb=pdb)
        if trial is None:
            return None
        row = np.zeros(1, store.layout.row.dtype)
        try:
            store.layout.row.fill(row[0], trial.returned)
        except ValueError as error:
            print(f"mpiens: {error}", file=sys.stderr)
            return None
        return row.tobytes()

    found = _contain(spec, task, attempt, pdb)
    status = int(store.status[task])
    what = f"scenario {scenario}, replicate {replicate}:"
    if found is None:
        known = "as it did in the file" if status == FAILED else "unlike in the file"
        print(f"{what} failed, {known}")
        return BAD, None
    if status != DONE:
        print(f"{what} succeeded, unlike in the file, which has no row of it")
        return BAD, found
    same = checksum(found) == int(store.read("/tasks/checksum").reshape(-1)[task])
    print(f"{what} {'bit-identical' if same else 'NOT bit-identical'}")
    return (GOOD if same else BAD), found


def _find_given(store: Store, scenario: int) -> Given | None:
    """Return what a scenario of a calibration was given."""
    spec = store.layout.spec
    if spec.calibrate is None:
        return None
    ledger, trial = Ledger.of(store), scenario // spec.per_trial
    if trial >= ledger.asked:
        raise SpecError([Fault("", f"trial {trial} was not asked for")])
    return Given(int(ledger["stream"][trial]), ledger.parameters(trial))


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


def _run(
    spec: Spec, task: int, trial: Given | None, *, enter_pdb: bool
) -> Trial | None:
    """Run one task, of a calibration's trial where one is given.

    Its fault is printed, and looked at in the debugger if asked.
    """
    runs = Model(spec, lambda: window.hold(spec))
    scenario, _ = spec.locate(task)
    step = spec.step(Step.PREPARE, scenario)
    [stream, own] = streams.of(spec, [task, step])
    parameters = dict(spec.scenarios[scenario].parameters)
    if trial is not None:
        [stream] = streams.make(spec.ensemble.seed, [trial.key(spec, task)])
        parameters = trial.fill(spec.scenarios[scenario])
    watch = Watch(Cell(), memory=None if enter_pdb else spec.limits.task_memory)
    faulthandler.enable()
    if spec.limits.task_seconds is not None and not enter_pdb:
        faulthandler.dump_traceback_later(spec.limits.task_seconds, exit=True)
    watch.begin(task)
    start = time.perf_counter()
    try:
        given = b"" if trial is None else pickle.dumps(trial)
        if spec.prepare is not None:
            given = Steps(spec, runs).run(Step.PREPARE, scenario, own, b"")
        returned = runs.run(task, stream, given)
    except (Exception, SystemExit) as error:
        watch.end()
        print(format_failure(error), file=sys.stderr)
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
