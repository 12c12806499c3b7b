"""A result file as a table: for people, as CSV, and as JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens import bands
from mpiens.layout import DONE, FAILED, UNUSED
from mpiens.outcome import PRINTED
from mpiens.progress import format_seconds, terminal_width
from mpiens.row import Output
from mpiens.store import Store

Floats = NDArray[np.float64]
FAILURES_SHOWN = 5


@dataclass(frozen=True)
class Spread:
    """A summary over replicates: mean, median, and the outermost levels."""

    mean: float
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, samples: Floats, levels: tuple[float, ...]) -> Spread:
        """Summarise the values of the replicates that are done."""
        low, median, high = bands.quantiles(samples, [levels[0], 0.5, levels[-1]])
        return cls(float(bands.mean(samples)), float(median), float(low), float(high))

    def __str__(self) -> str:
        return f"{_write(self.median)} [{_write(self.low)}, {_write(self.high)}]"


@dataclass(frozen=True)
class Line:
    """One summary of one scenario, and how it differs from the baseline's."""

    output: Output
    kind: str
    own: Spread
    baseline: Spread | None
    difference: Spread | None


@dataclass(frozen=True)
class Entry:
    """One scenario: how far it is, and its summaries."""

    name: str
    baseline: str | None
    parameters: dict[str, Any]
    done: int
    failed: int
    lines: list[Line]


