"""``mpiens bench``: what this allocation gives, and what that means for one's tasks.

Everything is measured by the real program: small ensembles that run on the ranks as
they were started, with their files in the folder where results would go.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mpiens import ensemble, mpi, window
from mpiens.deadline import Deadline
from mpiens.fault import Fault, SpecError
from mpiens.grid import Grid
from mpiens.reader import decode
from mpiens.request import Request
from mpiens.store import Store
from mpiens.trouble import COMPLETE, Trouble

LENGTHS = (1e-3, 1e-2, 0.1, 1.0, 10.0)  # seconds of tasks that are told about
LEAST = 2.5e-3  # seconds that a range takes at least: short tasks share one
EXCHANGES = 200  # messages there and back
SHORT_TASKS = 2000  # for each rank
NAP, NAPS = 0.02, 40  # seconds of a task; how many for each rank
# as short as a range of one task gets, so that the root has much to do
BLINK, BLINKS = 3e-3, (50, 250)  # how many for each rank, twice
ENTRIES, ROWS_BYTES = 8192, 64 << 20  # numbers of a long row; all rows together
WINDOW_BYTES = 128 << 20
TAG_PING, TAG_PONG = 31, 32
MODEL = """
import time

import numpy as np


def nothing(rng):
    return {"x": rng.random()}


def nap():
    time.sleep(NAP)
    return {"x": 0.0}


def blink():
    time.sleep(BLINK)
    return {"x": 0.0}


def series(rng):
    return {"x": rng.random(ENTRIES)}


