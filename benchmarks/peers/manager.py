"""How long the root takes for one range: the real manager, root and file, no ranks.

    python manager.py FOLDER [--ranks N] [--ranges R]

A stand-in for the communicator answers every range at once with its rows, as if that
many ranks had run it, so that what is timed is the root's work alone, but for MPI's own
part, which is measured between two real ranks where it is started by mpiexec -n 2.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from mpiens import mpi
from mpiens.bell import Bell
from mpiens.deadline import Deadline
from mpiens.heartbeat import Heartbeat
from mpiens.outcome import BATCH, RECORD, Batch
from mpiens.request import Request
from mpiens.root import Root
from mpiens.row import settle
from mpiens.workqueue import (
    TAG_BYE,
    TAG_DEAL,
    TAG_NEWS,
    TAG_STOP,
    Manager,
    Watch,
    unpack_range,
)

BURST = 64  # messages at once
MODEL = "def simulate():\n    return {'x': 1.0}\n"


class Echo:
    """A communicator whose other ranks have run whatever they are dealt."""

    def __init__(self, ranks: int, row: Any) -> None:
        self.size, self.rank = ranks, 0
        self.bell = Bell()
        self.on_wait: Any = None
        self._row = row
        self._news: deque[mpi.Message] = deque()

    def post(self, target: int, tag: int, data: Any) -> None:
        if tag == TAG_DEAL:
            tasks, _ = unpack_range(data)
            records = np.zeros(len(tasks), RECORD)
            records["task"], records["seconds"], records["attempts"] = tasks, 1.0, 1
            batch = Batch(records, np.ones(len(tasks), self._row.dtype))
            news = bytearray(batch.to_bytes() + bytes([BATCH]))
            self._news.append(mpi.Message(target, TAG_NEWS, news))
        elif tag == TAG_STOP:
            self._news.append(mpi.Message(target, TAG_BYE, bytearray()))

    def poll(self) -> mpi.Message | None:
        return self._news.popleft() if self._news else None

    def whisper(self, target: int, tag: int) -> None: ...

    def look(self) -> None: ...

    def flush(self) -> None: ...

    def unsent(self) -> int:
        return 0

    def is_laden(self) -> bool:
        return False


class Nobody:
    """The root's own worker, which runs nothing."""

    idle = True

    def __init__(self) -> None:
        self.dealt: list[Any] = []

    def deal(self, tasks: Any, inputs: Any) -> None:
        self.dealt.append(tasks)

    def step(self) -> list[Any]:
        """Answer as the others do."""
        answers = []
        for tasks in self.dealt:
            records = np.zeros(len(tasks), RECORD)
            records["task"], records["seconds"], records["attempts"] = tasks, 1.0, 1
            rows = np.ones(len(tasks), self.row.dtype)
            answers.append((BATCH, bytearray(Batch(records, rows).to_bytes())))
        self.dealt = []
        return answers

    def settle(self, row: Any) -> None:
        self.row = row

    def drop(self) -> None: ...

    def wait(self, seconds: float, bell: Bell) -> bool:
        return False


def serve(folder: Path, ranks: int, ranges: int) -> float:
    """Return the seconds that the root has for one range of one task."""
    (folder / "m.py").write_text(MODEL)
    spec = folder / "m.toml"
    head = f'[ensemble]\nmodel = "m.py:simulate"\nreplicates = {ranges}\nseed = 1\n'
    spec.write_text(head + "[outputs.x]\n")
    root = Root(Request(spec, folder / "m.h5", fresh=True), lambda: None)
    read = root.prepare(ranks, again=False)
    root.begin()
    row = settle(read, {"x": ((), "<f8")})
    root.settle({"x": ((), "<f8")})
    root.lay_down(lambda: None)
    comm: Any = Echo(ranks, row)
    watch = Watch(Deadline(), Heartbeat(60.0))
    claims: list[list[int]] = [[] for _ in range(ranks)]
    worker: Any = Nobody()
    manager = Manager(comm, worker, root, watch, root.pending, row, claims)
    made = time.perf_counter()
    for tasks in np.array_split(np.arange(ranges), ranges):
        comm.post(1, TAG_DEAL, len(tasks).to_bytes(8, "little") + tasks.tobytes())
    spent = time.perf_counter() - made  # what the stand-in itself takes
    comm._news.clear()
    manager.run(mpi.Backoff(), [])
    root.release()
    return (manager.seconds - spent) / ranges


def exchange(count: int) -> float:
    """Return the seconds of a core that the root has for a message each way.

    As where it never sleeps: messages lie there, and others take what it sends.
    """
    comm = mpi.start()
    comm.meet(comm.node())
    spent = 0.0
    for _ in range(count):
        if comm.rank == 1:
            for _ in range(BURST):
                comm.post(0, TAG_NEWS, bytes(64))
        time.sleep(0.005)  # until all is there
        heard = 0
        while heard < BURST:
            begun = time.perf_counter()
            if comm.poll() is None:  # whoever has nothing to hear does not count
                time.sleep(0.0005)
            else:
                heard += 1
                spent += time.perf_counter() - begun
        begun = time.perf_counter()
        if comm.rank == 0:
            for _ in range(BURST):
                comm.post(1, TAG_DEAL, bytes(24))
        comm.unsent()
        spent += time.perf_counter() - begun
    comm.flush()
    return spent / count / BURST if comm.rank == 0 else 0.0


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--ranges", type=int, default=20000)
    options = parser.parse_args()
    if mpi.start().size == 2:
        if (spent := exchange(100)) > 0:
            print(json.dumps({"message": spent}))
        return
    print(json.dumps({"service": serve(options.folder, options.ranks, options.ranges)}))


if __name__ == "__main__":
    main()
