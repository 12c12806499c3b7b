"""From stored rows to what is shown: summaries, bands, comparisons.

The ranks of a team take slabs in turn, through parallel HDF5 where the team is more
than one; a team of one does the same alone.  The numbers do not depend on the team.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from mpiens import bands
from mpiens.contents import open_file
from mpiens.deadline import Look, Stopped, look_away
from mpiens.difference import (
    LOWER,
    Difference,
    bound_mean,
    bound_welch,
    compare_paired,
    compare_unpaired,
)
from mpiens.intervals import bound_share, enclose_future, enclose_quantiles
from mpiens.layout import (
    BAND,
    DIFFERENCES,
    DONE,
    MEAN_INTERVAL,
    ROWS,
    VERDICTS,
    Layout,
    place_statistic,
)
from mpiens.row import Output, as_bytes, checksums
from mpiens.spec import Bands, Spec
from mpiens.store import Store

if TYPE_CHECKING:
    from mpiens.mpi import Comm

BUDGET = 8 << 20  # bytes of samples that a rank reads at once
CACHE = 1 << 20  # and those of a core that are turned round at once
LEAST = 1 << 18  # bytes that are worth a turn of their own

Floats = NDArray[np.float64]
Selection = tuple[slice, ...]
Piece = tuple[Selection, Floats]
Pieces = dict[str, Piece]
Status = NDArray[np.uint8]
Described = dict[str, Floats]
"""Statistics by name, each with the scenario on the first axis."""


class WriteError(OSError):
    """The file could not be written, or does not hold what was written."""


class Hyperslabs:
    """The result file, opened by a team that reads slabs and writes them together."""

    def __init__(self, team: Comm, path: Path) -> None:
        self._team = team
        self._parallel = team.size > 1
        self._file = open_file(path, "r+", team if self._parallel else None)
        self._written: list[tuple[str, Selection, int]] = []

    def read(self, path: str, selection: Selection) -> NDArray[Any]:
        """Read a slab, independently of the others."""
        data: NDArray[Any] = self._file[path][selection]
        return data

    def write(self, paths: list[str], make: Callable[[], Pieces]) -> None:
        """Write what ``make`` returns: some of the datasets, one slab of each.

        Collective: every rank names the same paths.  Raises WriteError on every rank
        where one of them could not go on, so that none waits for ever.
        """
        pieces = self.agree(make)
        for path in paths:
            piece = pieces.get(path)
            self.agree(partial(self._put, path, piece))

    def close(self) -> None:
        """Flush, read back what this rank wrote, and close.  Collective."""
        try:
            self.agree(self._file.flush)
            self.agree(self._check)
        finally:
            self._team.barrier()  # a close that fails on one rank only would crash
            self._file.close()

    def agree(self, act: Callable[[], Any]) -> Any:
        """Do something on every rank; WriteError on all where one of them fails."""
        result, error = None, None
        try:
            result = act()
        except Exception as caught:
            error = caught
        if not self._team.all_true(error is None):
            raise WriteError(f"writing failed: {error or 'on another rank'}") from error
        return result

    def _put(self, path: str, piece: Piece | None) -> None:
        dataset = self._file[path]
        space = dataset.id.get_space()
        if piece is None:
            data = np.zeros(1)
            memory = h5py.h5s.create_simple((1,))
            memory.select_none()
            space.select_none()
        else:
            selection, data = piece
            data = np.ascontiguousarray(data, dtype=dataset.dtype)
            start = tuple(part.start for part in selection)
            count = tuple(part.stop - part.start for part in selection)
            memory = h5py.h5s.create_simple(count)
            space.select_hyperslab(start, count)
            self._written.append((path, selection, zlib.crc32(data.tobytes())))
        transfer = h5py.h5p.create(h5py.h5p.DATASET_XFER)
        if self._parallel:
            transfer.set_dxpl_mpio(h5py.h5fd.MPIO_COLLECTIVE)
        dataset.id.write(memory, space, data, dxpl=transfer)

    def _check(self) -> None:
        for path, selection, expected in self._written:
            if zlib.crc32(self.read(path, selection).tobytes()) != expected:
                raise WriteError(f"{path} does not hold what was written to it")


def summarise_rows(
    team: Comm, path: Path, layout: Layout, status: Status, look: Look = look_away
) -> list[int]:
    """Compute the summaries of every task, and check its row.  Collective.

    Returns, on the root, the tasks whose rows do not have their checksums.  Raises
    Stopped on all ranks where ``look`` does on one.
    """
    done = status.reshape(layout.by_task) == DONE
    size = max(1, layout.row.dtype.itemsize)
    slabs = [*cut(layout.by_task, _share(team, size * layout.spec.tasks) // size)]
    paths = [f"/summary/{output.name}/{kind}" for output, kind in layout.summaries()]
    broken: list[int] = []
    with contextlib.closing(Hyperslabs(team, path)) as file:
        for slab in take_turns(team, slabs, look):

            def make(slab: Selection | None = slab) -> Pieces:
                if slab is None:
                    return {}
                rows = _read_rows(file, layout, slab)
                broken.extend(_find_broken(file, layout, slab, rows, done))
                return _summarise_slab(layout, slab, rows, done)

            file.write(paths, make)
    found = team.gather(broken)
    return sorted(task for tasks in found for task in tasks) if found else []


def make_bands(
    team: Comm, path: Path, layout: Layout, status: Status, look: Look = look_away
) -> None:
    """Describe each scenario's replicates, and how they differ from the baseline's.

    Collective.  Raises Stopped on all ranks where ``look`` does on one.
    """
    done = status.reshape(layout.by_task) == DONE
    with contextlib.closing(Hyperslabs(team, path)) as file:
        for work in _list_works(file, layout, done):
            output = work.output
            shape = (layout.by_task[0], *output.shape)
            # of few replicates what describes them is larger than they are
            entry = np.dtype(output.dtype).itemsize * layout.by_task[1]
            entry += 8 * layout.count_statistics(work.differs)
            share = _share(team, entry * math.prod(shape))
            slabs = [*cut(shape, share // entry)]
            paths = layout.list_statistics(work.path, output)
            make = _make_difference if work.differs else _make_band
            for slab in take_turns(team, slabs, look):
                file.write(paths, partial(make, file, layout, work, slab))


@dataclass(frozen=True)
class Work:
    """What is described: some replicates of an output, or how they differ."""

    path: str
    output: Output
    chosen: NDArray[np.bool_]
    differs: bool = False


def _list_works(
    file: Hyperslabs, layout: Layout, done: NDArray[np.bool_]
) -> Iterator[Work]:
    """Yield the bands, the differences, and the bands of what took off."""
    for output in layout.row.banded:
        yield Work(f"/bands/{output.name}", output, done)
    for output in layout.row.banded if layout.has_baseline else ():
        yield Work(f"/differences/{output.name}", output, done, differs=True)
    for output, takeoff in layout.takeoffs():
        own = f"/summary/{output.name}/{takeoff.summary}"
        found = file.agree(partial(file.read, own, ()))
        path = f"/takeoff/{output.name}/{ROWS}"
        yield Work(path, output, done & (found > takeoff.above))


def _make_band(
    file: Hyperslabs, layout: Layout, work: Work, slab: Selection | None
) -> Pieces:
    """Describe those chosen of one slab of one output."""
    if slab is None:
        return {}
    read = read_slab(file, layout, work.output, slab)
    told = describe_rows(read, work.chosen[slab[0]], layout.spec.bands)
    return _place(work.path, slab, told)


def _make_difference(
    file: Hyperslabs, layout: Layout, work: Work, slab: Selection | None
) -> Pieces:
    """Describe how one slab of one output differs from the baseline's, by pairs."""
    if slab is None:
        return {}
    output, done = work.output, work.chosen
    here, *part = slab
    told: list[Described] = []
    for index, own in enumerate(read_slab(file, layout, output, slab), here.start):
        base = layout.spec.baselines[index]
        if base is None:
            raise RuntimeError("a scenario without a baseline is not compared")
        twin = read_slab(file, layout, output, (slice(base, base + 1), *part))[0]
        samples = own.astype(float), twin.astype(float)
        told.append(_compare_rows(layout, *samples, done[index], done[base]))
    whole = {name: np.concatenate([one[name] for one in told]) for name in told[0]}
    return _place(work.path, slab, whole)