def load(size):
    return np.ones(size // 8)
"""


@dataclass(frozen=True)
class Wishes:
    """What is asked for on the command line."""

    folder: Path = Path()  # where files are written
    file: Path | None = None  # for all figures, as JSON
    task_seconds: float | None = None
    row_bytes: int = 8


@dataclass
class Figures:
    """What was measured; seconds and bytes."""

    ranks: int
    nodes: int
    cores: int  # that this node's root may use
    library: str
    parallel_hdf5: bool
    startup: float = 0.0  # from the first process to when all ranks are ready
    near: tuple[float, float] | None = None  # there and back: median, 99 %
    far: tuple[float, float] | None = None
    short_tasks: float = 0.0  # a second
    service: float = 0.0  # of the root, for one range
    utilisation: float = 0.0  # of ranks whose tasks take NAP
    write: float = 0.0  # bytes a second, from the ranks into the file
    bands: float = 0.0  # bytes a second
    window: float = 0.0  # bytes a second, into the windows of all nodes
    lengths: list[Length] = field(default_factory=list)


@dataclass(frozen=True)
class Length:
    """What is to be expected where tasks take so long."""

    seconds: float
    most_ranks: int  # that one root keeps busy
    utilisation: float  # of these ranks
    bound: str  # what keeps it from being more: "root", "file", or nothing


def predict(
    seconds: float, ranks: int, *, service: float, row_bytes: float, write: float
) -> Length:
    """Return what is to be expected of tasks that take so long.

    A root that needs ``service`` seconds a range keeps ranges / service ranks busy, as
    ranges are dealt ahead of need; and rows come no faster than the file takes them.
    """
    span = seconds * max(1, -(-LEAST // seconds))
    by_root = span / service
    by_file = write * seconds / max(row_bytes, 1e-9)
    most = min(by_root, by_file)
    share = min(1.0, most / ranks)
    bound = "" if share == 1.0 else "root" if by_root < by_file else "file"
    return Length(seconds, int(most), share, bound)


def bench(comm: mpi.Comm, wishes: Wishes, deadline: Deadline) -> int:
    """Measure, and tell; return the exit code.  Collective.

    Raises SpecError on every rank where the folder cannot be used, and Trouble where
    the file system fails or a stop was asked for.
    """
    ready = _since_start()
    make = partial(_make_folder, wishes.folder)
    folder = Path(ensemble.tell_all(comm, make if comm.rank == 0 else None))
    try:
        figures = _measure(comm, folder, deadline, ready)
    finally:
        comm.barrier(10.0)
        if comm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
    if comm.rank == 0:
        _predict_all(figures, wishes)
        _print(figures, wishes)
        if wishes.file is not None:
            text = json.dumps(_as_document(figures, wishes), indent=1)
            wishes.file.write_text(text + "\n", encoding="utf-8")
    return COMPLETE


def _measure(comm: mpi.Comm, folder: Path, deadline: Deadline, ready: float) -> Figures:
    """Measure all there is; what comes back counts on the root.  Collective."""
    node = comm.node()
    comm.meet(node)
    leaders = comm.gather(node.rank == 0)
    figures = Figures(
        ranks=comm.size,
        nodes=sum(leaders or [1]),
        cores=len(os.sched_getaffinity(0)),
        library=mpi.library(),
        parallel_hdf5=bool(h5py.get_config().mpi),
        startup=max(comm.gather(ready) or [ready]),
    )
    mates = comm.gather(comm.bell.knows(0)) or []
    near = [r for r, mate in enumerate(comm.bcast(mates)) if mate and r]
    far = [r for r, mate in enumerate(comm.bcast(mates)) if not mate and r]
    for name, others in (("near", near), ("far", far)):
        if others:
            setattr(figures, name, _exchange(comm, others[0]))
    run = Trial(comm, folder, deadline).run
    told = run("nothing", SHORT_TASKS * comm.size)
    figures.short_tasks = SHORT_TASKS * comm.size / told["seconds_dealing"]
    few, many = (run("blink", count * comm.size) for count in BLINKS)
    ranges = (BLINKS[1] - BLINKS[0]) * comm.size
    figures.service = max(1e-6, (many["cpu"] - few["cpu"]) / ranges)
    told = run("nap", NAPS * comm.size)
    figures.utilisation = min(1.0, NAP * NAPS / told["seconds_dealing"])
    rows = max(2 * comm.size, ROWS_BYTES // (8 * ENTRIES))
    told = run("series", rows, 'dims = ["entry"]')
    figures.write = rows * 8 * ENTRIES / told["seconds_dealing"]
    beside = max(1e-9, told["seconds"] - told["seconds_dealing"])
    figures.bands = rows * 8 * ENTRIES / beside
    figures.window = _fill_windows(comm, folder)
    return figures


def _exchange(comm: mpi.Comm, other: int) -> tuple[float, float] | None:
    """Return the seconds of a message from the root to a rank and back."""
    spent = []
    for _ in range(EXCHANGES if comm.rank in (0, other) else 0):
        begun = time.perf_counter()
        if comm.rank == 0:
            comm.post(other, TAG_PING, b"")
        backoff = comm.backoff()
        while comm.poll() is None:
            if comm.bell.wait(backoff.next()):
                backoff.reset()
        if comm.rank == other:
            comm.post(0, TAG_PONG, b"")
        comm.unsent()
        spent.append(time.perf_counter() - begun)
    comm.flush()
    comm.barrier()
    if comm.rank != 0:
        return None
    return float(np.median(spent)), float(np.quantile(spent, 0.99))


@dataclass(frozen=True)
class Trial:
    """Where small ensembles are run."""

    comm: mpi.Comm
    folder: Path
    deadline: Deadline

    def run(
        self, function: str, replicates: int, output: str = ""
    ) -> Mapping[str, float]:
        """Run an ensemble of the folder's model to its end; return what its file says.

        Also what the root's supervisor took of a core.  Raises Trouble on all ranks
        where the run was stopped or failed.
        """
        head = f'[ensemble]\nmodel = "model.py:{function}"\nseed = 1\n'
        text = f"{head}replicates = {replicates}\n[outputs.x]\n{output}\n"
        spec = self.folder / f"{function}.toml"
        request = Request(spec, spec.with_suffix(".h5"), fresh=True)
        root = self.comm.rank == 0
        write = partial(spec.write_text, text, encoding="utf-8")
        ensemble.tell_all(self.comm, write if root else None)
        said = io.StringIO()
        before = time.process_time()
        with contextlib.redirect_stderr(said):
            code = ensemble.run(self.comm, request, self.deadline)
        spent = time.process_time() - before

        if code != COMPLETE:
            raise Trouble(said.getvalue().strip() or f"ended with {code}", code)

        def read() -> dict[str, float]:
            told = Store(request.file).attributes
            names = ("seconds", "seconds_dealing")
            return {**{name: float(told[name]) for name in names}, "cpu": spent}

        found: dict[str, float] = ensemble.tell_all(self.comm, read if root else None)
        return found


def _fill_windows(comm: mpi.Comm, folder: Path) -> float:
    """Return the bytes a second that shared data needs to be in all nodes' windows."""
    text = (
        '[ensemble]\nmodel = "model.py:nothing"\nreplicates = 1\nseed = 1\n[shared]\n'
    )
    text += f'loader = "model.py:load"\nkwargs = {{ size = {WINDOW_BYTES} }}\n'
    spec = decode(text, f"{folder}/shared.toml").require()
    comm.barrier()
    begun = time.perf_counter()
    window.share(comm, spec)
    comm.barrier()
    return WINDOW_BYTES / (time.perf_counter() - begun)


def _make_folder(place: Path) -> str:
    """Make a folder for the files of the measurement, with the model in it."""
    try:
        folder = tempfile.mkdtemp(prefix="mpiens-bench-", dir=place)
        text = MODEL
        for name, value in {"NAP": NAP, "BLINK": BLINK, "ENTRIES": ENTRIES}.items():
            text = text.replace(name, str(value))
        (Path(folder) / "model.py").write_text(text, encoding="utf-8")
    except OSError as error:
        text = f"{place} cannot be written to: {error.strerror}; choose another folder"
        raise SpecError([Fault("--output", text)]) from error
    return str(Path(folder).resolve())


def _since_start() -> float:
    """Return the seconds since this process began."""
    fields = Path("/proc/self/stat").read_text(encoding="ascii").rpartition(")")[2]
    began = int(fields.split()[19]) / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began


def _predict_all(figures: Figures, wishes: Wishes) -> None:
    own = [wishes.task_seconds] if wishes.task_seconds is not None else []
    figures.lengths = [
        predict(
            seconds,
            figures.ranks,
            service=figures.service,
            row_bytes=wishes.row_bytes,
            write=figures.write,
        )
        for seconds in [*LENGTHS, *own]
    ]


def _print(figures: Figures, wishes: Wishes) -> None:
    """Print what was measured, and what it means."""
    from rich.console import Console  # noqa: PLC0415

    console = Console(highlight=False, markup=False, soft_wrap=True)
    hdf5 = "parallel HDF5" if figures.parallel_hdf5 else "HDF5 by the root alone"
    grid = Grid(
        f"{_count(figures.ranks, 'rank')} on {_count(figures.nodes, 'node')}, "
        f"{_count(figures.cores, 'core')} a node; "
        f"{figures.library}; {hdf5}"
    )
    grid.add_columns("measured", [""])
    for name, value in _list_lines(figures):
        grid.add_row([name, value])
    console.print(grid.drawn)
    grid = Grid(f"what it means for tasks with rows of {wishes.row_bytes:,} bytes")
    grid.add_columns("a task takes", ["ranks at most", "these are busy", "bound by"])
    for length in figures.lengths:
        grid.add_row(
            [
                _tell_seconds(length.seconds),
                f"{length.most_ranks:,}",
                f"{100 * length.utilisation:.0f}%",
                length.bound or "the tasks",
            ]
        )
    console.print(grid.drawn)
    for line in _advise(figures):
        console.print(line)


def _list_lines(figures: Figures) -> list[tuple[str, str]]:
    trips = (("on a node", figures.near), ("between nodes", figures.far))
    return [
        ("until all ranks are ready", _tell_seconds(figures.startup)),
        *(
            (
                f"a message there and back {where}",
                f"{_tell_seconds(trip[0])}, 99% below {_tell_seconds(trip[1])}",
            )
            for where, trip in trips
            if trip is not None
        ),
        ("tasks that do nothing, rows in the file", f"{figures.short_tasks:,.0f} /s"),
        ("the root's work for one range", _tell_seconds(figures.service)),
        (f"ranks busy with tasks of {NAP:g} s", f"{100 * figures.utilisation:.0f}%"),
        ("rows from the ranks into the file", _tell_rate(figures.write)),
        ("bands, and all else after the last task", _tell_rate(figures.bands)),
        ("shared data into all windows", _tell_rate(figures.window)),
    ]


def _advise(figures: Figures) -> list[str]:
    bounds = {length.bound for length in figures.lengths}
    lines = []
    if "root" in bounds:
        lines.append(
            "where the root is the bound: let one task do more, start fewer ranks, or "
            "split the ensemble by --shard"
        )
    if "file" in bounds:
        lines.append(
            "where the file is the bound: return less from a task ([ensemble] reduce), "
            "or write to a faster file system (-o)"
        )
    if figures.ranks > figures.cores * figures.nodes:
        lines.append(
            f"{figures.ranks} ranks share {figures.cores * figures.nodes} cores: what "
            "is told of utilisation holds for ranks with a core each"
        )
    return lines


def _as_document(figures: Figures, wishes: Wishes) -> dict[str, Any]:
    lengths = [vars(length) for length in figures.lengths]
    asked = {"row_bytes": wishes.row_bytes, "task_seconds": wishes.task_seconds}
    return {**vars(figures), **asked, "lengths": lengths}


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")


def _tell_seconds(seconds: float) -> str:
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _tell_rate(rate: float) -> str:
    return f"{rate / 1e6:,.0f} MB/s"
