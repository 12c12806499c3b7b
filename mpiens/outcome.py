"""What becomes of tasks: batches of rows, failures, and first descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens.row import Described, Row, as_bytes

RECORD = np.dtype(
    [("task", "<i8"), ("checksum", "<u8"), ("seconds", "<f8"), ("attempts", "<u2")]
)
"""What is known of one finished task, beside its row."""
Tasks = NDArray[np.int64]


Inputs = Mapping[int, bytes]
"""What tasks are given beside parameters and stream, by the index of their scenario."""

Ranks = NDArray[np.int64]
SMALL = 1 << 15  # bytes of a batch that is worth a copy to be written with others

PRINTED = "The model's last lines of output:"
# kinds of frames between a supervisor and its runner: the first two are orders, the
# others are news; the last is that of a supervisor itself, which gives tasks back
ROW, TASKS, BATCH, FAILURE, DESCRIBE, STEP, BACK = range(7)


def find_ends(seconds: NDArray[np.float64], ranks: Ranks, now: float) -> Any:
    """Return when each task ended, had its rank worked without a break until now.

    Of each rank they are in the order in which they were run.
    """
    order = np.argsort(ranks, kind="stable")
    sums, own = np.cumsum(seconds[order]), ranks[order]
    after = np.searchsorted(own, own, side="right") - 1  # the last one of its rank
    ends = np.empty(len(sums))
    ends[order] = now - (sums[after] - sums)
    return ends


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that failed: how often it was tried, and why."""

    task: int
    attempts: int
    seconds: float
    text: str
    stray: bool = False  # by a signal that somebody else has sent


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a scenario's step has made; only the model's side can read the data."""

    task: int
    attempts: int
    seconds: float
    data: bytes


@dataclass(frozen=True, slots=True)
class Description:
    """A first task that succeeded before any layout was known."""

    task: int
    described: Described
    nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Batch:
    """Finished tasks: what is known of each (RECORD), and their rows."""

    records: NDArray[np.void]
    rows: NDArray[np.void]

    def to_bytes(self) -> bytes:
        """Return the batch as one message: a count, the records, the rows."""
        count = len(self.records).to_bytes(8, "little")
        parts = self.records, self.rows
        return b"".join([count, *(as_bytes(part) for part in parts if part.nbytes)])

    @staticmethod
    def tasks_of(data: bytes | bytearray | memoryview) -> list[int]:
        """Return the tasks of a message, whatever the layout of their rows."""
        count = int.from_bytes(data[:8], "little")
        tasks: list[int] = np.frombuffer(data, RECORD, count, offset=8)["task"].tolist()
        return tasks

    @classmethod
    def from_bytes(cls, data: bytes | bytearray | memoryview, row: Row) -> Batch:
        """Return the batch that a message holds, without copying it."""
        count = int.from_bytes(data[:8], "little")
        records = np.frombuffer(data, RECORD, count, offset=8)
        offset = 8 + records.nbytes
        if row.dtype.itemsize == 0:
            return cls(records, np.empty(count, row.dtype))
        return cls(records, np.frombuffer(data, row.dtype, count, offset=offset))


def join(batches: list[tuple[Batch, int]]) -> Iterator[tuple[Batch, Ranks]]:
    """Yield what several ranks have sent, small batches as one, in the order of tasks.

    Beside each stands the rank of every task.
    """
    is_small = [batch.rows.nbytes <= SMALL for batch, _ in batches]
    small = [one for one, own in zip(batches, is_small, strict=True) if own]
    alone = sum(is_small) < 2
    for (batch, rank), own in zip(batches, is_small, strict=True):
        if alone or not own:
            yield batch, np.full(len(batch.records), rank)
    if not alone:
        records = np.concatenate([batch.records for batch, _ in small])
        rows = np.concatenate([batch.rows for batch, _ in small])
        counts = [len(batch.records) for batch, _ in small]
        ranks = np.repeat([rank for _, rank in small], counts)
        order = np.argsort(records["task"], kind="stable")
        yield Batch(records[order], rows[order]), ranks[order]
