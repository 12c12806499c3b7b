"""Which curves of a scenario are central as wholes, and what they cover.

Beside pointwise bands, which follow no curve: the functional boxplot of Sun and Genton
(by band depth), and the curve box of Juul et al. (by the groups that contain a curve).
Each rank takes whole scenarios in turn, and reads them a slab of steps at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mpiens import depth, summary
from mpiens.deadline import Look, look_away
from mpiens.layout import ALONG, CENTRAL, DONE, Layout
from mpiens.row import Output
from mpiens.summary import Floats, Hyperslabs, Pieces, Status, read_slab, take_turns

if TYPE_CHECKING:
    from mpiens.mpi import Comm

LEAST = 3  # curves, below which none is more central than another
HALF = 0.5  # of all curves: what fences are made of

Samples = NDArray[np.float64]  # (steps, curves)


def make_central(
    team: Comm, path: Path, layout: Layout, status: Status, look: Look = look_away
) -> None:
    """Rank the curves of every scenario, and write what the central ones cover.

    Collective.  Raises Stopped on all ranks where ``look`` does on one.
    """
    if not [*layout.curved()]:
        return
    done = status.reshape(layout.by_task) == DONE
    with contextlib.closing(Hyperslabs(team, path)) as file:
        for output in layout.curved():
            scenarios = [*range(layout.by_task[0])]
            for scenario in take_turns(team, scenarios, look):
                own = np.flatnonzero(() if scenario is None else done[scenario])
                curves = None
                if scenario is not None:
                    curves = Curves(file, layout, output, scenario, own)
                _write(file, layout, output, curves)


@dataclass(frozen=True)
class Curves:
    """The curves of one scenario that are done, read a slab of steps at a time."""

    file: Hyperslabs
    layout: Layout
    output: Output
    scenario: int
    own: NDArray[np.int64]

    def read(self, part: slice) -> Samples:
        """Return the curves in a slab of steps: (steps, curves)."""
        here = slice(self.scenario, self.scenario + 1)
        [rows] = read_slab(self.file, self.layout, self.output, (here, part))
        return np.ascontiguousarray(rows[self.own].T, dtype=float)

    def rank(self, parts: list[slice]) -> Ranking:
        """Go through all steps once, and tell how central each curve is."""
        count = len(self.own)
        pairs = np.zeros(count, dtype=np.int64)
        groups = depth.draw_groups(count, self.layout.spec.ensemble.seed)
        inside = np.ones((len(groups), count), dtype=bool)
        peak, time = np.full(count, -np.inf), np.full(count, np.nan)
        steps = 0
        for part in parts:
            samples = self.read(part)
            known = ~np.isnan(samples).any(axis=1)
            samples, where = samples[known], np.arange(part.start, part.stop)[known]
            if not len(samples):
                continue
            steps += len(samples)
            pairs += depth.count_pairs(samples)
            inside &= depth.contain(samples, groups)
            higher = samples.max(axis=0) > peak
            time[higher] = where[samples.argmax(axis=0)][higher]
            peak[higher] = samples.max(axis=0)[higher]
        scores = inside.sum(axis=0)
        shares = self.layout.spec.bands.central
        return Ranking(
            depth=depth.find_depth(pairs, steps),
            score=scores / depth.GROUPS,
            half=depth.find_central(pairs, HALF),
            deepest=[depth.find_central(pairs, share) for share in shares],
            boxed=[depth.find_central(scores, share) for share in shares],
            peak=np.where(steps, peak, np.nan),
            time=time,
        )


@dataclass(frozen=True)
class Ranking:
    """How central each curve is, and where it peaks."""

    depth: Floats
    score: Floats
    half: NDArray[np.int64]  # the deeper one
    deepest: list[NDArray[np.int64]]  # for each share that is asked for
    boxed: list[NDArray[np.int64]]
    peak: Floats
    time: Floats


def _write(
    file: Hyperslabs, layout: Layout, output: Output, curves: Curves | None
) -> None:
    """Write what is told of one scenario.  Collective; some ranks may have none."""
    path, steps = f"/curvewise/{output.name}", output.shape[0]
    size = max(1, summary.BUDGET // (8 * layout.by_task[1]))
    parts = [slice(a, min(a + size, steps)) for a in range(0, steps, size)]
    enough = curves is not None and len(curves.own) >= LEAST
    ranking: Ranking | None = file.agree(
        partial(curves.rank, parts) if curves is not None and enough else lambda: None
    )
    outlying = np.zeros(layout.by_task[1], dtype=bool)
    for part in parts:

        def cover(part: slice = part) -> Pieces:
            if curves is None or ranking is None:
                return {}
            told = _cover(curves, ranking, part, outlying)
            here = slice(curves.scenario, curves.scenario + 1)
            return {
                f"{path}/{name}": ((here, *_whole(data, 1), part), data[None])
                for name, data in told.items()
            }

        file.write([f"{path}/{name}" for name in ALONG], cover)

    def tell() -> Pieces:
        if curves is None or ranking is None:
            return {}
        here = slice(curves.scenario, curves.scenario + 1)
        told = _tell(curves.own, ranking, outlying)
        return {
            f"{path}/{name}": ((here, *_whole(data, 0)), data[None])
            for name, data in told.items()
        }

    names = [name for name in CENTRAL if name not in ALONG]
    file.write([f"{path}/{name}" for name in names], tell)


def _whole(data: NDArray[Any], but: int) -> Iterator[slice]:
    """Yield a slice of all there is, for every axis but the last ones."""
    for size in data.shape[: data.ndim - but]:
        yield slice(0, size)


def _cover(
    curves: Curves,
    ranking: Ranking,
    part: slice,
    outlying: NDArray[np.bool_],
) -> dict[str, Floats]:
    """Return what the central curves cover in a slab; mark those beyond the fences."""
    samples = curves.read(part)
    envelop = partial(depth.find_envelope, samples)
    fences = depth.find_fences(envelop(ranking.half))
    outlying[curves.own] |= depth.find_outlying(samples, fences)
    return {
        "region": np.stack([envelop(own) for own in ranking.deepest]),
        "fences": fences,
        "box": np.stack([envelop(own) for own in ranking.boxed]),
    }


def _tell(
    own: NDArray[np.int64], ranking: Ranking, outlying: NDArray[np.bool_]
) -> dict[str, NDArray[Any]]:
    """Return what is known of each curve, and where the central ones peak."""
    each = np.full((2, len(outlying)), np.nan)
    each[0, own], each[1, own] = ranking.depth, ranking.score
    boxes = [
        np.array([[peaks[box].min(), peaks[box].max()] for box in ranking.boxed])
        for peaks in (ranking.peak, ranking.time)
    ]
    return {
        "depth": each[0],
        "score": each[1],
        "outlying": outlying.astype(np.uint8),
        "peak_box": boxes[0],
        "peak_time_box": boxes[1],
    }
