"""What only the root knows and does: the spec, the file, and the tally."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens import (
    confirm,
    growth,
    journal,
    ledger,
    model,
    provenance,
    scoring,
    sensitivity,
    shelf,
    steps,
    store,
    streams,
    study,
    summary,
)
from mpiens.aggregation import Aggregation
from mpiens.assembly import join_curves
from mpiens.calibration import Calibration
from mpiens.child import ask_child
from mpiens.deadline import Deadline, Look, Stopped
from mpiens.durations import Durations
from mpiens.fault import Fault, SpecError, place
from mpiens.foundation import lay_down
from mpiens.layout import DONE, FAILED, PENDING, Layout
from mpiens.ledger import Ledger
from mpiens.lock import Lock
from mpiens.outcome import Batch, Failure, Ranks, StepResult, Tasks
from mpiens.pilot import settle_windows
from mpiens.progress import Tally, format_seconds, show_progress
from mpiens.reader import decode, locate_faults, read
from mpiens.replication import Replication
from mpiens.request import Request
from mpiens.row import Described, Row, settle
from mpiens.shelf import Shelf
from mpiens.spec import Spec, Step, to_text
from mpiens.store import PARTIAL, Store
from mpiens.study import Study
from mpiens.trouble import (
    COMPLETE,
    GIVEN_UP,
    SOME_FAILED,
    STOPPED_EARLY,
)
from mpiens.workqueue import Ending, Gate

EARLY_BYTES = 8 << 20  # of rows, at most, that come before there is a file
_STEPS = {"aggregates": "aggregates", "curves": "joined curves"}


class Root:
    """What only the root knows and does: the spec, the file, and the tally.

    ``look`` is called now and then during long work.
    """

    def __init__(self, request: Request, look: Look) -> None:
        self._request = request
        self._look = look
        self._ranks = 1
        self.dealt = 0.0  # seconds in which tasks were run
        self._store: Store | None = None
        self._settled: Row | None = None
        self._early: list[tuple[Failure, int]] = []  # before there was a file
        self._early_rows: list[tuple[Batch, Ranks]] = []
        self._costs: np.ndarray[Any, np.dtype[np.float64]] | None = None
        self._progress = show_progress()
        self._tally: Tally | None = None
        self._ending: Ending | None = None
        self._lock: Lock | None = None
        self._reason = ""
        self._trouble: OSError | None = None
        self._shelf: Shelf | None = None
        self._aggregation: Aggregation | None = None
        self._calibration: Calibration | None = None
        self._replication: Replication | None = None

    @property
    def row(self) -> Row | None:
        """What one task leaves, once that is known."""
        return self._store.layout.row if self._store else None

    @property
    def pending(self) -> Tasks:
        """The tasks to be run, in the order in which they are to be dealt."""
        if self._store is not None:
            tasks = np.flatnonzero(self._store.status == PENDING)
        elif self._request.shard is not None:
            tasks = self.scouts[self._request.shard.owns(self.scouts)]
        else:
            tasks = self.scouts
        if self._costs is not None:
            scenarios = tasks // self._spec.replicates
            longest_first = np.argsort(-self._costs[scenarios], kind="stable")
            if self._store is None:  # the first one settles the layout
                longest_first = np.r_[0, longest_first[longest_first != 0]]
            tasks = tasks[longest_first]
        return tasks.astype(np.int64)

    @property
    def gate(self) -> Gate | None:
        """Which tasks wait for their scenario to be prepared."""
        if self._spec.prepare is None:
            return None
        scenarios = range(len(self._spec.scenarios))
        numbers = [self._spec.step(Step.PREPARE, index) for index in scenarios]
        done = [self._key(index) in self._shelved for index in scenarios]
        return Gate(np.array(numbers, dtype=np.int64), np.array(done))

    @property
    def scouts(self) -> Tasks:
        """The tasks of which the first that succeeds settles the layout, in order.

        They are the whole ensemble's, so that all shards agree.
        """
        return np.arange(self._spec.tasks)

    def prepare(self, ranks: int, again: bool) -> Spec | None:
        """Read the spec and find out what is left to do; None where nothing is.

        Called ``again``, of the same root or of another, where a rank has been lost:
        the file is the truth, and what --fresh and --retry-failed ask for is done.
        """
        request = self._request
        self._ranks = ranks
        self._tally = None
        self._early.clear()
        self._early_rows.clear()
        if self._store is not None:
            self._store.close()
            self._store = None
        reading = settle_windows(read(request.spec), request.file)
        if request.text is not None:
            reading = decode(request.text, request.spec, is_json=True)
        faults = list(reading.faults)
        if reading.spec is not None:
            spec = reading.spec
            faults += locate_faults(self._check_calibration(spec), request.spec)
            try:
                signature, self._revision = ask_child(
                    lambda: provenance.find_revision(
                        spec.folder, lambda: steps.inspect_all(spec)
                    ),
                    self._look,
                )
            except SpecError as error:
                faults += locate_faults(error.faults, request.spec)
        if reading.spec is None or faults:
            raise SpecError(faults, str(request.spec))
        self._spec = reading.spec
        self._code = signature.code
        self._aggregate_code = signature.aggregate_code
        self._target_code = signature.target_code
        self._parameters = model.fill_parameters(self._spec, signature)
        costs = model.hint_costs(self._spec, self._parameters)
        self._costs = None if costs is None else np.array(costs)
        self._lock = self._lock or Lock(request.file)
        for path in (request.file, self._partial):
            if path.is_dir():
                number = errno.EISDIR
                raise IsADirectoryError(number, os.strerror(number), str(path))
        complete = self._find_file(again)
        Deadline.mark_begun(os.environ)
        return None if complete else self._spec

    def release(self) -> None:
        """Let others write the file."""
        if self._shelf is not None:
            self._shelf.close()
            self._shelf = None
        if self._lock is not None:
            self._lock.release()

    def begin(self) -> bool:
        """The first task is about to be dealt; whether the layout is known."""
        done = 0 if self._store is None else self._store.finished
        self._tally = Tally(done + len(self.pending), done, self._ranks)
        if self._store is not None:
            self._tally.failed_before = int((self._store.status == FAILED).sum())
        self._durations = Durations(self._spec, self._costs)
        if self._store is not None:  # what earlier runs took counts too
            tasks = np.flatnonzero(self._store.status == DONE)
            seconds = self._store.read("/tasks/seconds").reshape(-1)[tasks]
            self._durations.enter(tasks, seconds)
        return self._store is not None

    def note(self, reason: str, trouble: OSError | None) -> None:
        """Remember why dealing ended."""
        self._reason = reason
        self._trouble = trouble

    def settle(self, described: Described | None) -> Row:
        """Return what rows are like, now that a first task has shown what it leaves."""
        self._settled = settle(self._spec, described) if described else Row(())
        return self._settled

    def lay_down(self, meanwhile: Callable[[], object]) -> None:
        """Lay down the file; the first rows, which come meanwhile, wait for it here."""

        def look() -> None:
            with suppress(Stopped):  # tasks are running: the manager sees to it
                self._look()
            if sum(batch.rows.nbytes for batch, _ in self._early_rows) < EARLY_BYTES:
                meanwhile()

        self._store = self._lay_down(self._settled, None, look)
        for batch, ranks in self._early_rows:
            self._store.write(batch, ranks)
        for failure, rank in self._early:
            self._store.fail(failure, rank)
        self._early_rows.clear()
        self._early.clear()

    def write(self, batch: Batch, ranks: Ranks) -> None:
        """Keep finished tasks, but for those of other shards."""
        if (shard := self._request.shard) is not None:
            own = shard.owns(batch.records["task"])
            batch, ranks = Batch(batch.records[own], batch.rows[own]), ranks[own]
            if not own.any():
                return
        if self._store is None:
            self._early_rows.append((batch, ranks))
        else:
            self._store.write(batch, ranks)
        self._durations.enter(batch.records["task"], batch.records["seconds"])
        self._count(len(batch.records), float(batch.records["seconds"].sum()))

    def keep(self, result: StepResult, rank: int) -> None:
        """Keep what has been prepared for a scenario."""
        del rank
        scenario = self._spec.scenario_of(result.task)
        self._shelved.put(self._key(scenario), result.data)
        self.spend(result.task, result.seconds)

    def spend(self, number: int, seconds: float) -> None:
        """Enter what a step has taken."""
        self._durations.enter(np.array([number]), np.array([seconds]))
        self._running.busy += seconds

    def head(self, line: Callable[[], str]) -> None:
        """Show what a line says with whatever is shown of progress."""
        self._running.headline = line

    @property
    def file(self) -> Store | None:
        """The file, once it has been laid down."""
        return self._store

    def calibration(self) -> Calibration | None:
        """Return what deals a calibration's trials, if the spec asks for one.

        Trials of a journal without a file are begun anew: nothing of them is kept.
        """
        if self._spec.calibrate is None:
            return None
        if self._store is None:
            study.clear(self._request.file)
        request = self._request
        owner = self._find_owner(self._store)
        own = Study(self._spec, request.file, request.spec.stem, owner)
        self._calibration = Calibration(self._spec, self, own, self._ranks)
        return self._calibration

    def source(self) -> Calibration | Replication | None:
        """Return what deals tasks that are not known at the start, if anything does."""
        if self._spec.precision is not None:
            self._replication = Replication(self._spec, self)
            return self._replication
        return self.calibration()

    def follow(self) -> Request | None:
        """Return what is to be run once this is complete, if anything is."""
        request = self._request
        if self._spec.calibrate is None:
            return None
        trials = Ledger.of(Store(request.file))
        if (spec := confirm.make_spec(trials, self._spec)) is None:
            return None
        return dataclasses.replace(
            request,
            spec=request.spec.absolute(),
            output=confirm.place_of(request.file),
            text=spec.to_json(),
            fit=self._spec,
        )

    def inputs(self, scenario: int) -> bytes:
        """Return what has been prepared for a scenario."""
        return self._shelved.get(self._key(scenario))

    def aggregation(self) -> Aggregation:
        """Return what deals the scenarios' last steps, all rows being there."""
        self._aggregation = Aggregation(self._file, self._shelved, self._aggregate_code)
        return self._aggregation

    def fail(self, failure: Failure, rank: int) -> None:
        """Keep a failed task, with all that is needed to look into it."""
        if failure.task >= self._spec.tasks:
            return  # the tasks that wait for this step fail, and tell of it
        shard = self._request.shard
        if shard is not None and not shard.owns(np.array(failure.task)):
            return
        self.keep_failure(
            dataclasses.replace(failure, text=self._describe(failure)), rank
        )

    def keep_failure(self, failure: Failure, rank: int) -> None:
        """Keep a failed task as it is told."""
        if self._store is None:
            self._early.append((failure, rank))
        else:
            self._store.fail(failure, rank)
        self._count(1, failure.seconds, failed=1)

    def expect(self, tasks: Tasks, *, wary: bool = False) -> NDArray[np.float64]:
        """Return the seconds that tasks take, where that is known."""
        return self._durations.expect(tasks, wary=wary)

    def tick(self) -> bool:
        """Show progress where it is time to; whether the run is hopeless."""
        self._progress.update(self._running)
        failed = self._running.failed_before + self._running.failed
        return failed > self._spec.most_failed(self._running.total)

    def ends(self, ending: Ending | None) -> bool:
        """Whether the run ends before its file is complete."""
        self._ending = ending
        sources = self._calibration, self._replication
        if ending is Ending.COMPLETE and any(s is not None for s in sources):
            unused = np.flatnonzero(self._file.status == PENDING)
            self._file.leave_out(unused)
            self._running.total -= len(unused)
        return ending is not Ending.COMPLETE

    def pause(self) -> int:
        """Leave the file as it is, say what is done and what to type, and end."""
        tally = self._running
        self._progress.close(tally)
        if self._trouble is not None:
            raise self._trouble
        if self._store is not None:
            self._store.sync()
            self._store.close()
        kept = self._store.finished if self._store else 0
        whole = "at most " * (self._replication is not None) + f"{tally.total:,}"
        ready = f"{kept:,} of {whole} tasks are done"
        if self._ending is Ending.GIVEN_UP:
            failed = tally.failed_before + tally.failed
            text = (
                f"given up: {failed} tasks failed, more than [limits] max_failed = "
                f"{self._spec.limits.max_failed} allows; {ready}; mend the model or "
                "raise max_failed, and run the same command again"
            )
            print(f"mpiens: {text}", file=sys.stderr)
            return GIVEN_UP
        text = f"stopped early ({self._reason}): {ready} and kept"
        print(f"mpiens: {text}; run the same command again to go on", file=sys.stderr)
        return STOPPED_EARLY

    def check_rows(self) -> list[int]:
        """Return the tasks of a shard whose rows are not what was written."""
        self._progress.close(self._running)
        self._file.sync()
        broken: list[int] = self._file.broken(self._look).tolist()
        return broken

    def scene(self) -> tuple[Path, Layout, Any]:
        """Return what all ranks need to make bands; every row is on the disk now."""
        self._progress.close(self._running)
        self._file.sync()
        return self._file.path, self._file.layout, self._file.status

    def redo(self, broken: list[int]) -> bool:
        """Call tasks pending again whose rows are not what was written."""
        if broken:
            text = f"{len(broken)} rows do not have their checksums and are run again"
            print(f"mpiens: {text}", file=sys.stderr)
            self._file.forget(np.array(broken, dtype=np.int64))
        return bool(broken)

    def finish(self) -> int:
        """Complete the file, give it its name, and say how it went."""
        if self._tally is None:
            failed = count_failed(self._file)
            text = f"{self._request.file} is complete: nothing to do"
            print(f"mpiens: {text}", file=sys.stderr)
            self._file.close()
            return SOME_FAILED if failed else COMPLETE
        file = self._file
        failed = int((file.status == FAILED).sum())
        closing = {
            "spec": self._spec.to_json(),
            "model_code": self._code,
            "target_code": self._target_code,
            **(self._aggregation.finish() if self._aggregation else {}),
            **(join_curves(file, self._look) if self._joins else {}),
            **provenance.closing(self._tally.elapsed(), self._ranks, self.dealt),
        }
        complete(file, self._request.file, closing, self._look)
        shelf.clear(self._partial)
        tally = self._tally
        if self._calibration is not None:
            print(
                f"mpiens: {self._calibration.headline()}, {failed} tasks failed, "
                f"in {format_seconds(tally.elapsed())} on {self._ranks} ranks, "
                f"{100 * tally.utilisation():.0f}% busy; {self._request.file}",
                file=sys.stderr,
            )
            return SOME_FAILED if failed else COMPLETE
        print(
            f"mpiens: {tally.total:,} tasks, {failed} failed, "
            f"in {format_seconds(tally.elapsed())} on {self._ranks} ranks: "
            f"{tally.rate():,.0f} tasks/min, ranks {100 * tally.utilisation():.0f}% "
            f"busy; {self._request.file}",
            file=sys.stderr,
        )
        tell_steps(closing)
        return SOME_FAILED if failed or count_steps(closing) else COMPLETE

    @property
    def _joins(self) -> bool:
        """Whether curves are to be joined here; those of shards are once merged."""
        return bool(self._spec.join) and self._request.shard is None

    def _find_owner(self, file: Store | None) -> str:
        """Return what marks the trials of our file in a study: it keeps its own."""
        known = file.attributes.get("study_owner") if file is not None else None
        return str(known or study.make_owner(self._request.file))

    def _check_calibration(self, spec: Spec) -> list[Fault]:
        """Return what can be known to be wrong with a calibration before it begins."""
        faults = [*study.find_faults(spec)]
        if spec.calibrate is not None and self._request.shard is not None:
            text = "does not go with [calibrate]; give jobs one storage instead, and "
            faults.append(Fault("--shard", f"{text}a file each"))
        if spec.precision is not None and self._request.shard is not None:
            text = "does not go with [precision], which looks at all replicates of a "
            faults.append(Fault("--shard", f"{text}scenario; give one job more ranks"))
        if spec.calibrate is not None and self._request.retry_failed:
            text = "does not go with [calibrate], whose failed trials have been told; "
            faults.append(Fault("--retry-failed", f"{text}raise trials instead"))
        return faults

    def _describe(self, failure: Failure) -> str:
        """Return the text of a failure: where, with what, how often, and why."""
        index, replicate = self._spec.locate(failure.task)
        scenario = self._spec.scenarios[index]
        [stream] = streams.of(self._spec, [failure.task])
        return (
            f"scenario {scenario.name!r}, replicate {replicate}, attempt "
            f"{failure.attempts}, parameters {dict(scenario.parameters)}, seed "
            f"{stream.seed}, spawn key {stream.key}\n{failure.text}"
        )

    @property
    def _file(self) -> Store:
        if self._store is None:
            raise RuntimeError("no file has been laid down yet")
        return self._store

    @property
    def _running(self) -> Tally:
        if self._tally is None:
            raise RuntimeError("no task has been dealt yet")
        return self._tally

    @property
    def _partial(self) -> Path:
        file = self._request.file
        return file.with_name(file.name + PARTIAL)

    @property
    def _shelved(self) -> Shelf:
        """What scenarios' steps have made in this run and in earlier ones."""
        if self._shelf is None:
            self._shelf = Shelf(self._partial)
        return self._shelf

    def _key(self, scenario: int) -> bytes:
        """Return a hash of all that a scenario's preparation depends on."""
        spec = self._spec
        own = spec.scenarios[scenario]
        parts = [
            *("prepare", self._code, own.name, to_text(dict(own.parameters))),
            *(str(spec.ensemble.seed), repr(spec.shared), repr(spec.prepare)),
        ]
        return hashlib.sha256("\0".join(parts).encode()).digest()

    def _count(self, tasks: int, seconds: float, failed: int = 0) -> None:
        self._running.finished += tasks
        self._running.failed += failed
        self._running.busy += seconds

    def _find_file(self, again: bool) -> bool:
        """Open the file to go on with, if any; True where it is complete already."""
        complete, begun = self._request.file, self._partial
        journal.restore(begun)
        fresh, retry = self._request.fresh, self._request.retry_failed and not again
        if fresh and not again:
            begun.unlink(missing_ok=True)
            shelf.clear(begun)
            study.clear(complete)
        old: Store | None = None
        if complete.exists() and not fresh:
            old = Store(complete)
            change = self._compare(old)
            if change.none and not (retry and count_failed(old)):
                self._store = old
                return True
        if begun.exists():
            old = Store(begun, writable=True)
            change = self._compare(old)
        if old is None:
            return False
        if retry:
            failed = np.flatnonzero(old.status == FAILED)
            old.status[failed] = PENDING
        if not (old.status == DONE).any():
            return False  # nothing to lose, and perhaps no outputs are known
        if self._costs is None:
            self._costs = _learn_costs(old, self._spec)
        if change.relays or old.path == complete:
            self._store = self._lay_down(None, old, self._look)
            old.close()
        else:
            self._store = old
            if retry:
                old.forget(failed)
            old.forget(old.broken(self._look))
        return False

    def _compare(self, old: Store) -> growth.Change:
        """Compare a file's spec with ours; SpecError where they cannot be one."""
        before = old.layout
        change = growth.compare(
            before.spec, self._spec, before.parameters, self._parameters
        )
        if old.attributes.get("aggregate_code") not in (None, self._aggregate_code):
            change = dataclasses.replace(change, relays=True)
        ways = "; use --fresh to start over, or -o to write another file"
        text = f"has changed since {old.path} was begun"
        why = {where: f", and {reason}" for where, reason in change.why.items()}
        faults = [Fault(w, text + why.get(w, "") + ways) for w in change.refused]
        changed = old.attributes.get("model_code") != self._code
        if changed and not self._request.accept_model_change:
            text = f"its code has changed since {old.path} was begun; "
            text += "use --accept-model-change to go on all the same, or --fresh"
            faults.append(Fault(place(*self._spec.model_key), text))
        if old.attributes.get("target_code", "") != self._target_code:
            text = f"has changed its data or losses since {old.path} was begun{ways}"
            faults.append(Fault(place("calibrate", "targets"), text))
        if before.shard != self._request.shard:
            what = f"is shard {before.shard}" if before.shard else "is no shard"
            faults.append(Fault("", f"{old.path} {what}{ways}"))
        dropped = [o.name for o in before.row.outputs if not o.keep]
        dropped = [] if before.shard else dropped
        if change.relays and dropped and "digest" in old.attributes:
            text = f"rows of {dropped[0]!r} were not kept, so {old.path} cannot grow"
            faults.append(Fault(place(f"outputs.{dropped[0]}", "keep"), text + ways))
        if faults:
            faults = locate_faults(faults, self._request.spec)
            raise SpecError(faults, str(self._request.spec))
        return change

    def _lay_down(self, row: Row | None, old: Store | None, look: Look) -> Store:
        """Lay down a partial file, with the rows of an older one where there is one."""
        if row is None and old is not None:
            row = _renew(old.layout.row, self._spec)
        request = self._request
        opening = provenance.opening(
            request.spec, self._spec.folder, self._code, self._revision
        )
        opening["target_code"] = self._target_code
        if self._spec.calibrate is not None:
            opening["study_owner"] = self._find_owner(old)
        shard = self._request.shard
        row = row or Row(())
        observed = scoring.lay_out(request.fit or self._spec, row)
        layout = Layout(self._spec, self._parameters, row, shard, observed=observed)
        new, contents = lay_down(self._partial, layout, opening, look=look)
        if old is not None:
            fresh = Store(new, contents, writable=True)
            fresh.copy_tasks(old, growth.match(old.layout.spec, self._spec), look)
            if self._spec.calibrate is not None:
                ledger.copy(old, fresh)
            fresh.sync()
            fresh.close()
        store.replace(new, self._partial, look)
        return Store(self._partial, contents, writable=True)