class Table:
    """What ``show`` shows of a file, complete or not."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._layout = store.layout
        self._levels = store.layout.spec.bands.levels
        self.digest: str | None = store.attributes.get("digest")
        shape = store.layout.by_task
        self._total = int((store.status != UNUSED).sum())
        self._done = store.status.reshape(shape) == DONE
        self._failed = store.status.reshape(shape) == FAILED
        self.entries = list(self._make_entries())

    def to_json(self) -> str:
        """Return one JSON object; what has no value is null."""
        done, failed = int(self._done.sum()), int(self._failed.sum())
        pending = self._total - done - failed
        document = {
            "complete": self.digest is not None,
            "digest": self.digest,
            "tasks": {"done": done, "failed": failed, "pending": pending},
            "scenarios": [
                {
                    "name": entry.name,
                    "parameters": entry.parameters,
                    "done": entry.done,
                    "failed": entry.failed,
                    "summaries": _nest(entry.lines),
                }
                for entry in self.entries
            ],
        }
        return json.dumps(_finite(document), indent=1)

    def to_csv(self) -> str:
        """Return one row per scenario: name, parameters, counts, summaries."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = list(self._layout.parameters)
        compared = self._layout.has_baseline
        columns = [c for c, _ in _columns(self.entries[0].lines, compared)]
        writer.writerow(["scenario", *names, "done", "failed", *columns])
        for entry in self.entries:
            cells = _columns(entry.lines, compared)
            values = ["" if math.isnan(value) else value for _, value in cells]
            own = entry.parameters.values()
            writer.writerow([entry.name, *own, entry.done, entry.failed, *values])
        return text.getvalue()

    def print(self) -> None:
        """Print the comparison, completeness, failures and provenance."""
        from rich.console import Console  # noqa: PLC0415  (the root's, and show's)

        width = terminal_width("stdout")
        console = Console(
            highlight=False,
            emoji=False,
            force_terminal=width is not None,
            width=width or 200,  # a log does not fold lines
        )
        for output, kind in self._layout.summaries():
            console.print(self._draw(output, kind))
        for text in self._remarks():
            console.print(text, soft_wrap=True, markup=False)

    def _draw(self, output: Output, kind: str) -> Any:
        from rich import box, table  # noqa: PLC0415

        band = f"[{_percent(self._levels[0])}, {_percent(self._levels[-1])}]"
        title = f"{output.name}, {kind.replace('_', ' ')}"
        if output.units and kind != "peak_time":
            title += f" ({output.units})"
        title = title.replace("[", "\\[")
        drawn = table.Table(
            title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD
        )
        drawn.add_column("scenario")
        drawn.add_column("replicates", justify="right")
        drawn.add_column("mean", justify="right")
        drawn.add_column(f"median \\{band}", justify="right")
        if self._layout.has_baseline:
            drawn.add_column("baseline", justify="right")
            drawn.add_column(f"mean difference \\{band}", justify="right")
        for entry in self.entries:
            line = next(
                line
                for line in entry.lines
                if (line.output.name, line.kind) == (output.name, kind)
            )
            cells = [entry.name, str(entry.done), _write(line.own.mean), str(line.own)]
            if line.difference is not None:
                spread = line.difference
                cells.append(f"vs {entry.baseline} {line.baseline}")
                low, high = _write(spread.low), _write(spread.high)
                cells.append(f"{_write(spread.mean)} [{low}, {high}]")
            drawn.add_row(*(cell.replace("[", "\\[") for cell in cells))
        return drawn

    def _remarks(self) -> Iterator[str]:
        attributes = self._store.attributes
        done, failed = int(self._done.sum()), int(self._failed.sum())
        total = self._total
        if self._layout.shard:
            yield f"shard {self._layout.shard}: mpiens merge joins it with the others"
        state = "complete" if self.digest else "incomplete; the same command goes on"
        yield f"{done:,} of {total:,} tasks done, {failed} failed: {state}"
        spec = self._layout.spec
        for task, text in list(self._store.failures())[:FAILURES_SHOWN]:
            scenario, replicate = spec.locate(task)
            why = text.partition(PRINTED)[0]  # the exception stands last in it
            last = [line for line in why.strip().splitlines() if line][-1]
            name = spec.scenarios[scenario].name
            yield f"failed: scenario {name}, replicate {replicate}: {last}"
        if self.digest:
            took = format_seconds(float(attributes["seconds"]))
            yield f"digest {self.digest}"
            yield f"{took} on {attributes['ranks']} ranks, {attributes['completed']}"
        revision = attributes.get("code_revision") or "no revision"
        yield f"{attributes['source']}, {spec.simulator} ({revision})"

    def _make_entries(self) -> Iterator[Entry]:
        spec = self._layout.spec
        values = {key: self._samples(*key) for key in self._keys()}
        for index, scenario in enumerate(spec.scenarios):
            baseline = spec.baselines[index]
            yield Entry(
                name=scenario.name,
                baseline=None if baseline is None else spec.scenarios[baseline].name,
                parameters={n: v[index] for n, v in self._layout.parameters.items()},
                done=int(self._done[index].sum()),
                failed=int(self._failed[index].sum()),
                lines=[
                    self._make_line(output, kind, values[output.name, kind], index)
                    for output, kind in self._layout.summaries()
                ],
            )

    def _keys(self) -> list[tuple[str, str]]:
        return [(output.name, kind) for output, kind in self._layout.summaries()]

    def _make_line(self, output: Output, kind: str, values: Floats, index: int) -> Line:
        own = values[index, self._done[index]]
        spread = Spread.of(own, self._levels)
        baseline = self._layout.spec.baselines[index]
        if baseline is None or baseline == index:
            return Line(output, kind, spread, None, None)
        both = self._done[index] & self._done[baseline]
        difference = values[index, both] - values[baseline, both]
        other = values[baseline, self._done[baseline]]
        return Line(
            output=output,
            kind=kind,
            own=spread,
            baseline=Spread.of(other, self._levels),
            difference=Spread.of(difference, self._levels),
        )

    def _samples(self, name: str, kind: str) -> Floats:
        """Return a summary of every task (scenario, replicate), NaN where none is."""
        if self.digest is not None and self._layout.shard is None:
            return self._store.read(f"/summary/{name}/{kind}")
        values = np.full(self._layout.by_task, np.nan)
        output = self._layout.output(name)
        steps = output.shape[0] if output.shape else 1
        coordinate = np.arange(steps, dtype=float)
        for scenario, replicate in zip(*np.nonzero(self._done), strict=True):
            task = self._layout.spec.number(int(scenario), int(replicate))
            row = self._store.row(task)[name].reshape(1, steps).astype(float)
            values[scenario, replicate] = bands.summarise(
                kind, row, coordinate, padded=output.padded
            )[0]
        return values


def _nest(lines: list[Line]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for line in lines:
        own: dict[str, Any] = dict(vars(line.own))
        if line.difference is not None:
            spread = line.difference
            own["difference"] = {
                "mean": spread.mean,
                "low": spread.low,
                "high": spread.high,
            }
        nested.setdefault(line.output.name, {})[line.kind] = own
    return nested


def _columns(lines: list[Line], compared: bool) -> Iterator[tuple[str, float]]:
    """Yield (column, value) of a CSV row; the baseline itself has no difference."""
    for line in lines:
        path = f"{line.output.name}.{line.kind}"
        for name, value in vars(line.own).items():
            yield f"{path}.{name}", value
        for name in ("mean", "low", "high") if compared else ():
            value = getattr(line.difference, name) if line.difference else math.nan
            yield f"{path}.difference.{name}", value


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write(value: float) -> str:
    if math.isnan(value):
        return "-"
    return (
        f"{value:,.0f}"
        if abs(value) >= 100 or value == round(value)
        else f"{value:.3g}"
    )


def _percent(level: float) -> str:
    return f"{100 * level:g}%"
