"""Read-only data that every node holds once, in memory its ranks share.

The root's loader runs in a child process; what it returns is pickled with protocol 5.
The buffers of its arrays travel straight into each node's window, and only the small
skeleton around them goes to every rank.  A runner rebuilds the object from both: its
arrays are read-only views on the window.  On the root's own node all ranks copy them
out of the loader's memory; where that is forbidden they come through a socket.

For a program it becomes files in memory instead, again once per node.
"""

from __future__ import annotations

import io
import itertools
import mmap
import os
import pickle
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mpiens import memfile
from mpiens.child import Channel, Ended, await_child, fork
from mpiens.deadline import Look, Stopped, look_away
from mpiens.fault import Fault, SpecError, place
from mpiens.loan import Lender, Loan
from mpiens.memfile import Part, as_files
from mpiens.model import load
from mpiens.spec import Spec

if TYPE_CHECKING:
    from mpiens.mpi import Comm

ALIGNMENT = 64  # bytes; what vector units like
CHUNK = 16 << 20
_HEADER, _FAULTS, _SEND, _LEND = range(4)  # the last two are asked of the loader
_GONE = (
    "its process ended while its data was copied; where that was for want of memory, "
    "ask for more, or let it map files (mapped = true)"
)
LEND_SECONDS = 0.002  # between two looks at what may be given back
Header = tuple[bytes, tuple[int, ...], Mapping[str, int], Loan | None]


class _Pickler(pickle.Pickler):
    """Pickles arrays that are not contiguous through a contiguous copy.

    numpy itself would put their bytes into the skeleton, hence on every rank.  Whole
    files that are mapped stay so where they may: then only their names travel.
    """

    mapped = False
    maps: dict[str, int]  # bytes of the files that stay mapped

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.memmap):
            if self.mapped and isinstance(value.base, mmap.mmap) and value.filename:
                path = str(Path(value.filename).resolve())
                self.maps[path] = Path(path).stat().st_size
                order = "C" if value.flags.c_contiguous else "F"
                place = path, value.dtype, "r", value.offset, value.shape, order
                return np.memmap, place
            value = np.ascontiguousarray(value)  # of a subclass numpy gives no buffer
            return value.view(np.ndarray).__reduce_ex__(5)
        if type(value) is np.ndarray and not value.dtype.hasobject:
            if value.dtype.kind in "mM":  # numpy gives no buffer of dates
                return np.ndarray.view, (value.view(np.int64), value.dtype)
            flags = value.flags
            if not (flags.c_contiguous or flags.f_contiguous):
                return np.ascontiguousarray(value).__reduce_ex__(5)
        return NotImplemented


@dataclass(frozen=True)
class Packed:
    """An object as a skeleton and the buffers of its arrays."""

    skeleton: bytes
    buffers: list[Part]
    maps: Mapping[str, int] = field(default_factory=dict)  # bytes of files, by path

    @property
    def nbytes(self) -> int:
        """Bytes of the window that the buffers need, with their alignment."""
        return _offsets([len(b) for b in self.buffers])[-1]


def pack(value: Any, *, mapped: bool = False) -> Packed:
    """Split an object into a skeleton and buffers; files stay ``mapped`` or do not."""
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    pickler = _Pickler(stream, protocol=5, buffer_callback=buffers.append)
    pickler.mapped, pickler.maps = mapped, {}
    pickler.dump(value)
    if mapped and not pickler.maps:
        way = 'let it return np.load(..., mmap_mode="r"), or leave mapped out'
        raise ValueError(f"maps no file, and mapped says that it does; {way}")
    return Packed(stream.getvalue(), [b.raw() for b in buffers], pickler.maps)


def load_packed(spec: Spec) -> Packed:
    """Load the shared data of a spec, and split it; SpecError where that fails."""
    data = load(spec.shared, spec.folder)
    mapped = spec.shared is not None and spec.shared.mapped
    try:
        files = spec.shared is not None and spec.model.command
        return pack_files(data) if files else pack(data, mapped=mapped)
    except ValueError as error:
        raise SpecError([Fault(place("shared", "loader"), str(error))]) from error
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        text = f"returned what cannot be pickled: {error}"
        raise SpecError([Fault(place("shared", "loader"), text)]) from error


def pack_files(value: Any) -> Packed:
    """Split what a program's loader returned: the skeleton lists names and parts."""
    files = as_files(value)
    parts = [part for own in files.values() for part in own]
    return Packed(pickle.dumps({n: len(own) for n, own in files.items()}), parts)


