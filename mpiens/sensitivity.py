"""What each parameter of a sampled design does to the summaries, and over time.

Made by the root of the means over replicates, which are in the file already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens.deadline import Look, look_away
from mpiens.indices import correlate, find_indices, find_noise
from mpiens.layout import ROWS, Layout
from mpiens.row import Output
from mpiens.store import Store

BUDGET = 8 << 20  # bytes of means that are read at once

Floats = NDArray[np.float64]


def analyse(store: Store, look: Look = look_away) -> None:
    """Write what the parameters of a design do, where one is sampled.

    Wants bands, statistics of summaries, and the number of replicates done to be there.
    Raises what ``look`` does, which is called now and then.
    """
    layout = store.layout
    done = np.maximum(store.read("/tasks/done"), 1)[:, None]
    for output, kind in layout.analysed():
        path = f"/summary/{output.name}/{kind}"
        steps = 1
        if kind == ROWS:
            path, [steps] = f"/bands/{output.name}", output.shape
        size = max(1, BUDGET // (8 * layout.by_task[0]))
        parts = []
        for start in range(0, steps, size):
            part = slice(start, min(start + size, steps))
            if kind == ROWS:
                read = [store.read_steps(f"{path}.{n}", part) for n in ("mean", "std")]
            else:
                read = [store.read(f"{path}.{n}")[:, None] for n in ("mean", "std")]
            means, deviations = read
            parts.append(_analyse(layout, means, deviations / np.sqrt(done), look))
        for name in layout.sensitivities:
            whole = np.concatenate([part[name] for part in parts], axis=-1)
            whole = whole if kind == ROWS else whole[..., 0]
            store.write_all(f"/sensitivity/{output.name}/{kind}.{name}", whole)


@dataclass(frozen=True)
class Effects:
    """What the parameters of a design do to a summary in one case.

    ``told`` has the statistics by name, those of all parameters first along an axis.
    """

    case: str
    output: Output
    kind: str
    factors: tuple[str, ...]
    told: dict[str, Floats]

    def document(self) -> dict[str, Any]:
        """Return it as plain lists and numbers, for JSON."""
        where = {"case": self.case, "output": self.output.name, "summary": self.kind}
        own = {name: values.tolist() for name, values in self.told.items()}
        return where | {"factor": [*self.factors]} | own


def read_effects(store: Store) -> Iterator[Effects]:
    """Yield what a complete file tells of the parameters of its design, if it has one.

    What they do over time is in the file alone.
    """
    layout = store.layout
    for output, kind in layout.analysed():
        if layout.spec.design is None or kind == ROWS:
            continue
        path = f"/sensitivity/{output.name}/{kind}"
        told = {name: store.read(f"{path}.{name}") for name in layout.sensitivities}
        for index, case in enumerate(layout.spec.cases):
            own = {name: values[index] for name, values in told.items()}
            factors = tuple(layout.spec.design.ranges)
            yield Effects(case.name, output, kind, factors, own)


def _analyse(
    layout: Layout, means: Floats, errors: Floats, look: Look
) -> dict[str, Floats]:
    """Tell of means (scenario, entry) what is told; each (case, ..., entry)."""
    points = _number_points(layout)
    told = []
    for case in layout.spec.cases:
        own = [*case.scenarios]
        each = []
        for entry in range(means.shape[1]):
            look()
            each.append(_tell(layout, points, means[own, entry], errors[own, entry]))
        told.append({n: np.stack([e[n] for e in each], axis=-1) for n in each[0]})
    return {name: np.stack([one[name] for one in told]) for name in told[0]}


def _tell(
    layout: Layout, points: Floats, values: Floats, errors: Floats
) -> dict[str, Floats]:
    """Tell of one value per point of the design, and their standard errors."""
    spec = layout.spec
    block = 1 if spec.design is None else spec.design.block
    confidence = spec.bands.confidence
    told: dict[str, Floats] = {}
    if block > 1:
        blocks = values.reshape(-1, block)
        told = find_indices(blocks, confidence=confidence, seed=spec.ensemble.seed)
        apart = np.arange(len(values)) % block  # points between mix those of both ends
        ends = (apart == 0) | (apart == block - 1)
        points, values, errors = points[ends], values[ends], errors[ends]
    told |= correlate(points, values, confidence=confidence)
    return told | {"noise": np.array(find_noise(values, errors))}


def _number_points(layout: Layout) -> Floats:
    """Return the design's points (point, parameter); NaN for what is no number."""
    design = layout.spec.design
    columns = () if design is None else design.points.values()
    return np.array([[*map(_to_number, column)] for column in columns]).T


def _to_number(value: object) -> float:
    return float(value) if isinstance(value, bool | int | float) else np.nan
