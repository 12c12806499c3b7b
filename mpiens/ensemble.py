"""The main job: run an ensemble, or go on with one, until its file is complete."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mpiens import mpi, window
from mpiens.deadline import Deadline, Look, Stopped
from mpiens.fault import SpecError
from mpiens.heartbeat import Heartbeat, guarded
from mpiens.outcome import BACK
from mpiens.request import Request
from mpiens.runner import Inline, Process, Runner
from mpiens.spec import Limits, Spec
from mpiens.trouble import COMPLETE, SOME_FAILED, STOPPED_EARLY, Trouble
from mpiens.worker import Worker
from mpiens.workqueue import (
    TAG_NEWS,
    Ending,
    Manager,
    SilentRank,
    Watch,
    tasks_of_news,
    work,
)

if TYPE_CHECKING:  # only the root loads them: the others start sooner
    from mpiens.merge import Merger, Sources
    from mpiens.root import Root

Answer = TypeVar("Answer")


@dataclass
class Seat:
    """What a rank keeps while others are lost: shared data, its worker, its news."""

    deadline: Deadline
    root: Root | None = None
    begun: bool = False  # the root, whoever that was, has looked at the file
    shared: Callable[[], Any] | None = None
    heartbeat: Heartbeat = field(default_factory=lambda: Heartbeat(Limits().heartbeat))
    lone: bool = False  # the only rank of its node, and not of the job
    worker: Worker | None = None
    unsent: list[bytes] = field(default_factory=list)

    def find_worker(self, spec: Spec) -> Worker:
        """Return this rank's worker, started at the first call."""
        if self.worker is None:
            shared = self.shared or window.nothing
            start: Callable[[], Runner] = partial(Inline, spec, shared)
            if spec.limits.isolation == "process":
                start = partial(Process, spec, shared, watching=self.lone)
            self.worker = Worker(start, spec.limits, spec.input_of)
        return self.worker

    def look_after_mates(self, comm: mpi.Comm) -> None:
        """Find the ranks of this node, and watch over them while waiting.  Collective.

        Until the spec is known with its heartbeat the default is that.
        """
        mates: tuple[int, ...] = ()
        if comm.size > 1:
            pids = comm.meet(comm.node())
            mates = tuple(pid for pid in pids if pid != os.getpid())
            self.lone = not mates
        self._beat(comm, Heartbeat(Limits().heartbeat, mates))

    def set_pace(self, comm: mpi.Comm, spec: Spec) -> None:
        """Watch over the same at the pace that the spec asks for."""
        self._beat(comm, replace(self.heartbeat, seconds=spec.limits.heartbeat))

    def _beat(self, comm: mpi.Comm, heartbeat: Heartbeat) -> None:
        self.heartbeat = heartbeat
        comm.on_wait = heartbeat.look

    def look(self, comm: mpi.Comm) -> None:
        """Called now and then in long work: raises Stopped or RankLost."""
        comm.look()
        self.deadline.look()

    def leave(self) -> None:
        """Give back what a rank holds."""
        if self.worker is not None:
            self.worker.close()
            self.worker = None
        self.deadline.close()
        if self.root is not None:
            self.root.release()


def run(comm: mpi.Comm, request: Request, deadline: Deadline) -> int:
    """Run an ensemble to its end, or go on with it; return the exit code.  Collective.

    Where an MPI tolerates the loss of ranks the survivors go on, the communicator is
    theirs from then on, and the first of them is the root.  Raises SpecError on every
    rank where the user's input is wrong, and Trouble where the file system has failed
    or a stop has interrupted long work beside the tasks.

    What confirms a calibration is an ensemble of its own, run after it.
    """
    code, after = _run_to_its_end(comm, request, deadline)
    if after is None:
        return code
    return max(code, _run_to_its_end(comm, after, deadline)[0])


def _run_to_its_end(
    comm: mpi.Comm, request: Request, deadline: Deadline
) -> tuple[int, Request | None]:
    """Run one ensemble; return the exit code, and what is to be run after it."""
    seat = Seat(deadline)
    try:
        while True:
            try:
                code = _run(comm, seat, request)
                complete = code in (COMPLETE, SOME_FAILED)
                follow = partial(seat.root.follow) if seat.root else None
                return code, tell_all(comm, follow) if complete else None
            except mpi.RankLost:
                _survive(comm, seat)
    finally:
        seat.leave()


