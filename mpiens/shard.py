"""A share of an ensemble's tasks, for a job of its own; the shards are merged later."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_NAME = re.compile(r"\.(\d+)-of-(\d+)\.h5(\.partial)?$")


@dataclass(frozen=True)
class Shard:
    """The tasks that one of ``count`` jobs runs: every ``count``-th, from ``index``.

    Round-robin over the tasks' numbers, so that all shards have about as much to do:
    the same number of tasks, and of each scenario's replicates, give or take one.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ValueError(
                f"{self} is no shard: write I/N with I from 0 to N-1, such as 0/4"
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that ``I/N`` names; ValueError where it is none."""
        if not (found := re.fullmatch(r"(\d+)/(\d+)", text)):
            raise ValueError(f"{text!r} is no shard: write I/N, such as 0/4")
        return cls(int(found[1]), int(found[2]))

    @classmethod
    def of_name(cls, file: Path) -> Shard | None:
        """Return the shard whose result has such a name, or None."""
        found = _NAME.search(file.name)
        if found is None or int(found[1]) >= int(found[2]):
            return None
        return cls(int(found[1]), int(found[2]))

    def owns(self, tasks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of these tasks are its own."""
        return np.asarray(tasks % self.count == self.index)


def default_file(spec: Path, shard: Shard | None) -> Path:
    """Return where the result of a spec, or of a shard of it, lies without ``-o``."""
    part = f".{shard.index}-of-{shard.count}" if shard else ""
    return Path(f"{spec.stem}{part}.h5")
