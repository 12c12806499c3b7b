"""Shards become one file: their rows are taken, and what is made of all rows is made.

The file is the one that a single job would have left, to the last bit of the answer.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mpiens import journal, provenance, shelf, steps, store, trials
from mpiens.aggregation import Aggregation
from mpiens.assembly import join_curves
from mpiens.child import ask_child
from mpiens.deadline import Look, Stopped
from mpiens.fault import Fault, SpecError, place
from mpiens.foundation import lay_down
from mpiens.layout import DONE, FAILED, PENDING, Layout
from mpiens.lock import Lock
from mpiens.progress import Tally, format_seconds
from mpiens.root import (
    complete,
    count_failed,
    count_steps,
    tell_steps,
)
from mpiens.shard import Shard
from mpiens.shelf import Shelf
from mpiens.spec import Spec
from mpiens.store import PARTIAL, Store
from mpiens.trouble import COMPLETE, SOME_FAILED, STOPPED_EARLY
from mpiens.workqueue import Ending

RECIPE = "sbatch --array={} --export=ALL,SHARDS={} array.sbatch {}"
# what a shard's file says of itself alone
_OWN = (
    *("mpiens_format", "spec", "outputs", "aggregates", "joined"),
    *("parameter_names", "shard", "study_owner", "digest"),
    *("aggregate_code", "aggregates_failed", "curves_failed"),
    *("completed", "seconds", "seconds_dealing", "ranks", "host"),
)


@dataclass(frozen=True)
class Sources:
    """What the user wants merged, and into which file."""

    files: tuple[Path, ...]
    file: Path
    fresh: bool = False


class Merger:
    """What the root does to merge shards; it lays down a file as a run would."""

    def __init__(self, sources: Sources, look: Look) -> None:
        self._sources = sources
        self._look = look
        self._store: Store | None = None
        self._complete = False
        self._lock: Lock | None = None
        self._shelf: Shelf | None = None
        self._aggregation: Aggregation | None = None
        self._reason = ""
        self._trouble: OSError | None = None

    def release(self) -> None:
        """Let others write the file."""
        if self._shelf is not None:
            self._shelf.close()
        if self._lock is not None:
            self._lock.release()

    def prepare(self, ranks: int) -> bool:
        """Lay the file down with all rows that there are; whether none is missing.

        Raises SpecError where the files are not of one ensemble, or contradict each
        other.
        """
        self._ranks = ranks
        stores = trials.leave_out_idle([*self._open_sources()])
        first = stores[0]
        self._refuse_mixed(stores)
        spec = first.layout.spec
        code = ask_child(lambda: steps.inspect_aggregate(spec), self._look)
        self._aggregate_code = code
        self._lock = Lock(self._sources.file)
        target = self._sources.file
        if target.exists() and not self._sources.fresh:
            return self._keep(Store(target), first)
        begun = target.with_name(target.name + PARTIAL)
        journal.restore(begun)
        whole = spec.calibrate is not None  # the sources have all that there is
        if begun.exists() and not (self._sources.fresh or whole):
            own = Store(begun)
            self._refuse_mixed([first, own])
            stores.append(own)
        self._tally = Tally(first.layout.spec.tasks, 0, ranks)
        self._store = self._lay_down(stores, begun)
        return not (self._store.status == PENDING).any()

    @property
    def spec(self) -> Spec:
        """The spec of all the files."""
        return self._file.layout.spec

    def aggregation(self) -> Aggregation:
        """Return what deals the scenarios' last steps, all rows being there."""
        target = self._sources.file
        self._shelf = Shelf(target.with_name(target.name + PARTIAL))
        self._aggregation = Aggregation(self._file, self._shelf, self._aggregate_code)
        return self._aggregation

    def has_begun(self) -> bool:
        """Whether there is a file to be completed, and not one that is complete."""
        return not self._complete

    def note(self, reason: str, trouble: OSError | None) -> None:
        """Remember why dealing ended."""
        self._reason = reason
        self._trouble = trouble

    def ends(self, ending: Ending | None) -> bool:
        """Whether the merge ends before its file is complete."""
        return ending is not Ending.COMPLETE

    def pause(self) -> int:
        """Leave the file partial, and say what is missing and what to type."""
        self._file.sync()
        missing = np.flatnonzero(self._file.status == PENDING)
        if not len(missing):
            if self._trouble is not None:
                raise self._trouble
            text = f"stopped early ({self._reason}): what is finished is kept"
            print(f"mpiens: {text}; run the same command again", file=sys.stderr)
            return STOPPED_EARLY
        what = f"{len(missing):,} of {self._file.layout.spec.tasks:,} tasks are missing"
        name = self._file.path
        print(f"mpiens: {what}; {name} has the others", file=sys.stderr)
        for line in self._tell_gaps(missing):
            print(f"mpiens: {line}", file=sys.stderr)
        return STOPPED_EARLY

    def scene(self) -> tuple[Path, Layout, Any]:
        """Return what all ranks need to make bands."""
        self._file.sync()
        return self._file.path, self._file.layout, self._file.status

    def redo(self, broken: list[int]) -> bool:
        """Call tasks pending again whose rows are not what was written."""
        self._file.forget(np.array(broken, dtype=np.int64))
        return bool(broken)

    def finish(self) -> int:
        """Complete the file, give it its name, and say how it went."""
        failed = count_failed(self._file)
        if self._complete:
            text = f"{self._sources.file} is complete: nothing to do"
            print(f"mpiens: {text}", file=sys.stderr)
            return SOME_FAILED if failed else COMPLETE
        closing: dict[str, Any] = provenance.closing(self._tally.elapsed(), self._ranks)
        if self._aggregation is not None:
            closing |= self._aggregation.finish()
        if self._file.layout.spec.join:
            closing |= join_curves(self._file, self._look)
        tasks = self._file.layout.spec.tasks
        complete(self._file, self._sources.file, closing, self._look)
        shelf.clear(self._file.path)
        print(
            f"mpiens: {tasks:,} tasks of {len(self._sources.files)} files merged, "
            f"{failed} failed, in {format_seconds(self._tally.elapsed())}; "
            f"{self._sources.file}",
            file=sys.stderr,
        )
        tell_steps(closing)
        return SOME_FAILED if failed or count_steps(closing) else COMPLETE

    @property
    def _file(self) -> Store:
        if self._store is None:
            raise RuntimeError("nothing has been merged yet")
        return self._store

    def _open_sources(self) -> Iterator[Store]:
        """Yield the files that are there; one that is not may be a shard to come."""
        found = 0
        for path in self._sources.files:
            partial = path.with_name(path.name + PARTIAL)
            begun = partial.exists() and not path.exists()
            present = partial if begun else path
            if not present.exists() and Shard.of_name(path) is not None:
                print(f"mpiens: {path}: there is no such file yet", file=sys.stderr)
                continue
            found += 1
            yield Store(present)
        if not found:
            text = "none of these files is there; run the shards first"
            raise SpecError([Fault("", text)], str(self._sources.files[0]))

    def _refuse_mixed(self, stores: list[Store]) -> None:
        """Raise SpecError where files are not of one ensemble, or not what they say."""
        first, *others = stores
        faults = []
        for other in others:
            text = f"{other.path} and {first.path} differ here; merge files of one spec"
            places = [*_differences(first.layout.spec, other.layout.spec)]
            if first.layout.row != other.layout.row:
                places.append(place("outputs"))
            faults += [Fault(where, text) for where in places]
            if first.attributes["model_code"] != other.attributes["model_code"]:
                text = f"{other.path} and {first.path} were made by different code"
                where = place(*first.layout.spec.model_key)
                faults.append(Fault(where, text))
        for each in stores:
            told = each.attributes.get("digest")
            if told is not None and not faults and each.digest() != told:
                text = f"{each.path} is not what its digest says; run that shard again"
                faults.append(Fault("", text))
        if faults:
            raise SpecError(faults)

    def _keep(self, old: Store, source: Store) -> bool:
        """Leave a complete file as it is, where it is of the same ensemble."""
        ways = "use --fresh to replace it, or -o to write another file"
        if "digest" not in old.attributes or old.layout.shard is not None:
            raise SpecError([Fault("", f"is no merged file; {ways}")], str(old.path))
        if keys := [*_differences(source.layout.spec, old.layout.spec)]:
            text = f"has changed since {old.path} was merged; {ways}"
            raise SpecError([Fault(key, text) for key in keys])
        self._store, self._complete = old, True
        return True

    def _lay_down(self, stores: list[Store], begun: Path) -> Store:
        """Lay the file down anew, with the rows of all others."""
        first = stores[0]
        layout = replace(first.layout, shard=None)
        order = trials.order_jobs(stores) if layout.spec.calibrate else None
        if order is not None:
            layout = trials.lay_out(layout, len(order))
        opening = {n: v for n, v in first.attributes.items() if n not in _OWN}
        opening["merged"] = json.dumps([str(path) for path in self._sources.files])
        new, contents = lay_down(begun, layout, opening, look=self._look)
        merged = Store(new, contents, writable=True)
        try:
            for source in stores if order is None else []:
                self._take(merged, source)
            if order is not None:
                trials.take_jobs(merged, order, self._look)
        except (SpecError, Stopped):
            merged.close()
            new.unlink()
            raise
        merged.sync()
        merged.close()
        store.replace(new, begun)
        return Store(begun, contents, writable=True)

    def _take(self, merged: Store, source: Store) -> None:
        """Take a file's rows; those that are there already have to be the same."""
        name = "/tasks/checksum"
        both = np.flatnonzero((merged.status == DONE) & (source.status == DONE))
        sums = merged.read(name).reshape(-1), source.read(name).reshape(-1)
        unlike = both[sums[0][both] != sums[1][both]]
        if len(unlike):
            spec = merged.layout.spec
            scenario, replicate = spec.locate(int(unlike[0]))
            text = (
                f"{source.path} and the files before it have other results for "
                f"{len(unlike)} of the same tasks, such as scenario "
                f"{spec.scenarios[scenario].name!r}, replicate {replicate}; they are "
                "not of one model on one kind of machine: run one of the shards again"
            )
            raise SpecError([Fault("", text)])
        # what failed in one job and succeeded in another is done
        news = (source.status == DONE) & (merged.status != DONE)
        news |= (source.status == FAILED) & (merged.status == PENDING)
        pairs = {task: task for task in np.flatnonzero(news).tolist()}
        if broken := merged.take(source, pairs, self._look):
            text = f"{len(broken)} rows of {source.path} do not have their checksums"
            print(f"mpiens: {text} and are left out", file=sys.stderr)

    def _tell_gaps(self, missing: Any) -> Iterator[str]:
        """Yield what to type for what is missing."""
        if self._file.layout.spec.calibrate is not None:
            yield "their trials are running: run those jobs again, and merge again"
            return
        named = [Shard.of_name(path) for path in self._sources.files]
        counts = Counter(shard.count for shard in named if shard is not None)
        spec = self._file.attributes["spec_file"]
        if not counts:
            yield f"mpiens {spec} -o {self._sources.file} goes on with it"
            return
        [(count, _)] = counts.most_common(1)
        of_shards = Counter((missing % count).tolist())
        for index, tasks in sorted(of_shards.items()):
            yield f"shard {index} of {count} lacks {tasks:,} tasks"
        which = ",".join(str(index) for index in sorted(of_shards))
        line = RECIPE.format(which, count, spec)
        yield f"run just that by {line}, and merge again"


def _differences(one: Spec, other: Spec) -> Iterator[str]:
    """Yield the places in which two specs differ, but for limits, which change none."""
    documents = one.document(), other.document()
    for section in sorted({*documents[0], *documents[1]} - {"limits"}):
        tables = [document.get(section, {}) for document in documents]
        for key in sorted({*tables[0], *tables[1]}):
            if tables[0].get(key) != tables[1].get(key):
                yield place(section, key)