def merge(comm: mpi.Comm, sources: Sources, deadline: Deadline) -> int:
    """Merge shards into one file; return the exit code.  Collective.

    Raises SpecError on every rank where the files are not of one ensemble, and Trouble
    where the file system has failed or a stop has interrupted the work.
    """
    seat = Seat(deadline)
    root = None
    if comm.rank == 0:
        from mpiens.merge import Merger  # noqa: PLC0415

        root = Merger(sources, partial(seat.look, comm))
    try:
        if root is not None:
            deadline.ask_slurm(os.environ)
        seat.look_after_mates(comm)
        whole = tell_all(comm, partial(root.prepare, comm.size) if root else None)
        if tell_all(comm, root.has_begun if root else None):
            spec = tell_all(comm, partial(getattr, root, "spec") if root else None)
            seat.set_pace(comm, spec)
            whole = whole and _conclude(comm, seat, root)
            if not (whole and _aggregate(comm, spec, seat, root)):
                return int(tell_all(comm, root.pause if root else None))
        return int(tell_all(comm, root.finish if root else None))
    except mpi.RankLost as news:
        raise Trouble.stopped(Stopped("a rank was lost")) from news
    finally:
        seat.leave()
        if root is not None:
            root.release()


def _run(comm: mpi.Comm, seat: Seat, request: Request) -> int:
    seat.look_after_mates(comm)
    look = partial(seat.look, comm)
    if comm.rank == 0 and seat.root is None:
        from mpiens.root import Root  # noqa: PLC0415

        seat.deadline.ask_slurm(os.environ)
        seat.root = Root(request, look)
    root = seat.root
    prepare = partial(root.prepare, comm.size, seat.begun) if root else None
    spec = tell_all(comm, prepare)
    seat.begun = True
    if spec is not None:  # else there is nothing left to do
        seat.set_pace(comm, spec)
        if not comm.all_true(seat.shared is not None):
            seat.shared = _share(comm, spec, look)
        complete = False
        while not complete:
            ending = _simulate(comm, spec, seat)
            if tell_all(comm, partial(root.ends, ending) if root else None):
                return int(tell_all(comm, root.pause if root else None))
            if request.shard is None:
                complete = _conclude(comm, seat, root)
                if complete and not _aggregate(comm, spec, seat, root):
                    return int(tell_all(comm, root.pause if root else None))
            else:  # what is made of all rows is made when shards are merged
                complete = tell_all(comm, partial(_check, root) if root else None)
    return int(tell_all(comm, root.finish if root else None))


def _share(comm: mpi.Comm, spec: Spec, look: Look) -> Callable[[], Any]:
    try:
        return window.share(comm, spec, look)
    except Stopped as news:
        raise Trouble.stopped(news) from news


def _survive(comm: mpi.Comm, seat: Seat) -> None:
    """Gather the survivors; what this rank had to tell it will tell the new root."""
    told = map(bytes, comm.undelivered(TAG_NEWS))  # what was given back is pending
    seat.unsent += [data for data in told if data[-1] != BACK]
    before = comm.size
    comm.recover()
    if comm.rank == 0:
        text = f"{before - comm.size} of {before} ranks lost, going on with {comm.size}"
        print(f"mpiens: {text}", file=sys.stderr, flush=True)


def _simulate(comm: mpi.Comm, spec: Spec, seat: Seat) -> Ending | None:
    """Run every pending task: the part of a run that takes the time.

    Returns on the root how that ended.
    """
    worker, root = seat.find_worker(spec), seat.root
    if not tell_all(comm, root.begin if root else None):
        worker.reset()  # without a layout nothing that was run can be kept
        seat.unsent.clear()
    claims = comm.gather([*worker.claims, *tasks_of_news(seat.unsent)])
    watch = Watch(seat.deadline, seat.heartbeat)
    manager = None
    source = _ask_root(comm, root.source if root else None)
    if root is not None and claims is not None:
        sink = source or root
        tasks = sink.pending, sink.row, claims, sink.scouts, sink.gate, source
        manager = Manager(comm, worker, sink, watch, *tasks)
    ending = _deal(comm, worker, watch, manager, seat.unsent)
    if root is not None and manager is not None:
        root.note(seat.deadline.reason, manager.trouble)
        root.dealt += manager.seconds
    return ending