def count_failed(file: Store) -> int:
    """Return how much of a complete file has failed: tasks, aggregates, and curves."""
    return int((file.status == FAILED).sum()) + count_steps(file.attributes)


def count_steps(closing: Mapping[str, Any]) -> int:
    """Return how many aggregates and curves have failed by what is said of a file."""
    return sum(int(closing.get(f"{what}_failed", 0)) for what in _STEPS)


def tell_steps(closing: Mapping[str, Any]) -> None:
    """Say how many aggregates and curves have failed, where any have."""
    for what, name in _STEPS.items():
        if failed := closing.get(f"{what}_failed"):
            print(f"mpiens: {failed} {name} failed", file=sys.stderr)


def complete(file: Store, target: Path, closing: Mapping[str, Any], look: Look) -> None:
    """Finish a file whose rows and bands are there: digest, attributes, and its name.

    A shard keeps all rows, until it is merged.
    """
    layout = file.layout
    if layout.shard is None:
        summary.compare(file)
        sensitivity.analyse(file, look)
    closing = {**closing, "digest": file.digest()}
    path = file.path
    if layout.shard is not None or all(output.keep for output in layout.row.outputs):
        file.complete(closing)
    else:  # a new file beside the old one, which stays as it is
        path = _slim(file, target)
        store.set_attributes(path, closing)
    file.close()
    store.replace(path, target)
    journal.forget(file.path)
    if path != file.path:
        file.path.unlink()