def _compare_rows(
    layout: Layout,
    own: Floats,
    base: Floats,
    done: NDArray[np.bool_],
    base_done: NDArray[np.bool_],
) -> Described:
    """Describe the differences of rows (replicate, ...) from those of the baseline."""
    both, confidence = done & base_done, layout.spec.bands.confidence
    with np.errstate(invalid="ignore", over="ignore"):  # of the user's infinities
        told = describe_rows((own - base)[None], both[None], layout.spec.bands)
        if layout.spec.ensemble.pairing == "common":
            interval = bound_mean(_turn((own - base)[both]), confidence)
        else:
            apart = _turn(own[done]), _turn(base[base_done])
            interval = bound_welch(*apart, confidence=confidence)
    told[MEAN_INTERVAL] = interval[None]
    return told


def _turn(rows: Floats) -> Floats:
    """Return rows (replicate, ...) with the replicates innermost, side by side."""
    return np.ascontiguousarray(np.moveaxis(rows, 0, -1))


def read_slab(
    file: Hyperslabs, layout: Layout, output: Output, slab: Selection
) -> NDArray[Any]:
    """Read all replicates of a slab of (scenario, ...)."""
    here, *part = slab
    whole = (here, slice(0, layout.by_task[1]), *part)
    return file.read(f"/series/{output.name}", whole)


