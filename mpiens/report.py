"""A result file as a page for a colleague: the answer, charts, how it was made."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from mpiens import charts, fans, traces
from mpiens.canvas import Canvas, styled
from mpiens.fault import Fault, SpecError
from mpiens.ledger import Ledger
from mpiens.picture import list_kinds
from mpiens.progress import format_seconds
from mpiens.row import Output
from mpiens.sentences import tell_verdicts
from mpiens.spec import Step
from mpiens.store import Store
from mpiens.table import Entry, Line, Table
from mpiens.utilisation import draw_ranks, measure_ranks
from mpiens.view import View, label
from mpiens.wording import (
    enclose,
    name_better,
    name_summary,
    turn_share,
    write_number,
    write_percent,
    write_share,
)

FAILURES = 50  # that are on the page with their text
SCENARIOS = 1000  # lines of a table
SENTENCES = 30
TRIALS = 50
Cell = tuple[str, float | None]  # what is shown, and what it is sorted by


@dataclasses.dataclass(frozen=True)
class Chart:
    """A picture in a page: what it shows in words, and values for who points at it."""

    key: str
    alt: str
    svg: str
    data: str = ""
    caption: str = ""


def write_report(file: Path, page: Path) -> None:
    """Write a page that needs no other file and no network.

    Raises SpecError where what it takes is not installed, or there is nothing to show.
    """
    try:
        import jinja2  # noqa: PLC0415  (only who writes a page wants it)
    except ImportError as error:
        text = f'pages need jinja2: pip install "mpiens[plot]" ({error})'
        raise SpecError([Fault("", text)]) from error
    store = Store(file)
    template = jinja2.Environment(
        autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    ).from_string(resources.files("mpiens").joinpath("report.html").read_text("utf-8"))
    page.write_text(template.render(_Report(store).content()), encoding="utf-8")


class _Report:
    """What stands on the page."""

    def __init__(self, store: Store) -> None:
        self._store, self._spec = store, store.layout.spec
        self._table, self._view = Table(store), View(store)
        self._entries = self._table.first(SCENARIOS)

    def content(self) -> dict[str, Any]:
        """Return all of it, as the template names it."""
        store = self._store
        done, failed, rest = self._table.counts
        total = done + failed + rest
        state = "complete" if self._table.digest else f"incomplete, {rest:,} to be run"
        with styled("page") as canvas:
            sections = [*self._sections(canvas)]
        sentences = [*tell_verdicts(self._entries, self._spec.bands)]
        command = store.attributes.get("command")
        return {
            "title": f"{store.path.stem}: {self._spec.simulator}",
            "state": f"{len(self._spec.scenarios):,} scenarios, {done:,} runs, {state}",
            "sentences": sentences[:SENTENCES],
            "tables": [*self._tables()],
            "sure": write_percent(self._spec.bands.confidence),
            "remarks": [*self._table.caveats()],
            "charts": sections,
            "completeness": f"{done:,} of {total:,} tasks are done, {failed:,} failed.",
            "failures": [*self._failures()],
            "provenance": [*self._provenance()],
            "again": command or f"mpiens {store.path.stem}.toml",
            "spec": self._spec.to_json(),
        }

    def _tables(self) -> Iterator[dict[str, Any]]:
        """Yield tables: how each summary compares, and what it is; the best trials."""
        if self._spec.calibrate is not None:
            yield self._tell_trials()
            return
        for output, kind in self._store.layout.summaries():
            lines = [(entry, entry.line(output, kind)) for entry in self._entries]
            if self._store.layout.has_baseline:
                yield self._tell_comparison(output, kind, lines)
            yield self._tell_summary(output, kind, lines)

    def _tell_summary(
        self, output: Output, kind: str, lines: list[tuple[Entry, Line]]
    ) -> dict[str, Any]:
        levels = self._spec.bands.levels
        low, high = map(write_percent, (levels[0], levels[-1]))
        columns = ["scenario", "done", "failed", "mean", low, "median", high]
        rows = []
        for entry, line in lines:
            cells: list[Cell] = [(entry.name, None)]
            cells += [(f"{n:,}", float(n)) for n in (entry.done, entry.failed)]
            own = line.own
            cells += map(_number, (own.mean, own.low, own.median, own.high))
            rows.append(cells)
        return {"title": name_summary(output, kind), "columns": columns, "rows": rows}

    def _tell_comparison(
        self, output: Output, kind: str, lines: list[tuple[Entry, Line]]
    ) -> dict[str, Any]:
        timed, wanted = kind == "peak_time", self._spec.bands
        sure = f"{write_percent(wanted.confidence)} sure"
        columns = ["scenario", "baseline", "mean difference"]
        columns += [turn_share(0.0, (0.0, 0.0), wanted.better)[0]] * (not timed)
        better = f"probability of being {name_better(kind, wanted.better)}"
        columns += [better, "replicates"]
        rows = []
        for entry, line in lines:
            if (own := line.verdict) is None:
                continue
            cells: list[Cell] = [(entry.name, None), (str(entry.baseline), None)]
            cells += [(enclose(own.mean, own.mean_interval), own.mean)]
            averted = turn_share(own.averted, own.averted_interval, wanted.better)
            shares = [averted[1:]] * (not timed)
            shares += [(own.better, own.better_interval)]
            cells += [(enclose(*share, write_share), share[0]) for share in shares]
            rows.append([*cells, (f"{own.count:,}", float(own.count))])
        title = f"{name_summary(output, kind)}: against the baseline, {sure}"
        return {"title": title, "columns": columns, "rows": rows}

    def _tell_trials(self) -> dict[str, Any]:
        """Return the best trials of a calibration."""
        ledger = Ledger.of(self._store)
        names = [*self._spec.calibrated]
        rows = []
        for trial in ledger.ranking()[:TRIALS]:
            loss, own = float(ledger["loss"][trial]), ledger.parameters(trial)
            cells: list[Cell] = [(str(trial), float(trial)), _number(loss)]
            cells += [
                _number(own[name])
                if isinstance(own[name], float)
                else (str(own[name]), None)
                for name in names
            ]
            rows.append(cells)
        return {
            "title": "best trials",
            "columns": ["trial", "loss", *names],
            "rows": rows,
        }

    def _sections(self, canvas: Canvas) -> Iterator[dict[str, Any]]:
        """Yield what is drawn, in sections."""
        titles = {
            "search": "The search",
            "joined": "Joined curves",
            "points": "What the parameters do",
            "cube": "Over the cube",
            "fans": "Curves",
            "differences": "Differences from the baseline",
            "summaries": "Single runs",
        }
        for kind in list_kinds(self._view):
            drawn = [*self._draw(canvas, kind)]
            yield {"key": kind, "title": titles[kind], "charts": drawn}
        busy, seconds = measure_ranks(self._store)
        if busy.size:
            alt = "share of each rank's time that went into tasks, over time"
            told = f"{len(busy):,} ranks were busy for {write_share(busy.mean())} of "
            told += f"{format_seconds(seconds)}, from the first task to the last."
            svg = _to_svg(draw_ranks(canvas, busy, seconds))
            chart = Chart("ranks-0", alt, svg, caption=told)
            yield {"key": "ranks", "title": "Ranks over time", "charts": [chart]}

    def _draw(self, canvas: Canvas, kind: str) -> Iterator[Chart]:
        """Yield the charts of one kind: curves an output each, others as they are."""
        makes = {"fans": fans.draw_fans, "differences": fans.draw_differences}
        if kind not in makes:
            rest = {
                "search": (traces.draw_search, "losses, fit and parameters of trials"),
                "joined": (
                    traces.draw_joined,
                    "joined curves, and residuals of overlaps",
                ),
                "points": (charts.draw_points, "summaries against parameters"),
                "cube": (charts.draw_cube, "medians of summaries over two parameters"),
                "summaries": (charts.draw_summaries, "summaries of all replicates"),
            }
            make, alt = rest[kind]
            yield Chart(f"{kind}-0", alt, _to_svg(make(canvas, self._view)))
            return
        for number, output in enumerate(self._view.lines()):
            view = dataclasses.replace(self._view, outputs=(output.name,))
            figure = makes[kind](canvas, view)
            svg = _to_svg(figure)
            panels = [*self._list_panels(kind, view, output, figure)]
            names = ", ".join(panel["title"] for panel in panels)
            what = "bands and medians" if kind == "fans" else "differences"
            alt = f"{what} of {label(output)} over {output.dims[0]}: {names}"
            data = json.dumps(panels).replace("</", "<\\/")
            yield Chart(f"{kind}-{number}", alt, svg, data)

    def _list_panels(
        self, kind: str, view: View, output: Output, figure: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield what is told of each panel of a picture to who points at it."""
        levels, baselines = self._spec.bands.levels, self._spec.baselines
        chosen = view.chosen
        if kind == "differences":
            chosen = [i for i in chosen if baselines[i] not in (None, i)]
        axes = figure.axes[: len(chosen)]  # the last row may have places left
        for axis, scenario in zip(axes, chosen, strict=True):
            if kind == "fans":
                band = view.curves(output, scenario).band
            else:
                path = f"/differences/{output.name}"
                band = self._store.read_scenario(path, scenario)
            left, bottom, width, height = axis.get_position().bounds
            yield {
                "title": view.name(scenario),
                "along": output.dims[0],
                "box": [left, 1 - bottom - height, width, height],
                "x": [*axis.get_xlim()],
                "steps": band.shape[1],
                "rows": [
                    [_name_level(level), [*map(_plain, own.tolist())]]
                    for level, own in zip(levels, band, strict=True)
                ],
            }

    def _failures(self) -> Iterator[dict[str, str]]:
        """Yield the failures, with what was kept of each."""
        for task, text in [*self._store.failures()][:FAILURES]:
            step, index = self._spec.step_of(task)
            name = self._spec.scenarios[index].name if step is not Step.SCORE else ""
            replicate = f"replicate {task % self._spec.replicates}"
            what = replicate if step is None else step.name.lower()
            lines = [line for line in text.strip().splitlines() if line] or ["?"]
            yield {"title": f"{name}, {what}: {lines[-1]}", "text": text}

    def _provenance(self) -> Iterator[tuple[str, str]]:
        attributes = self._store.attributes
        for name in ("source", "digest", "created", "completed", "ranks", "host"):
            if name in attributes:
                yield name, str(attributes[name])
        if "seconds" in attributes:
            yield "took", format_seconds(float(attributes["seconds"]))
        revision = attributes.get("code_revision") or "no revision"
        yield "model", f"{self._spec.simulator} ({revision})"
        for name, version in json.loads(attributes.get("versions", "{}")).items():
            yield name, version
        yield "folder", str(attributes.get("folder", ""))


def _to_svg(figure: Any) -> str:
    """Return a picture as an element of a page."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _name_level(level: float) -> str:
    return "median" if level == 0.5 else write_percent(level)


def _plain(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _number(value: float) -> Cell:
    return write_number(value), value if math.isfinite(value) else None