def _slim(file: Store, target: Path) -> Path:
    """Copy a file without the rows that are not kept."""
    attributes = Store(file.path).attributes
    own = (
        "mpiens_format",
        "spec",
        "outputs",
        "aggregates",
        "joined",
        "parameter_names",
    )
    rest = {name: v for name, v in attributes.items() if name not in own}
    new, contents = lay_down(target, file.layout, rest, slim=True)
    slim = Store(new, contents, writable=True)
    slim.copy_all(file)
    slim.sync()
    slim.close()
    return new


def _learn_costs(old: Store, spec: Spec) -> Any:
    """Return seconds per task and scenario as an earlier run measured them."""
    seconds = old.read("/tasks/seconds")
    seconds[old.status.reshape(seconds.shape) != DONE] = np.nan
    known = {
        new: float(np.nanmean(seconds[before]))
        for new, before in growth.match(old.layout.spec, spec).items()
        if not np.isnan(seconds[before]).all()
    }
    usual = float(np.mean(list(known.values()))) if known else 0.0
    return np.array([known.get(i, usual) for i in range(len(spec.scenarios))])


def _renew(row: Row, spec: Spec) -> Row:
    """Return the row of an older file under what the spec now says of its outputs."""
    return Row(
        tuple(
            dataclasses.replace(
                output,
                units=spec.outputs[output.name].units,
                summaries=spec.outputs[output.name].summaries,
            )
            if output.name in spec.outputs
            else dataclasses.replace(output, units=None, summaries=())
            for output in row.outputs
        )
    )
