"""The same tasks as a model of mpiens."""

from __future__ import annotations

import time
from typing import Any

import h5py
import numpy as np
import tasks


def draw(rng: np.random.Generator) -> dict[str, Any]:
    return {"x": rng.random()}


def walk(rng: np.random.Generator, *, town: int) -> dict[str, Any]:
    return {"x": rng.random(tasks.STEPS) + town}


def nap(*, seconds: float) -> dict[str, Any]:
    return {"x": tasks.nap(seconds)}


def load(path: str) -> Any:
    with h5py.File(path) as file:
        return file["x"][:]


def load_mapped(path: str) -> Any:
    return np.load(path, mmap_mode="r")


def look(shared: Any, replicate: int, *, ranks: int) -> dict[str, Any]:
    """W4: sum a slice of the shared data, and say when that was done."""
    part = len(shared) // ranks
    first = replicate % ranks * part
    total = float(shared[first : first + part].sum())
    now = time.time()
    time.sleep(1.0)  # so that no rank takes another's task, and memory can be looked at
    return {"x": now, "total": total}
