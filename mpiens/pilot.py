"""Bins of equal cost: an earlier result file says what its windows have cost."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mpiens.fault import Fault, SpecError, place
from mpiens.layout import DONE
from mpiens.reader import Reading, locate_faults
from mpiens.store import PARTIAL, Store
from mpiens.windows import Windows, equalise

_WHERE = place("windows", "pilot")


def settle_windows(reading: Reading, result: Path | None = None) -> Reading:
    """Return what was read of a spec, with the edges that a pilot tells.

    Without a pilot it is returned as it is.  What is wrong with one is a fault more;
    so is one that is the ``result`` file itself.
    """
    spec = reading.spec
    if spec is None or spec.windows is None or not spec.windows.waits or reading.faults:
        return reading
    try:
        windows = _measure(spec.windows, spec.folder, result)
    except SpecError as error:
        fault = Fault(_WHERE, f"{spec.windows.pilot!r}: {error.faults[0].text}")
    except ValueError as error:
        fault = Fault(_WHERE, f"{spec.windows.pilot!r} {error}")
    else:
        settled = dataclasses.replace(spec, windows=windows)
        return dataclasses.replace(reading, spec=settled)
    return dataclasses.replace(reading, faults=locate_faults([fault], reading.path))


def _measure(windows: Windows, folder: str, result: Path | None) -> Windows:
    path = Path(folder, windows.pilot or "")
    if result is not None:
        begun = result.with_name(result.name + PARTIAL)
        if path.resolve() in (result.resolve(), begun.resolve()):
            raise ValueError("is the result file itself; name another one by -o")
    store = Store(path)
    try:
        before = store.layout.spec.windows
        if before is None:
            raise ValueError("has no windows; name a result file of some")
        if before.parameter != windows.parameter:
            text = f"has windows of {before.parameter}, not of {windows.parameter}"
            raise ValueError(f"{text}; name another")
        cut = before.cut()
        seconds = _mean_seconds(store)
    finally:
        store.close()
    ends = windows.bin_edges[0], windows.bin_edges[-1]
    lows, highs = [w.low for w in cut], [w.high for w in cut]
    try:
        edges = equalise(
            lows, highs, seconds.tolist(), ends, len(windows.bin_edges) - 1
        )
    except ValueError as error:
        raise ValueError(f"{error}; let it cover the whole range") from error
    found = dataclasses.replace(windows, edges=edges)
    for fault in found.faults():
        raise ValueError(f"gives edges of which one says: {fault.text}")
    return found


def _mean_seconds(store: Store) -> NDArray[np.float64]:
    """Return what a replicate of every window took, all its scenarios together.

    Raises ValueError where one has no replicate that is done.
    """
    spec = store.layout.spec
    shape = store.layout.by_task
    done = store.status.reshape(shape) == DONE
    for index in np.flatnonzero(~done.any(axis=1))[:1].tolist():
        name = spec.scenarios[index].name
        raise ValueError(f"has no replicate of {name!r} that is done; run it on")
    seconds = np.where(done, store.read("/tasks/seconds"), 0.0)
    means = seconds.sum(axis=1) / done.sum(axis=1)
    total = np.zeros(len(spec.curves[0].scenarios))
    for curve in spec.curves:
        total += means[list(curve.scenarios)]
    return total