@dataclass(frozen=True)
class Files:
    """The shared data of a program as a rank holds it: files in memory, by name."""

    descriptors: Mapping[str, int]

    def __call__(self) -> Mapping[str, int]:
        """Return the descriptors, which all children of this process have too."""
        return self.descriptors


@dataclass(frozen=True)
class Shared:
    """The shared data as a rank holds it: call it to get the object."""

    skeleton: bytes
    sizes: tuple[int, ...]
    window: memoryview

    def __call__(self) -> Any:
        """Rebuild the object; its arrays are read-only views on the window."""
        offsets = _offsets(list(self.sizes))
        read_only = self.window.toreadonly()
        buffers = [
            read_only[offset : offset + size]
            for offset, size in zip(offsets, self.sizes, strict=False)
        ]
        return pickle.loads(self.skeleton, buffers=buffers)


def nothing() -> None:
    """Return the shared data of an ensemble that has none."""
    return


def share(comm: Comm, spec: Spec, look: Look = look_away) -> Callable[[], Any]:
    """Load the shared data of a spec once, place it once per node, and return it.

    Collective.  Raises SpecError on all ranks where the loader fails on the root, and
    Stopped where the root was asked to stop while it waited for it.
    """
    if spec.shared is None:
        return nothing
    source = _Loader(spec) if comm.rank == 0 else None
    header = comm.bcast(source.header(look) if source else None)
    if isinstance(header, Exception):
        raise header
    skeleton, sizes, maps, loan = header
    try:
        _check_maps(comm, maps)
    except SpecError:
        if source is not None:
            source.close()
        raise
    if spec.model.command:
        return _share_files(comm, source, _file_sizes(skeleton, sizes))
    nbytes = _offsets(list(sizes))[-1]
    if nbytes == 0:
        if source is not None:
            source.close()
        return Shared(skeleton, sizes, memoryview(b""))
    node = comm.node()
    leaders = comm.leaders(node)
    window = node.allocate_shared(nbytes)
    reason = _fill_from(node, leaders, window, source, loan)
    if source is not None:
        source.close()
    _tell_all(comm, "loader", reason)
    return Shared(skeleton, sizes, window)


def _tell_all(comm: Comm, key: str, reason: str) -> None:
    """Raise SpecError on all ranks where one has a reason to.  Collective."""
    if reasons := [text for text in comm.bcast(comm.gather(reason)) if text]:
        raise SpecError([Fault(place("shared", key), reasons[0])])


def _check_maps(comm: Comm, maps: Mapping[str, int]) -> None:
    """See to it that all ranks see the files that they are to map.  Collective."""
    if not maps:
        return
    reason = ""
    for path, size in maps.items():
        try:
            if Path(path).stat().st_size == size:
                continue
            why = "has another size there"
        except OSError as error:
            why = error.strerror or str(error)
        way = "put it where all nodes see it, or leave mapped out"
        reason = (
            f"maps {path}, which {socket.gethostname()} does not see ({why}); {way}"
        )
        break
    _tell_all(comm, "mapped", reason)


def _fill_from(
    node: Comm,
    leaders: Comm | None,
    window: memoryview,
    source: _Loader | None,
    loan: Loan | None,
) -> str:
    """Fill the windows of all nodes; return what is wrong.

    All ranks of the root's node copy what the loader lends; where one of them may not,
    the root gets it sent.
    """
    near = bool(node.bcast(source is not None))
    lent = near and loan is not None and node.all_true(loan.can_be_read())
    reason = ""
    if source is not None:
        source.begin(_LEND if lent else _SEND)
    if loan is not None and lent:
        try:
            loan.read_into(window, node.rank, node.size)
        except ProcessLookupError:
            reason = _GONE
        except OSError as error:
            why = error.strerror
            reason = f"returned memory that cannot be copied ({why}); return copies"
        node.barrier()
    return _fill(window, None if lent else source, leaders) or reason


def _fill(window: memoryview, source: _Loader | None, leaders: Comm | None) -> str:
    """Bring the root's stream, or what it has, to every node; return what is wrong."""
    reason = ""
    for start in range(0, len(window), CHUNK):
        part = window[start : start + CHUNK]
        if source is not None and not reason:
            try:
                source.read_into(part)
            except Ended:
                reason = _GONE  # told to all when they wait for no more
        if leaders is not None and leaders.size > 1:
            leaders.bcast_into(part)
    return reason


