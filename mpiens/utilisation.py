"""What ranks did over time: which share of it went into tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens.canvas import Canvas
from mpiens.store import Store

Floats = NDArray[np.float64]

TIMES, RANKS = 240, 64  # the most that are drawn; of more, several share a place


def measure_ranks(store: Store) -> tuple[Floats, float]:
    """Return the busy share (rank, time) of the last run, and how long it was.

    A task counts where it ran: from its seconds before its end until then.  Without
    any task that is known there are no times.
    """
    ended = store.read("/tasks/ended").reshape(-1)
    seconds = store.read("/tasks/seconds").reshape(-1)
    ranks = store.read("/tasks/rank").reshape(-1)
    known = np.isfinite(ended) & np.isfinite(seconds) & (ranks >= 0)
    ended, seconds, ranks = ended[known], seconds[known], ranks[known]
    if not len(ended):
        return np.zeros((0, 0)), 0.0
    begun = ended - seconds
    first, last = float(begun.min()), float(ended.max())
    length = max(last - first, 1e-9)
    times, several = TIMES, int(ranks.max()) + 1
    busy = np.zeros((several, times))
    low, high = (times * (edge - first) / length for edge in (begun, ended))
    _spread(busy, ranks, low, high)
    return np.minimum(busy, 1.0), length


def _spread(busy: Floats, ranks: NDArray[Any], low: Floats, high: Floats) -> None:
    """Add to each place of each rank how much of it lies between low and high.

    By the integral of what begins and ends there, so that long tasks cost no more.
    """
    several, times = busy.shape
    ramp = np.zeros((several, times + 2))  # change of the busy share at a place
    for edge, sign in ((low, 1.0), (high, -1.0)):
        place = np.clip(np.floor(edge).astype(np.int64), 0, times)
        within = np.clip(edge - place, 0.0, 1.0)
        np.add.at(ramp, (ranks, place), sign * (1 - within))
        np.add.at(ramp, (ranks, place + 1), sign * within)
    busy += np.cumsum(ramp, axis=1)[:, :times]


def draw_ranks(canvas: Canvas, busy: Floats, length: float) -> Any:
    """Draw the busy share of every rank (rank, time) over so many seconds."""
    step = -(-len(busy) // RANKS)
    starts = range(0, len(busy), step)
    drawn = np.stack([busy[start : start + step].mean(axis=0) for start in starts])
    figure, axes = canvas.lay_out(1, 1, height=0.8 + 0.06 * len(drawn))
    axis = axes[0, 0]
    extent = (0, length, len(busy) - 0.5, -0.5)
    image = axis.imshow(
        drawn,
        aspect="auto",
        cmap="cividis",
        vmin=0,
        vmax=1,
        extent=extent,
        interpolation="nearest",
    )
    axis.set_xlabel("seconds since the first task")
    axis.set_ylabel("rank")
    axis.yaxis.get_major_locator().set_params(integer=True)
    figure.colorbar(image, ax=axis, label="busy")
    return figure
