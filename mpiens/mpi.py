"""The one file that imports mpi4py: everyone else is handed a :class:`Comm`.

Nothing here waits in a blocking MPI call: a rank that has nothing to do sleeps, and
wakes up often enough to answer.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import mpi4py

mpi4py.rc.initialize = False
mpi4py.rc.finalize = False

from mpi4py import MPI  # noqa: E402  (the two lines above have to come first)

from mpiens.bell import Bell  # noqa: E402
from mpiens.farewell import see_off, tied  # noqa: E402

START_PATIENCE = 20  # seconds for a tolerant MPI_Init, and a tenth more for every rank
OTHER_PATIENCE = 300  # the same where a launcher should tell of lost ranks
PATIENCE = 45  # seconds after which a call that does not return ends its process
FAREWELL = 15  # seconds that tolerant ranks wait for each other at the very end
EAGER_BYTES = 4096  # of what is under way, which MPI carries without our help
CHUNK = 64 << 20  # bytes of one broadcast; MPI 3 counts in C ints
# seconds slept between two looks: at first, at most, and at most where a bell rings or
# where nothing has happened for long, of which it may be such a share
SHORT, LONG, WOKEN, SHARE = 20e-6, 10e-3, 50e-3, 0.02

Buffer = bytes | bytearray | memoryview


class LaunchError(RuntimeError):
    """The program was started in a way that cannot work."""


class Backoff:
    """Sleeps that grow from 20 us to some milliseconds while nothing happens.

    A look costs some 0.3 ms of a core that has slept, so that there may be few of them.
    """

    def __init__(self, *, woken: bool = False) -> None:
        self.seconds = SHORT
        self._slept = 0.0
        self._woken = woken

    def reset(self) -> None:
        """Something will happen soon: be quick again."""
        self.seconds = SHORT
        self._slept = 0.0

    def rest(self) -> None:
        """Something has happened; who is woken for the next thing may sleep for it."""
        self.seconds = WOKEN if self._woken else SHORT
        self._slept = 0.0

    def next(self) -> float:
        """Return how long to sleep now."""
        longest = WOKEN if self._woken else min(max(LONG, SHARE * self._slept), WOKEN)
        self.seconds = min(self.seconds * 1.5, longest)
        self._slept += self.seconds
        return self.seconds

    def sleep(self) -> None:
        """Sleep for a while."""
        time.sleep(self.next())


@dataclass(slots=True)
class Message:
    """What came from another rank."""

    source: int
    tag: int
    data: bytearray


class RankLost(RuntimeError):  # noqa: N818  (it is news, not an error)
    """Another rank has died; the survivors go on, on a communicator of their own."""


_LOST = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _noticing(method: _Method) -> _Method:
    """Let a method of Comm raise RankLost where MPI tells that a rank has failed."""

    @functools.wraps(method)
    def wrapped(self: Comm, *args: Any, **kwargs: Any) -> Any:
        if self.tolerant:
            signal.alarm(PATIENCE)
        try:
            return method(self, *args, **kwargs)
        except MPI.Exception as error:
            if error.Get_error_class() in _LOST:
                raise RankLost from error
            raise
        finally:
            if self.tolerant:
                signal.alarm(0)

    return cast(_Method, wrapped)


@dataclass
class Comm:
    """A communicator whose collective calls wait politely.

    A ``tolerant`` one outlives its ranks: where one has died, every call raises
    RankLost on every survivor sooner or later, and :meth:`recover` is what to do.
    """

    raw: MPI.Intracomm
    tolerant: bool = False
    on_wait: Callable[[], None] | None = None  # called now and then while waiting
    whole: bool = True  # no rank has been lost so far
    bell: Bell = field(default_factory=Bell)
    woken: bool = False  # whoever may have something to say can ring
    _sends: list[tuple[MPI.Request, int, Buffer]] = field(default_factory=list)
    _looks: int = 0

    @property
    def rank(self) -> int:
        """This process's number."""
        return self.raw.Get_rank()

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self.raw.Get_size()

    @_noticing
    def post(self, target: int, tag: int, data: Buffer) -> None:
        """Send without waiting; the data has arrived when it leaves ``unsent``."""
        request = self.raw.Issend([data, MPI.BYTE], dest=target, tag=tag)
        self._sends.append((request, tag, data))
        self.bell.ring(target)

    @_noticing
    def whisper(self, target: int, tag: int) -> None:
        """Send an empty message that need not be heard."""
        self.raw.Isend([b"", MPI.BYTE], dest=target, tag=tag).Free()

    @_noticing
    def unsent(self) -> int:
        """Return how many bytes of posted messages have not been received yet."""
        self._sends = [send for send in self._sends if not send[0].Test()]
        return sum(len(data) for _, _, data in self._sends)

    def is_laden(self) -> bool:
        """Whether so much is under way that both sides should be awake."""
        return self.unsent() > EAGER_BYTES

    def undelivered(self, tag: int) -> list[Buffer]:
        """Return what was posted under a tag and may not have been received."""
        return [data for _, own, data in self._sends if own == tag]

    def backoff(self) -> Backoff:
        """Return how long to sleep between two looks for messages."""
        return Backoff(woken=self.woken)

    @_noticing
    def poll(self) -> Message | None:
        """Return the next message from any rank, or None where there is none."""
        return self._receive(MPI.ANY_TAG)

    @_noticing
    def look(self) -> None:
        """Call now and then during long work without messages; raises RankLost."""
        self.raw.Iprobe()  # lets MPI hear of what has happened
        self._look_around(always=True)

    @_noticing
    def flush(self) -> None:
        """Wait until every posted message has been received."""
        backoff = Backoff()
        while self.unsent():
            self._look_around()
            if self.is_laden():
                backoff.reset()
            backoff.sleep()

    @_noticing
    def barrier(self, limit: float = float("inf")) -> None:
        """Wait for all, or until so many seconds have passed."""
        self._wait(self.raw.Ibarrier(), limit)

    @_noticing
    def bcast(self, value: Any = None) -> Any:
        """Give the root's object to all."""
        data = pickle.dumps(value, protocol=5) if self.rank == 0 else b""
        size = bytearray(len(data).to_bytes(8, "little"))
        self.bcast_into(memoryview(size))
        if self.rank == 0:
            self.bcast_into(memoryview(bytearray(data)))
            return value
        received = bytearray(int.from_bytes(size, "little"))
        self.bcast_into(memoryview(received))
        return pickle.loads(received)

    @_noticing
    def bcast_into(self, buffer: memoryview) -> None:
        """Give the root's bytes to all, in chunks, straight into the buffer."""
        for start in range(0, len(buffer), CHUNK):
            part = buffer[start : start + CHUNK]
            self._wait(self.raw.Ibcast([part, MPI.BYTE], root=0))

    @_noticing
    def all_true(self, flag: bool) -> bool:
        """Return whether the flag is true on every rank."""
        mine, both = bytearray([flag]), bytearray(1)
        send, receive = [mine, MPI.BYTE], [both, MPI.BYTE]
        self._wait(self.raw.Iallreduce(send, receive, op=MPI.BAND))
        return bool(both[0])

    @_noticing
    def gather(self, value: Any) -> list[Any] | None:
        """Return the objects of all ranks on the root, None elsewhere."""
        if self.rank != 0:
            self.post(0, TAG_GATHER, pickle.dumps(value, protocol=5))
            self.flush()
            return None
        values = [value]
        backoff = Backoff()
        while len(values) < self.size:  # in turn: a quick rank may have sent its next
            if (message := self._receive(TAG_GATHER, len(values))) is None:
                backoff.sleep()
            else:
                backoff.reset()
                values.append(pickle.loads(message.data))
        return values

    @_noticing
    def node(self) -> Comm:
        """Return the communicator of the ranks that share this node's memory."""
        split = self.raw.Split_type(MPI.COMM_TYPE_SHARED, key=self.rank)
        return Comm(MPI.Intracomm(split), self.tolerant, self.on_wait)

    def meet(self, node: Comm) -> list[int]:
        """Let the ranks of this node wake each other; return their pids.  Collective.

        Where all that may have something to say can ring, one looks less often.
        """
        mine = self.rank, os.getpid(), self.bell.hang()
        found = node.bcast(node.gather(mine))
        self.bell.know({rank: address for rank, _, address in found})
        talkers = range(1, self.size) if self.rank == 0 else [0]
        self.woken = all(map(self.bell.ring, talkers))
        return [pid for _, pid, _ in found]

    @_noticing
    def leaders(self, node: Comm) -> Comm | None:
        """Return the communicator of the first rank of every node; None elsewhere."""
        color = 0 if node.rank == 0 else MPI.UNDEFINED
        split = self.raw.Split(color, key=self.rank)
        if split == MPI.COMM_NULL:
            return None
        return Comm(MPI.Intracomm(split), self.tolerant, self.on_wait)

    @_noticing
    def allocate_shared(self, nbytes: int) -> memoryview:
        """Return memory of this node that all its ranks see; the first one owns it."""
        mine = nbytes if self.rank == 0 else 0
        window = MPI.Win.Allocate_shared(mine, 1, comm=self.raw)
        memory: Any = window.Shared_query(0)[0]
        return memoryview(memory).cast("B")

    def recover(self) -> None:
        """Become the communicator of the survivors, in the same order.

        The old one is revoked, so that every survivor comes here, and only the old one
        is ever shrunk or agreed upon: a revoke of the new one could reach a rank that
        is still building it.
        """
        signal.alarm(PATIENCE)
        self.raw.Revoke()
        while True:
            signal.alarm(PATIENCE)
            try:
                survivors = self.raw.Shrink()
                built = 1
            except MPI.Exception:
                built = 0
            try:
                self.raw.Ack_failed()
                agreed = self.raw.Agree(built)
            except MPI.Exception:  # one more has died: again
                continue
            if agreed:
                signal.alarm(0)
                self.raw = MPI.Intracomm(survivors)
                self.bell.know({})  # ranks have other numbers now
                self.woken = False
                self.whole = False
                self._sends = []
                return

    def _receive(self, tag: int, source: int = MPI.ANY_SOURCE) -> Message | None:
        status = MPI.Status()
        if not self.raw.Iprobe(source, tag, status):
            self._look_around()
            return None
        data = bytearray(status.Get_count(MPI.BYTE))
        message = Message(status.Get_source(), status.Get_tag(), data)
        request = self.raw.Irecv([data, MPI.BYTE], message.source, message.tag)
        while not request.Test():  # its sender is at it, unless it was stopped
            self._look_around()
        return message

    def _wait(self, request: MPI.Request, limit: float = float("inf")) -> None:
        backoff = Backoff()
        end = time.monotonic() + limit
        while not request.Test() and time.monotonic() < end:
            self._look_around()
            backoff.sleep()

    def _look_around(self, *, always: bool = False) -> None:
        """Ask now and then who has failed: a revocation is not always heard."""
        if self.on_wait is not None:
            self.on_wait()
        if not self.tolerant:
            return
        signal.alarm(PATIENCE)  # waiting is not being stuck
        self._looks += 1
        if (always or self._looks % 20 == 0) and self.raw.Get_failed().size:
            raise RankLost