def _aggregate(
    comm: mpi.Comm, spec: Spec, seat: Seat, root: Root | Merger | None
) -> bool:
    """Run the step that makes something of each scenario's rows; whether all are done.

    Collective; nothing is done where none is asked for.
    """
    if spec.aggregate is None:
        return True
    worker = seat.find_worker(spec)
    claims = comm.gather([*worker.claims, *tasks_of_news(seat.unsent)])
    watch = Watch(seat.deadline, seat.heartbeat)
    sink = _ask_root(comm, root.aggregation if root else None)
    manager = None
    if root is not None and sink is not None and claims is not None:
        tasks = sink.pending, sink.row, claims, None, sink.gate
        manager = Manager(comm, worker, sink, watch, *tasks)
    ending = _deal(comm, worker, watch, manager, seat.unsent)
    if root is not None and manager is not None:
        root.note(seat.deadline.reason, manager.trouble)
    return not tell_all(comm, partial(root.ends, ending) if root else None)


def _deal(
    comm: mpi.Comm,
    worker: Worker,
    watch: Watch,
    manager: Manager | None,
    unsent: list[bytes],
) -> Ending | None:
    """Let the root deal, and the others work; return on the root how that ended."""
    try:
        if manager is not None:
            return manager.run(comm.backoff(), unsent)
        work(comm, worker, watch, comm.backoff(), unsent)
    except SilentRank as news:
        text = "what is finished is kept; run the same command again"
        print(f"mpiens: {news}: {text}", file=sys.stderr)
        mpi.leave(STOPPED_EARLY)
    return None


def _check(root: Root) -> bool:
    """Check the rows of a shard; False where some proved broken, to be run again."""
    return not root.redo(root.check_rows())


def _conclude(comm: mpi.Comm, seat: Seat, root: Root | Merger | None) -> bool:
    """Make summaries and bands; False where rows proved broken, to be run again.

    All ranks do it where HDF5 is parallel, else the root alone.
    """
    if not tell_all(comm, _is_parallel if root else None):
        return _describe(comm, root, partial(seat.look, comm), _ask_root)
    with guarded(seat.heartbeat.seconds) if comm.size > 1 else nullcontext():
        return _describe(comm, root, partial(seat.look, comm), tell_all)


def _describe(
    comm: mpi.Comm,
    root: Root | Merger | None,
    look: Look,
    ask: Callable[..., Any],
) -> bool:
    scene = ask(comm, root.scene if root else None)
    broken = _together(comm, root, "summarise_rows", scene, look)
    if tell_all(comm, partial(root.redo, broken) if root else None):
        return False
    _together(comm, root, "make_bands", scene, look)
    _together(comm, root, "make_central", scene, look)
    return True


def _is_parallel() -> bool:
    """Whether HDF5 can write together with other ranks; to be asked on the root."""
    import h5py  # noqa: PLC0415

    return bool(h5py.get_config().mpi)


def _together(
    comm: mpi.Comm, root: Root | Merger | None, what: str, scene: Any, look: Look
) -> Any:
    """Let all ranks who know the scene make something of the rows in the file.

    Raises Trouble on all ranks where the file could not be written, or a stop came.
    """
    if scene is None:
        return tell_all(comm, None)
    from mpiens import central, summary  # noqa: PLC0415

    works: dict[str, Callable[..., Any]] = {
        "summarise_rows": summary.summarise_rows,
        "make_bands": summary.make_bands,
        "make_central": central.make_central,
    }
    make = works[what]
    if comm.size == 1 or not _is_parallel():
        return tell_all(comm, partial(make, mpi.alone(), *scene, look))
    try:
        return make(comm, *scene, look)
    except Stopped as news:
        raise Trouble.stopped(news) from news
    except (mpi.RankLost, summary.WriteError) as error:
        if comm.tolerant:
            mpi.leave(STOPPED_EARLY)  # a half-closed parallel file would crash us
        raise Trouble.of(OSError(str(error))) from error


def _ask_root(comm: mpi.Comm, act: Callable[[], Answer] | None) -> Answer | None:
    """Let the root do something, for itself; what it raises is everybody's."""
    kept: list[Answer] = []

    def keep() -> None:
        if act is not None:
            kept.append(act())

    tell_all(comm, keep if act else None)
    return kept[0] if kept else None


def tell_all(comm: mpi.Comm, act: Callable[[], Any] | None) -> Any:
    """Let the root do something; its result, SpecError or Trouble is everybody's."""
    outcome: Any = None
    if act is not None:
        try:
            outcome = act()
        except SpecError as error:
            outcome = error
        except OSError as error:
            outcome = Trouble.of(error)
        except Stopped as news:
            outcome = Trouble.stopped(news)
    outcome = comm.bcast(outcome)
    if isinstance(outcome, SpecError | Trouble):
        raise outcome
    return outcome
