"""W4 and W6, in one process: reading, bands, and writing of large arrays.

python arrays.py bands|write|read FOLDER [--size small]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import h5py
import numpy as np
import tasks

from mpiens import summary
from mpiens.foundation import lay_down
from mpiens.layout import Layout
from mpiens.outcome import RECORD, Batch
from mpiens.reader import decode
from mpiens.row import settle
from mpiens.spec import Bands
from mpiens.store import Store


def make(scenarios: int, replicates: int, steps: int) -> np.ndarray:
    rng = np.random.default_rng(tasks.SEED)
    return rng.random((scenarios, replicates, steps))


def time_bands(data: np.ndarray) -> dict[str, float]:
    """W6: bands as the program makes them, a scenario at a time, against numpy's."""
    done = np.ones((1, data.shape[1]), dtype=bool)
    wanted = Bands(tasks.LEVELS)
    begun = time.perf_counter()
    ours = [summary.describe_rows(own[None], done, wanted) for own in data]
    between = time.perf_counter()
    theirs = [np.quantile(own, tasks.LEVELS, axis=0) for own in data]
    ended = time.perf_counter()
    if not all((a["bands"][0] == b).all() for a, b in zip(ours, theirs, strict=True)):
        raise SystemExit("the bands are not numpy's")
    sort = [np.moveaxis(own, 0, -1).copy() for own in data]
    sorting = time.perf_counter()
    for own in sort:
        own.sort(axis=-1)
    sorted_at = time.perf_counter()
    for own in data:
        own.mean(axis=0), own.std(axis=0, ddof=1)
    described = time.perf_counter()
    return {
        "seconds": between - begun,
        "numpy": ended - between,
        "numpy_all": ended - between + described - sorted_at,
        "sort": sorted_at - sorting,
    }


def time_write(data: np.ndarray, folder: Path) -> dict[str, float]:
    """W6: rows written as the root writes them, and synced, against tofile and sync."""
    scenarios, replicates, steps = data.shape
    text = f'[ensemble]\nmodel = "m.py:f"\nreplicates = {replicates}\nseed = 1\n'
    text += f'[sweep]\nk = {[*range(scenarios)]}\n[outputs.x]\ndims = ["step"]\n'
    spec = decode(text, f"{folder}/w.toml").require()
    row = settle(spec, {"x": ((steps,), "<f8")})
    layout = Layout(spec, {"k": tuple(range(scenarios))}, row)
    new, contents = lay_down(folder / "w.h5", layout, {"folder": str(folder)})
    store = Store(new, contents, writable=True)
    rows = data.reshape(-1, steps).view(row.dtype)[:, 0]
    size = max(1, (1 << 20) // row.dtype.itemsize)
    begun = time.perf_counter()
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        records = np.zeros(len(part), RECORD)
        records["task"] = np.arange(first, first + len(part))
        store.write(Batch(records, part), np.zeros(len(part), np.int64))
    store.sync()
    between = time.perf_counter()
    with (folder / "w.bin").open("wb") as file:
        data.tofile(file)
        file.flush()
        os.fsync(file.fileno())
    ended = time.perf_counter()
    if not (store.read("/series/x") == data).all():
        raise SystemExit("what was written cannot be read")
    store.close()
    return {"seconds": between - begun, "tofile": ended - between}


def time_read(folder: Path) -> dict[str, float]:
    """W4: one sequential read of the shared data."""
    begun = time.perf_counter()
    with h5py.File(folder / "shared.h5") as file:
        total = float(file["x"][:].sum())
    return {"seconds": time.perf_counter() - begun, "total": total}


def main() -> None:
    """Measure one thing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["bands", "write", "read"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", type=int, nargs=3, default=[20, 1000, 2000])
    options = parser.parse_args()
    if options.what == "read":
        found = time_read(options.folder)
    elif options.what == "bands":
        found = time_bands(make(*options.shape))
    else:
        found = time_write(make(*options.shape), options.folder)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