def _place(path: str, slab: Selection, told: Described) -> Pieces:
    """Return where in the file a slab's statistics belong."""
    here, *part = slab
    pieces = {}
    for name, data in told.items():
        extra = data.shape[1 : data.ndim - len(part)]
        whole = (here, *(slice(0, size) for size in extra), *part)
        pieces[place_statistic(path, name)] = whole, data
    return pieces


def describe_rows(
    rows: NDArray[Any], done: NDArray[np.bool_], wanted: Bands
) -> Described:
    """Describe rows (scenario, replicate, ...), a few of their entries at a time.

    So they are turned round, for replicates to lie side by side, within a core's cache.
    """
    scenarios, replicates, *shape = rows.shape
    flat = rows.reshape(scenarios, replicates, math.prod(shape))
    step = max(1, CACHE // max(1, flat[..., :1].size * 8))
    # memory that is asked for anew comes as cleared pages, which takes as long again
    turned = np.empty((scenarios, min(step, flat.shape[2]), replicates))
    room = np.empty_like(turned)
    parts = []
    for start in range(0, max(1, flat.shape[2]), step):
        part = np.moveaxis(flat[..., start : start + step], 1, -1)
        samples = turned[:, : part.shape[1]]
        samples[...] = part
        parts.append(_describe(samples, done, wanted, room[:, : part.shape[1]]))
    return {
        name: (one := np.concatenate([part[name] for part in parts], axis=-1)).reshape(
            *one.shape[:-1], *shape
        )
        for name in parts[0]
    }


def _describe(
    samples: Floats,
    done: NDArray[np.bool_],
    wanted: Bands,
    room: Floats | None = None,
) -> Described:
    """Describe those done of samples (scenario, ..., replicate), by statistic.

    ``room`` is memory of the same shape that may be written over.
    """
    if not done.all():  # each scenario has replicates of its own
        parts = [
            _describe(np.ascontiguousarray(one[None][..., own]), own[None, own], wanted)
            for one, own in zip(samples, done, strict=True)
        ]
        return {n: np.concatenate([part[n] for part in parts]) for n in parts[0]}
    ordered = np.empty_like(samples) if room is None else room
    ordered[...] = samples
    ordered.sort(axis=-1)
    interval = enclose_quantiles(ordered, wanted.levels, wanted.confidence)
    told = {
        BAND: np.moveaxis(bands.interpolate(ordered, wanted.levels), 1, 0),
        "interval": np.moveaxis(bands.define(interval, ordered), 2, 0),
    }
    if wanted.shares:
        future = enclose_future(ordered, wanted.shares)
        told["prediction"] = np.moveaxis(bands.define(future, ordered), 2, 0)
    told["mean"] = bands.mean(samples)
    told["std"] = bands.deviation(samples, ordered)
    return told


def compare(store: Store) -> None:
    """Add bands of summaries, differences against the baseline, and their bands.

    Done by the root: a summary is one number a task.
    """
    layout = store.layout
    done = store.status.reshape(layout.by_task) == DONE
    store.write_all("/tasks/done", done.sum(axis=1))
    baselines = [0 if index is None else index for index in layout.spec.baselines]
    for output, kind in layout.summaries():
        path = f"{output.name}/{kind}"
        own = store.read(f"/summary/{path}")
        _write_statistics(store, f"/summary/{path}", own, done)
        if layout.has_baseline:
            both = done & done[baselines]
            difference = np.where(both, own - own[baselines], np.nan)
            store.write_all(f"/comparison/{path}", difference)
            _write_statistics(store, f"/comparison/{path}", difference, both)
            _write_verdicts(store, f"/comparison/{path}", own, done)
    for output, takeoff in layout.takeoffs():
        found = store.read(f"/summary/{output.name}/{takeoff.summary}")
        _write_takeoff(store, output, done, done & (found > takeoff.above))


def _write_takeoff(
    store: Store,
    output: Output,
    done: NDArray[np.bool_],
    off: NDArray[np.bool_],
) -> None:
    """Write how many replicates took off, and summaries of those that did."""
    layout = store.layout
    path, confidence = f"/takeoff/{output.name}", layout.spec.bands.confidence
    counts = [*zip(off.sum(axis=1).tolist(), done.sum(axis=1).tolist(), strict=True)]
    shares = [count / whole if whole else np.nan for count, whole in counts]
    bounds = [bound_share(count, whole, confidence) for count, whole in counts]
    store.write_all(f"{path}/share", np.array(shares))
    store.write_all(f"{path}/share_interval", np.array(bounds))
    for own, kind in layout.summaries():
        if own.name == output.name:
            samples = store.read(f"/summary/{output.name}/{kind}")
            _write_statistics(store, f"{path}/{kind}", samples, off)


def _write_statistics(
    store: Store, path: str, samples: Floats, done: NDArray[np.bool_]
) -> None:
    for name, data in _describe(samples, done, store.layout.spec.bands).items():
        store.write_all(place_statistic(path, name), data)


def _write_verdicts(
    store: Store, path: str, samples: Floats, done: NDArray[np.bool_]
) -> None:
    """Write how surely each scenario differs from its baseline, and by what share."""
    spec = store.layout.spec
    found: dict[str, list[Any]] = {}
    for index, base in enumerate(spec.baselines):
        if base is None:
            raise RuntimeError("a scenario without a baseline is not compared")
        told = differ(spec, samples[index], samples[base], done[index], done[base])
        known = vars(told) if index != base else {"mean": 0.0}
        for name, statistic in (DIFFERENCES | VERDICTS).items():
            if name in ("mean", MEAN_INTERVAL) or name in VERDICTS:
                nothing = (np.nan,) * 2 if statistic.dims else np.nan
                found.setdefault(name, []).append(known.get(name, nothing))
    for name, values in found.items():
        store.write_all(place_statistic(path, name), np.array(values, dtype=float))


def differ(
    spec: Spec,
    own: Floats,
    base: Floats,
    done: NDArray[np.bool_],
    base_done: NDArray[np.bool_],
) -> Difference:
    """Compare a summary of a scenario's replicates with the baseline's.

    Where both met the same streams those replicates are paired of which both are done.
    """
    paired = spec.ensemble.pairing == "common"
    if paired:
        done = base_done = done & base_done
    return (compare_paired if paired else compare_unpaired)(
        own[done],
        base[base_done],
        better=spec.bands.better or LOWER,
        confidence=spec.bands.confidence,
    )


def cut(shape: tuple[int, ...], limit: int) -> Iterator[Selection]:
    """Cut an array into blocks of at most so many elements (or of one)."""
    if not shape:
        yield ()
        return
    inner = math.prod(shape[1:])
    if inner > limit:
        for index in range(shape[0]):
            for rest in cut(shape[1:], limit):
                yield slice(index, index + 1), *rest
        return
    step = max(1, limit // max(1, inner))
    whole = tuple(slice(0, size) for size in shape[1:])
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0])), *whole


