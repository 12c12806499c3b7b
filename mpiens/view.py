"""What of a result file is to be looked at: outputs, scenarios, scale."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mpiens import bands
from mpiens.fault import Fault, SpecError, nearest
from mpiens.intervals import enclose_quantiles, find_least
from mpiens.layout import DONE
from mpiens.row import Output
from mpiens.store import Store
from mpiens.table import samples
from mpiens.wording import find_units, write_percent

Floats = NDArray[np.float64]

MOST = 12  # scenarios that are drawn if nobody says which


@dataclass(frozen=True)
class Curves:
    """The replicates of an output of one scenario, and what describes them.

    ``band`` has shape (level, step), and ``interval`` (level, 2, step) how far each
    quantile may be off; NaN where there are too few replicates.
    """

    rows: Floats | None  # (replicate, step), those done, if the file keeps them
    numbers: NDArray[np.int64]  # of these replicates
    band: Floats
    interval: Floats
    outlying: frozenset[int] = frozenset()


@dataclass(frozen=True)
class View:
    """Part of a result file, complete or not."""

    store: Store
    outputs: tuple[str, ...] = ()  # all, if empty
    scenarios: tuple[str, ...] = ()
    log: bool = False
    over: bool = False  # scenarios over each other, not side by side

    def __post_init__(self) -> None:
        layout = self.store.layout
        known = [output.name for output in layout.row.outputs]
        names = [s.name for s in layout.spec.scenarios]
        faults = [*_look_up("--output", self.outputs, known)]
        faults += _look_up("--scenario", self.scenarios, names)
        if faults:
            raise SpecError(faults, str(self.store.path))

    @property
    def complete(self) -> bool:
        """Whether bands and summaries are in the file."""
        return "digest" in self.store.attributes and self.store.layout.shard is None

    @cached_property
    def done(self) -> NDArray[np.bool_]:
        """Which tasks are done, (scenario, replicate)."""
        status = self.store.status.reshape(self.store.layout.by_task)
        return np.asarray(status == DONE)

    @cached_property
    def chosen(self) -> list[int]:
        """The scenarios that are drawn, by index: those with a replicate done."""
        spec = self.store.layout.spec
        wanted = [
            index
            for index, scenario in enumerate(spec.scenarios)
            if not self.scenarios or scenario.name in self.scenarios
        ]
        there = [index for index in wanted if self.done[index].any()]
        return there if self.scenarios else there[:MOST]

    @property
    def omission(self) -> str:
        """What is to be said where there are too many scenarios to draw all."""
        there, drawn = int(self.done.any(axis=1).sum()), len(self.chosen)
        if self.scenarios or there == drawn:
            return ""
        return f"the first {drawn} of {there:,} scenarios; --scenario names others"

    def caveat(self) -> str:
        """Say how many replicates it rests on, and which quantiles have no interval."""
        counts = self.done[self.chosen].sum(axis=1)
        few, many = int(counts.min()), int(counts.max())
        text = f"{few:,}" if few == many else f"{few:,} to {many:,}"
        bands = self.store.layout.spec.bands
        short = [p for p in bands.levels if find_least(p, bands.confidence) > few]
        if short:
            names = " and ".join(map(write_percent, short))
            if len(short) == len(bands.levels):
                names = "quantiles"
            least = max(find_least(p, bands.confidence) for p in short)
            short_of = f"too few to say how far {names} are off; {least:,} would do"
            return f"{text} replicates, {short_of}"
        return f"{text} replicates"

    def name(self, scenario: int) -> str:
        """Return a scenario's name."""
        return self.store.layout.spec.scenarios[scenario].name

    def lines(self) -> Iterator[Output]:
        """Yield the outputs that are curves."""
        for output in self.store.layout.row.banded:
            if len(output.dims) == 1 and self.wants(output.name):
                yield output

    def wants(self, output: str) -> bool:
        """Whether an output is to be drawn."""
        return not self.outputs or output in self.outputs

    def summaries(self) -> Iterator[tuple[Output, str]]:
        """Yield the summaries of what is to be drawn."""
        for output, kind in self.store.layout.summaries():
            if self.wants(output.name):
                yield output, kind

    def samples(self, output: Output, kind: str, scenario: int) -> Floats:
        """Return a summary of the replicates of a scenario that are done."""
        own = samples(self.store, output, kind, scenario)
        return np.asarray(own[self.done[scenario]])

    def curves(self, output: Output, scenario: int) -> Curves:
        """Return what is drawn of an output of a scenario."""
        numbers = np.flatnonzero(self.done[scenario])
        path = f"/series/{output.name}"
        rows = None
        if path in self.store:
            rows = self.store.read_scenario(path, scenario)[numbers].astype(float)
        outlying: frozenset[int] = frozenset()
        levels, spec = self.store.layout.spec.bands.levels, self.store.layout.spec
        if self.complete:
            path = f"/bands/{output.name}"
            band = self.store.read_scenario(path, scenario)
            interval = self.store.read_scenario(f"{path}.interval", scenario)
            if (path := f"/curvewise/{output.name}/outlying") in self.store:
                found = self.store.read_scenario(path, scenario)
                outlying = frozenset(np.flatnonzero(found).tolist())
        else:
            if rows is None:
                raise SpecError([Fault("", "rows are not kept")], str(self.store.path))
            turned = np.ascontiguousarray(rows.T)
            band = bands.quantiles(turned, levels)
            ordered = np.sort(turned, axis=-1)
            interval = enclose_quantiles(ordered, levels, spec.bands.confidence)
        return Curves(rows, numbers, band, interval, outlying)


def label(output: Output, kind: str | None = None) -> str:
    """Return what stands at an axis: the name, and the units if there are any."""
    text = output.name.replace("_", " ")
    if kind is not None:
        text += f", {kind.replace('_', ' ')}"
    units = find_units(output, kind)
    return f"{text} ({units})" if units else text


def _look_up(
    option: str, wanted: Sequence[str], known: Sequence[str]
) -> Iterator[Fault]:
    for name in wanted:
        if name not in known:
            close = nearest(name, known)
            hint = f"; did you mean {close!r}?" if close else ""
            yield Fault(option, f"the file has no {name!r}{hint}")