def _share_files(
    comm: Comm, source: _Loader | None, sizes: Mapping[str, tuple[int, int]]
) -> Files:
    """Make files in memory, once per node; every rank holds them open."""
    node = comm.node()
    leaders = comm.leaders(node)
    own: dict[str, int] = {}
    reason = ""
    if source is not None:
        source.begin(_SEND)
    if leaders is not None:
        own = {name: memfile.create(name, room) for name, (_, room) in sizes.items()}
        with memfile.writing([*own.values()]) as views:
            for view in views:
                reason = _fill(view, source, leaders) or reason
        for name, (size, _) in sizes.items():
            memfile.seal(own[name], size)
    if source is not None:
        source.close()
    pid, theirs = node.bcast((os.getpid(), own))
    try:
        if leaders is None:
            own = {n: memfile.reopen(pid, file) for n, file in theirs.items()}
    except OSError as error:
        reason = f"its files in memory cannot be opened by all ranks: {error}"
    _tell_all(comm, "loader", reason)
    return Files(own)


def _file_sizes(skeleton: bytes, sizes: tuple[int, ...]) -> dict[str, tuple[int, int]]:
    """Return each file's bytes, and the bytes of the stream that bring them."""
    found = {}
    rest = [*sizes]
    for name, count in pickle.loads(skeleton).items():
        parts, rest = rest[:count], rest[count:]
        *before, room = _offsets(parts)
        found[name] = (before[-1] + parts[-1], room)
    return found


def hold(spec: Spec) -> Any:
    """Load the shared data of a spec into this process, as a model is handed it."""
    if spec.shared is None or not spec.model.command:
        return load(spec.shared, spec.folder)
    packed = load_packed(spec)
    sizes = _file_sizes(packed.skeleton, tuple(len(b) for b in packed.buffers))
    buffers = iter(packed.buffers)
    files = {}
    for name, count in pickle.loads(packed.skeleton).items():
        files[name] = memfile.create(name, 0)
        with os.fdopen(os.dup(files[name]), "wb") as file:
            file.writelines(itertools.islice(buffers, count))
        memfile.seal(files[name], sizes[name][0])
    return files


class _Loader:
    """The child of the root that runs the user's loader and streams its buffers.

    In a child, since what a loader leaves behind (modules, memory, faults) is then
    gone when it is done.
    """

    def __init__(self, spec: Spec) -> None:
        mine, theirs = socket.socketpair()

        def body() -> None:
            mine.close()
            os.dup2(2, 1)  # what a loader prints is no answer
            _stream(Channel(theirs), spec)

        self._pid = fork(body)
        theirs.close()
        self._channel = Channel(mine)

    def header(self, look: Look) -> Header | Exception:
        """Return (skeleton, sizes of the buffers, maps), or what is wrong."""
        try:
            await_child(self._pid, self._channel, look)
            kind, data = self._channel.receive()
        except Stopped as news:
            return news
        except Ended:
            code = self.close()
            text = f"the loader's process ended with code {code} and left nothing"
            return SpecError([Fault(place("shared", "loader"), text)])
        if kind == _FAULTS:
            self.close()
            return SpecError(pickle.loads(data))
        header: Header = pickle.loads(data)
        return header

    def begin(self, how: int) -> None:
        """Ask for the window's bytes through the channel, or to lend them."""
        with suppress(Ended):  # which is told when they are missing
            self._channel.send(how, b"")

    def read_into(self, part: memoryview) -> None:
        """Receive the next bytes of the window."""
        self._channel.receive_into(part)

    def close(self) -> int:
        """Collect the child, which has nothing left to say; return its exit code."""
        self._channel.socket.close()
        _, status = os.waitpid(self._pid, 0)
        return os.waitstatus_to_exitcode(status)


def _stream(channel: Channel, spec: Spec) -> None:
    """Load in the child, and send the header and then the window's bytes, or lend."""
    try:
        packed = load_packed(spec)
    except SpecError as error:
        channel.send(_FAULTS, pickle.dumps(error.faults))
        return
    sizes = [len(b) for b in packed.buffers]
    *places, end = _offsets(sizes)
    lender = Lender(packed.buffers, places)
    header: Header = packed.skeleton, tuple(sizes), packed.maps, lender.loan
    channel.send(_HEADER, pickle.dumps(header))
    how, _ = channel.receive()
    if how == _LEND:
        while not channel.wait(LEND_SECONDS):  # until the other end has gone
            lender.give_back()
        return
    there = 0
    for piece, start in lender.pieces():
        if start > there:
            channel.send_raw(bytes(start - there))
        channel.send_raw(piece.data)
        there = start + len(piece)
    if end > there:  # else the other end may have all it wants, and be gone
        channel.send_raw(bytes(end - there))


def _offsets(sizes: list[int]) -> list[int]:
    """Return where each buffer begins, and at last where all of them end."""
    offsets = [0]
    for size in sizes:
        offsets.append(offsets[-1] + -(-size // ALIGNMENT) * ALIGNMENT)
    return offsets