def _share(team: Comm, nbytes: int) -> int:
    """Return how many bytes a rank should read at once, so that all have something."""
    return min(BUDGET, max(LEAST, nbytes // (2 * team.size)))


def take_turns(team: Comm, slabs: list[Any], look: Look) -> Iterator[Any]:
    """Yield this rank's slabs, and None where others still have one."""
    for first in range(0, len(slabs), team.size):
        reason = ""
        try:
            look()
        except Stopped as news:
            reason = str(news)
        if not team.all_true(not reason):
            raise Stopped(reason or "another rank was asked to stop")
        index = first + team.rank
        yield slabs[index] if index < len(slabs) else None


def _read_rows(file: Hyperslabs, layout: Layout, slab: Selection) -> NDArray[np.void]:
    """Read whole rows of some replicates of some scenarios."""
    if len(layout.row.stored) == 1 and layout.row.dtype.itemsize:
        [output] = layout.row.stored
        whole = tuple(slice(0, size) for size in output.shape)
        read = file.read(f"/series/{output.name}", (*slab, *whole))
        flat = np.ascontiguousarray(read).reshape(*read.shape[:2], -1)
        return flat.view(layout.row.dtype)[..., 0]
    rows = np.zeros([part.stop - part.start for part in slab], layout.row.dtype)
    for output in layout.row.stored:
        whole = tuple(slice(0, size) for size in output.shape)
        rows[output.name] = file.read(f"/series/{output.name}", (*slab, *whole))
    return rows


def _find_broken(
    file: Hyperslabs,
    layout: Layout,
    slab: Selection,
    rows: NDArray[np.void],
    done: NDArray[np.bool_],
) -> Iterator[int]:
    places = np.flatnonzero(done[slab])
    size = rows.dtype.itemsize
    found = checksums(as_bytes(rows) if size else b"", size, places.tolist())
    sums = file.read("/tasks/checksum", slab).reshape(-1)[places]
    first, second = (part.start for part in slab)
    for place in places[found != sums].tolist():
        scenario, replicate = divmod(place, rows.shape[1])
        yield layout.spec.number(first + scenario, second + replicate)


def _summarise_slab(
    layout: Layout,
    slab: Selection,
    rows: NDArray[np.void],
    done: NDArray[np.bool_],
) -> Pieces:
    pieces: Pieces = {}
    for output, kind in layout.summaries():
        steps = output.shape[0] if output.shape else 1
        values = rows[output.name].reshape(rows.size, steps).astype(float, copy=False)
        numbers = bands.summarise(
            kind, values, np.arange(steps, dtype=float), padded=output.padded
        )
        numbers = np.where(done[slab], numbers.reshape(rows.shape), np.nan)
        pieces[f"/summary/{output.name}/{kind}"] = (slab, numbers)
    return pieces