TAG_GATHER = 1


def start() -> Comm:
    """Start MPI and return the world; LaunchError where the launcher is a wrong one."""
    sys.excepthook = _abort
    _initialise()
    world = Comm(MPI.COMM_WORLD.Dup(), _is_tolerant())
    signal.alarm(0)
    if world.size == 1 and (wanted := _launched_size()) > 1:
        raise LaunchError(
            f"the launcher started {wanted} processes, but each is alone for "
            f"{library()}; use the mpiexec of this MPI "
            f"({find_mpiexec() or 'none found'}) or mpiens -n N"
        )
    return world


def adopt(raw: MPI.Intracomm | None) -> Comm:
    """Return a copy of a caller's communicator, or of that of this process only."""
    if not MPI.Is_initialized():
        _initialise()
        signal.alarm(0)
    return Comm((MPI.COMM_SELF if raw is None else raw).Dup())


def _initialise() -> None:
    """Start MPI where nobody has; the alarm that is set is the caller's to unset."""
    if not MPI.Is_initialized():
        # Open MPI 5 complains of this component, which shared windows never use
        os.environ.setdefault("OMPI_MCA_osc", "^ucx")
        # under srun with PMI-2 only Slurm sets PMI_JOBID, and it cuts lines after 1024
        # bytes: the addresses of UCX, which MPICH would take first, may be longer
        if "PMI_JOBID" in os.environ and _has_ucx_and_ofi():
            os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")
        # a rank that dies or stops in here would hang all the others
        patience = START_PATIENCE if _wants_tolerance() else OTHER_PATIENCE
        signal.alarm(patience + _launched_size() // 10)
        with tied(_launched_size()):
            MPI.Init_thread(MPI.THREAD_FUNNELED)


def alone() -> Comm:
    """Return the communicator of this process only."""
    return Comm(MPI.COMM_SELF)


def finish(comm: Comm, code: int) -> None:
    """End MPI in good order; under fault tolerance this does not return."""
    if comm.tolerant:
        if comm.rank == 0:
            see_off()
        # of a rank that left just now not all hear, so that nobody waits for long
        with contextlib.suppress(RankLost):
            comm.barrier(FAREWELL)
            if comm.whole:
                signal.alarm(PATIENCE)
                with tied(comm.size):
                    MPI.Finalize()
                leave(code)
        # MPI_Finalize may hang for ever once a rank has failed, and without it the
        # launcher may
        leave(code)
    comm.barrier()  # MPI_Finalize would wait as well, but not politely
    # srun's --kill-on-bad-exit sends it to all as soon as one has left with another
    # code than 0, and the job's code should be that one
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(PATIENCE + comm.size // 10)  # of a rank that is stopped nobody hears
    with tied(comm.size):
        MPI.Finalize()
    signal.alarm(0)


def leave(code: int) -> NoReturn:
    """End this process at once; other ranks, if any, notice."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _is_tolerant() -> bool:
    """Whether this MPI lets survivors go on: mpi4py emulates it where it does not."""
    by_srun = "SLURM_STEP_ID" in os.environ and "PRTE_LAUNCHED" not in os.environ
    name, version = MPI.get_vendor()
    able = name == "Open MPI" and version >= (5, 0, 0)
    return able and _wants_tolerance() and not by_srun


def _wants_tolerance() -> bool:
    switch = os.environ.get("OMPI_MCA_mpi_ft_enable", "")  # noqa: SIM112
    return switch.lower() in ("1", "true")


def _has_ucx_and_ofi() -> bool:
    device = re.search(r"MPICH Device:\s*(.*)", MPI.Get_library_version())
    return device is not None and all(way in device[1] for way in ("ucx", "ofi"))


def library() -> str:
    """Return name and version of the MPI library in one line."""
    text = MPI.Get_library_version().replace("\0", "")
    first = text.splitlines()[0].split(",")[0]
    return " ".join(first.replace("Version:", "").split())


def find_mpiexec() -> str | None:
    """Return the mpiexec of the MPI that mpi4py has loaded, or None."""
    wanted = "Open MPI" if "Open MPI" in library() else "HYDRA"
    places = [Path(sys.executable).parent, *map(Path, os.get_exec_path())]
    for folder in places:
        for name in ("mpiexec", "mpiexec.openmpi", "mpiexec.mpich"):
            path = shutil.which(name, path=str(folder))
            if path is not None and wanted in _ask_version(path):
                return path
    return None


def launch_command(ranks: int) -> tuple[list[str], dict[str, str]]:
    """Return what starts so many ranks on this machine: (command, environment)."""
    mpiexec = find_mpiexec()
    if mpiexec is None:
        raise LaunchError(
            f"no mpiexec of {library()} is beside {sys.executable} or on the PATH; "
            "load the module of your MPI, or install the extra mpiens[mpich]"
        )
    command = [mpiexec, "-n", str(ranks)]
    environment = dict(os.environ)
    if "Open MPI" in library():
        command += ["--oversubscribe", "--bind-to", "none"]
        # one machine needs no fabric, and looking for one takes a second
        environment.setdefault("OMPI_MCA_btl", "^ofi")
        environment.setdefault("OMPI_MCA_osc", "^ucx")
        if os.geteuid() == 0:
            command.append("--allow-run-as-root")
        if MPI.get_vendor()[1] >= (5, 0, 0):
            command += ["--with-ft", "ulfm"]
    return command, environment


def _ask_version(mpiexec: str) -> str:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        asked = [mpiexec, "--version"]
        answer = subprocess.run(
            asked, capture_output=True, text=True, timeout=20, check=False
        )
        return answer.stdout.replace("(OpenRTE)", "(Open MPI)")
    return ""


def _launched_size() -> int:
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
    sizes = (os.environ.get(name, "") for name in names)
    return max((int(size) for size in sizes if size.isdigit()), default=1)


def _abort(kind: type[BaseException], error: BaseException, trace: Any) -> NoReturn:
    """End all ranks where mpiens itself has a fault, after saying which."""
    traceback.print_exception(kind, error, trace)
    sys.stderr.flush()
    if MPI.Is_initialized() and not MPI.Is_finalized() and not _is_tolerant():
        MPI.COMM_WORLD.Abort(1)
    os._exit(1)
