"""A result file as a table: for people, and as JSON."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens import bands
from mpiens.assembly import judge
from mpiens.difference import Difference
from mpiens.fit import Fit, tell_coverage
from mpiens.grid import Grid
from mpiens.intervals import bound_share, enclose_quantiles, expect_share, find_least
from mpiens.layout import DONE, FAILED, UNUSED
from mpiens.outcome import PRINTED
from mpiens.precision import predict_count
from mpiens.progress import format_seconds, terminal_width
from mpiens.replication import measure
from mpiens.row import Output
from mpiens.sensitivity import Effects, read_effects
from mpiens.spec import Step, Takeoff
from mpiens.store import Store
from mpiens.summary import differ
from mpiens.wording import (
    enclose,
    name_better,
    name_summary,
    turn_share,
    write_number,
    write_percent,
    write_share,
)

Floats = NDArray[np.float64]
FAILURES_SHOWN = 5
OUTLYING_SHOWN = 20
SCENARIOS_SHOWN = 100  # more are no table for people


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
        return enclose(self.median, (self.low, self.high))


@dataclass(frozen=True)
class Line:
    """One summary of one scenario, and how it differs from the baseline's."""

    output: Output
    kind: str
    own: Spread
    difference: Spread | None
    verdict: Difference | None


@dataclass(frozen=True)
class Entry:
    """One scenario: how far it is, and its summaries."""

    name: str
    baseline: str | None
    parameters: dict[str, Any]
    done: int
    failed: int
    lines: list[Line]

    def line(self, output: Output, kind: str) -> Line:
        """Return what is told of one of the summaries."""
        wanted = output.name, kind
        return next(n for n in self.lines if (n.output.name, n.kind) == wanted)


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
        self._fit = Fit(store) if store.layout.spec.calibrate else None

    @property
    def _whole(self) -> bool:
        """Whether all has been made of the rows: of those of shards it is not."""
        return self.digest is not None and self._layout.shard is None

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many tasks are done, have failed, and are pending."""
        done, failed = int(self._done.sum()), int(self._failed.sum())
        return done, failed, self._total - done - failed

    @cached_property
    def entries(self) -> list[Entry]:
        """Every scenario."""
        return list(self._make_entries())

    def first(self, count: int) -> list[Entry]:
        """Return the first scenarios, or all where there are no more."""
        return [*itertools.islice(self._make_entries(), count)]

    def to_json(self) -> str:
        """Return one JSON object; what has no value is null."""
        done, failed, pending = self.counts
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
                    **self._nest_takeoffs(index),
                    **self._nest_aggregates(index),
                }
                for index, entry in enumerate(self.entries)
            ],
        }
        if joined := [vars(verdict) for verdict in judge(self._store)]:
            document["joined"] = joined
        if effects := [own.document() for own in self._effects]:
            document["sensitivity"] = effects
        if self._fit is not None:
            document["calibration"] = self._fit.document()
        return json.dumps(_finite(document), indent=1)

    def _nest_aggregates(self, index: int) -> dict[str, Any]:
        """Return what was made of a scenario, where anything is."""
        names = [output.name for output in self._layout.aggregates]
        paths = {name: f"/aggregate/{name}" for name in names}
        made = {n: self._store.read_scenario(p, index) for n, p in paths.items()}
        return {"aggregates": {n: a.tolist() for n, a in made.items()}} if made else {}

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
        if self._fit is not None:
            console.print(self._fit.draw())
            for text in [*self._fit.remarks(), *self.remarks()]:
                console.print(text, soft_wrap=True, markup=False)
            return
        shown = self.first(SCENARIOS_SHOWN)
        for output, kind in self._layout.summaries():
            console.print(self._draw(shown, output, kind))
            if self._layout.has_baseline:
                console.print(self._draw_verdicts(shown, output, kind))
        for output, takeoff in self._layout.takeoffs():
            console.print(self._draw_takeoff(shown, output, takeoff))
        for effects in self._effects:
            console.print(self._draw_effects(effects))
        if scalars := [o for o in self._layout.aggregates if not o.shape]:
            console.print(self._draw_aggregates(shown, scalars))
        for verdict in judge(self._store):
            console.print(str(verdict), soft_wrap=True, markup=False)
        for text in self.remarks():
            console.print(text, soft_wrap=True, markup=False)

    def _draw(self, shown: list[Entry], output: Output, kind: str) -> Any:
        """Draw a summary of every scenario, how sure its median is, and how to be."""
        drawn = Grid(name_summary(output, kind))
        columns = ["replicates", "mean", f"median {self._band}"]
        columns += [f"median, {self._sure}", "replicates for half of that"]
        drawn.add_columns("scenario", columns)
        confidence = self._layout.spec.bands.confidence
        for index, entry in enumerate(shown):
            own = entry.line(output, kind).own
            values = samples(self._store, output, kind, index)[self._done[index]]
            [[low, high]] = enclose_quantiles(np.sort(values), (0.5,), confidence)
            enough = predict_count(values, 0.5, 0.5, confidence=confidence)
            cells = [entry.name, str(entry.done), write_number(own.mean), str(own)]
            cells += [
                f"{write_number(low)} to {write_number(high)}" if low <= high else "-"
            ]
            cells += ["-" if enough is None else f"{enough:,}"]
            drawn.add_row(cells)
        return drawn.drawn

    @property
    def _band(self) -> str:
        return f"[{write_percent(self._levels[0])}, {write_percent(self._levels[-1])}]"

    @property
    def _sure(self) -> str:
        return f"{write_percent(self._layout.spec.bands.confidence)} sure"

    def _draw_verdicts(self, shown: list[Entry], output: Output, kind: str) -> Any:
        """Draw whether each scenario is better than its baseline, and how surely."""
        wanted, timed = self._layout.spec.bands.better, kind == "peak_time"
        paired = self._layout.spec.ensemble.pairing == "common"
        drawn = Grid(
            f"{name_summary(output, kind)}: against the baseline, {self._sure}"
        )
        columns = ["mean difference", f"differences {self._band}"]
        columns += [turn_share(0.0, (0.0, 0.0), wanted)[0]] * (not timed)
        columns += [f"probability of being {name_better(kind, wanted)}"]
        columns += ["pairing saves"] * paired + ["replicates for half the width"]
        drawn.add_columns("scenario", columns)
        for entry in shown:
            line = entry.line(output, kind)
            verdict, spread = line.verdict, line.difference
            if verdict is None or spread is None:
                continue
            averted = verdict.averted, verdict.averted_interval
            _, share, interval = turn_share(*averted, wanted)
            cells = [
                f"{entry.name} vs {entry.baseline}",
                enclose(verdict.mean, verdict.mean_interval),
                f"{write_number(spread.low)} to {write_number(spread.high)}",
                *[enclose(share, interval, write_share)] * (not timed),
                enclose(verdict.better, verdict.better_interval, write_share),
            ]
            if paired:
                saved = verdict.reduction
                cells.append("-" if math.isnan(saved) else f"{saved:.3g} times")
            cells.append(f"{4 * verdict.count:,}" if verdict.count > 1 else "-")
            drawn.add_row(cells)
        return drawn.drawn

    def _draw_takeoff(
        self, shown: list[Entry], output: Output, takeoff: Takeoff
    ) -> Any:
        """Draw how many replicates took off, and the summaries of those alone."""
        kinds = [k for own, k in self._layout.summaries() if own.name == output.name]
        title = (
            f"{name_summary(output, takeoff.summary)} above {takeoff.above:g}: took off"
        )
        drawn = Grid(title)
        columns = ["replicates", f"share, {self._sure}"]
        columns += [f"{kind.replace('_', ' ')}, median {self._band}" for kind in kinds]
        drawn.add_columns("scenario", columns)
        for index, entry in enumerate(shown):
            off = self._took_off(index, output, takeoff)
            told = self._tell_takeoff(index, off)
            cells = [entry.name, str(told["count"])]
            cells.append(enclose(told["share"], told["interval"], write_share))
            for kind in kinds:
                own = samples(self._store, output, kind, index)[off]
                cells.append(str(Spread.of(own, self._levels)))
            drawn.add_row(cells)
        return drawn.drawn

    def _took_off(
        self, index: int, output: Output, takeoff: Takeoff
    ) -> NDArray[np.bool_]:
        """Return which replicates of a scenario took off."""
        values = samples(self._store, output, takeoff.summary, index)
        return np.asarray(self._done[index] & (values > takeoff.above))

    def _tell_takeoff(self, index: int, off: NDArray[np.bool_]) -> dict[str, Any]:
        """Return how many took off, their share of those done, and its interval."""
        count, done = int(off.sum()), int(self._done[index].sum())
        return {
            "count": count,
            "share": count / done if done else math.nan,
            "interval": bound_share(count, done, self._layout.spec.bands.confidence),
        }

    def _nest_takeoffs(self, index: int) -> dict[str, Any]:
        """Return how many of a scenario's replicates took off, where that is asked."""
        told = {
            output.name: self._tell_takeoff(
                index, self._took_off(index, output, takeoff)
            )
            for output, takeoff in self._layout.takeoffs()
        }
        return {"takeoff": told} if told else {}

    @cached_property
    def _effects(self) -> list[Effects]:
        """What the parameters of a sampled design do, once all tasks are finished."""
        return [*read_effects(self._store)] if self._whole else []

    def _draw_effects(self, effects: Effects) -> Any:
        """Draw what each parameter of a design does to a summary."""
        what = f"{name_summary(effects.output, effects.kind)}: what the parameters do"
        case = f", {effects.case}" * (len(self._layout.spec.cases) > 1)
        drawn = Grid(f"{what}{case}, {self._sure}")
        told = effects.told
        columns = {
            "first": ("share of variance that is its alone", write_share),
            "total": ("that it takes part in", write_share),
            "correlation": ("rank correlation", write_number),
        }
        shown = {name: own for name, own in columns.items() if name in told}
        drawn.add_columns("parameter", [text for text, _ in shown.values()])
        for index, factor in enumerate(effects.factors):
            cells = [
                enclose(
                    told[name][index], tuple(told[f"{name}_interval"][index]), write
                )
                for name, (_, write) in shown.items()
            ]
            drawn.add_row([factor, *cells])
        return drawn.drawn

    def _draw_aggregates(self, shown: list[Entry], scalars: list[Output]) -> Any:
        drawn = Grid("aggregates")
        columns = [
            f"{output.name} ({output.units})" if output.units else output.name
            for output in scalars
        ]
        drawn.add_columns("scenario", columns)
        values = [
            self._store.read(f"/aggregate/{output.name}").tolist() for output in scalars
        ]
        for entry, own in zip(shown, zip(*values, strict=True), strict=False):
            drawn.add_row([entry.name, *(write_number(float(value)) for value in own)])
        return drawn.drawn

    def remarks(self) -> Iterator[str]:
        """Yield what there is to know beside the tables, a line each."""
        attributes = self._store.attributes
        done, failed, _ = self.counts
        total = self._total
        yield from self.caveats()
        rest = len(self._layout.spec.scenarios) - SCENARIOS_SHOWN
        if rest > 0 and self._fit is None:
            yield f"and {rest:,} scenarios more: mpiens show --csv has them all"
        if self._layout.shard:
            yield f"shard {self._layout.shard}: mpiens merge joins it with the others"
        state = "complete" if self.digest else "incomplete; the same command goes on"
        yield f"{done:,} of {total:,} tasks done, {failed} failed: {state}"
        spec = self._layout.spec
        joins = spec.step(Step.JOIN, 0)
        first = sorted(self._store.failures(), key=lambda failure: failure[0] < joins)
        for task, text in first[:FAILURES_SHOWN]:
            step, scenario = spec.step_of(task)
            replicate = task % spec.replicates
            what = f"replicate {replicate}" if step is None else step.name.lower()
            if step is Step.SCORE:
                scenario *= spec.per_trial
            why = text.partition(PRINTED)[0]  # the exception stands last in it
            last = [line for line in why.strip().splitlines() if line][-1]
            name = spec.scenarios[scenario].name
            if step is Step.JOIN:
                curve = next(c for c in spec.curves if scenario in c.scenarios)
                yield from (f"failed: join {curve.name}, {t}" for t in why.splitlines())
                continue
            yield f"failed: scenario {name}, {what}: {last}"
        if self.digest:
            took = format_seconds(float(attributes["seconds"]))
            yield f"digest {self.digest}"
            yield f"{took} on {attributes['ranks']} ranks, {attributes['completed']}"
        revision = attributes.get("code_revision") or "no revision"
        yield f"{attributes['source']}, {spec.simulator} ({revision})"

    def caveats(self) -> Iterator[str]:
        """Yield what is to be known of the numbers in the tables, a line each."""
        if self._layout.spec.calibrate is None:
            yield from self._tell_bands()
            yield from self._tell_outlying() if self._whole else ()
            yield from self._tell_precision() if self._whole else ()
            yield from self._tell_noise()
            yield from tell_coverage(self._store) if self.digest else ()

    def _tell_bands(self) -> Iterator[str]:
        """Say what bands of so few replicates hold, and what they do not tell."""
        counts = self._done.sum(axis=1)
        levels, confidence = self._levels, self._layout.spec.bands.confidence
        if not (counts > 0).any() or not any(True for _ in self._layout.summaries()):
            return
        fewest = int(counts[counts > 0].min())
        if len(levels) > 1:
            share = expect_share(fewest, levels[0], levels[-1])
            yield (
                f"of {fewest} replicates {self._band} holds some {write_share(share)} "
                "of future ones; .prediction in the file has what holds the share that "
                "is named"
            )
        short = [p for p in levels if find_least(p, confidence) > fewest]
        if short:
            names = " and ".join(map(write_percent, short))
            least = max(find_least(p, confidence) for p in short)
            yield (
                f"{fewest} replicates are too few to say how far the {names} quantiles "
                f"are off; {least} are enough"
            )

    def _tell_precision(self) -> Iterator[str]:
        """Say how tight each scenario has become, and how many replicates it took."""
        spec = self._layout.spec
        if (wanted := spec.precision) is None:
            return
        what = f"{wanted.output} {wanted.summary or ''}".strip()
        what += " difference" * wanted.difference
        for index, scenario in enumerate(spec.scenarios[:SCENARIOS_SHOWN]):
            if wanted.difference and spec.baselines[index] == index:
                continue
            count = int((self._done | self._failed)[index].sum())
            width = measure(self._store, spec, wanted, index, count)
            verdict = "tight enough" if width <= wanted.wanted else "still too wide"
            share = wanted.relative is not None
            told = [
                write_share(w) if share else write_number(w)
                for w in (width, wanted.wanted)
            ]
            yield (
                f"precision of {what}: scenario {scenario.name} took {count:,} "
                f"replicates for {told[0]} of {told[1]}: {verdict}"
            )

    def _tell_noise(self) -> Iterator[str]:
        """Say how much of what varies over a design is due to too few replicates."""
        for effects in self._effects:
            noise = float(effects.told["noise"])
            what = f"{effects.output.name}, {effects.kind.replace('_', ' ')}"
            if math.isnan(noise):
                yield f"{what}: one replicate a point does not tell noise from effects"
            else:
                yield (
                    f"{what}: {write_share(noise)} of the variance over the design is "
                    "noise of the replicates, which no parameter explains"
                )

    def _tell_outlying(self) -> Iterator[str]:
        """Name the curves that leave the fences of their functional boxplot."""
        for output in self._layout.curved():
            found = self._store.read(f"/curvewise/{output.name}/outlying")
            for index in np.flatnonzero(found.any(axis=1))[:FAILURES_SHOWN]:
                numbers = np.flatnonzero(found[index]).tolist()
                told = ", ".join(map(str, numbers[:OUTLYING_SHOWN]))
                more = len(numbers) - OUTLYING_SHOWN
                told += f" and {more} more" * (more > 0)
                name = self._layout.spec.scenarios[index].name
                yield f"outlying {output.name}: scenario {name}, replicates {told}"

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
        return Line(
            output=output,
            kind=kind,
            own=spread,
            difference=Spread.of(difference, self._levels),
            verdict=differ(
                self._layout.spec,
                values[index],
                values[baseline],
                self._done[index],
                self._done[baseline],
            ),
        )

    def _samples(self, name: str, kind: str) -> Floats:
        """Return a summary of every task (scenario, replicate), NaN where none is."""
        output = self._layout.output(name)
        scenarios = range(self._layout.by_task[0])
        return np.stack([samples(self._store, output, kind, i) for i in scenarios])


def samples(store: Store, output: Output, kind: str, scenario: int) -> Floats:
    """Return a summary of a scenario's tasks, (replicate,); NaN where none is.

    A complete file has it; of others it is made from the rows that there are.
    """
    if "digest" in store.attributes and store.layout.shard is None:
        return store.read_scenario(f"/summary/{output.name}/{kind}", scenario)
    done = store.status.reshape(store.layout.by_task)[scenario] == DONE
    values = np.full(len(done), np.nan)
    if done.any():
        steps = output.shape[0] if output.shape else 1
        rows = store.read_scenario(f"/series/{output.name}", scenario)[done]
        values[done] = bands.summarise(
            kind,
            rows.reshape(-1, steps).astype(float),
            np.arange(steps, dtype=float),
            padded=output.padded,
        )
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
        if line.verdict is not None:
            own["verdict"] = dict(vars(line.verdict))
        nested.setdefault(line.output.name, {})[line.kind] = own
    return nested


def _finite(value: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
