"""Fan charts: nested bands of curves, their median, some replicates; differences."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens.canvas import Canvas, colour, stroke, wrap
from mpiens.row import Output
from mpiens.view import Curves, View, label
from mpiens.wording import write_percent

Floats = NDArray[np.float64]

REPLICATES = 3  # curves that are drawn with a fan
OUTLYING = 5
_LEGEND = 1.7  # inches that an entry of it takes
_LETTERS = 15  # of its title that an inch takes


def draw_fans(canvas: Canvas, view: View) -> Any:
    """Draw every output that is a curve, each scenario in a panel of its own.

    Or all scenarios over each other, with their outermost bands and medians alone.
    """

    def take(output: Output, scenario: int) -> tuple[Curves, str]:
        return view.curves(output, scenario), view.name(scenario)

    return _draw_grid(canvas, view, view.chosen, take, "{}")


def draw_differences(canvas: Canvas, view: View) -> Any:
    """Draw how curves differ from those of the baseline, with their bands.

    Of a complete file with a baseline; a panel for each scenario that is compared.
    """
    baselines = view.store.layout.spec.baselines

    def take(output: Output, scenario: int) -> tuple[Curves, str]:
        path = f"/differences/{output.name}"
        band = view.store.read_scenario(path, scenario)
        interval = view.store.read_scenario(f"{path}.interval", scenario)
        title = f"{view.name(scenario)} - {view.name(baselines[scenario] or 0)}"
        return Curves(None, np.arange(0), band, interval), title

    compared = [i for i in view.chosen if baselines[i] not in (None, i)]
    plain = replace(view, log=False)  # differences have signs
    figure = _draw_grid(canvas, plain, compared, take, "difference of {}")
    for axis in figure.axes:
        axis.axhline(0, color="black", linewidth=0.6, zorder=1)
    return figure


def _draw_grid(
    canvas: Canvas,
    view: View,
    scenarios: list[int],
    take: Callable[[Output, int], tuple[Curves, str]],
    text: str,
) -> Any:
    """Draw what is taken of every output and scenario: panels, an output's together."""
    outputs = [*view.lines()]
    panels = 1 if view.over else len(scenarios)
    columns = min(panels, canvas.columns)
    rows = -(-panels // columns)
    figure, axes = canvas.lay_out(rows * len(outputs), columns)
    for number, output in enumerate(outputs):
        block = axes[number * rows : (number + 1) * rows].reshape(-1)
        for position, scenario in enumerate(scenarios):
            curves, title = take(output, scenario)
            if view.over:
                _draw_over(block[0], view, curves.band, position, title)
            else:
                _draw_fan(block[position], view, curves)
                block[position].set_title(wrap(title))
        _finish(
            block[:panels], columns, output, text.format(label(output)), log=view.log
        )
        for axis in block[panels:]:
            axis.set_axis_off()
    _explain(canvas, figure, axes, view)
    return figure


def _draw_fan(axis: Any, view: View, curves: Curves) -> None:
    """Draw nested bands, the median and how sure it is, and some replicates."""
    levels, hue = view.store.layout.spec.bands.levels, colour(0)
    steps = np.arange(curves.band.shape[1])
    pairs = len(levels) // 2
    for pair in range(pairs):  # from the outermost to the innermost
        low, high = levels[pair], levels[-1 - pair]
        axis.fill_between(
            steps,
            curves.band[pair],
            curves.band[-1 - pair],
            color=hue,
            alpha=0.18 + 0.22 * pair / max(1, pairs - 1),
            linewidth=0,
            label=f"{write_percent(low)} to {write_percent(high)}",
        )
    if curves.rows is not None:
        _draw_replicates(axis, curves)
    sure = write_percent(view.store.layout.spec.bands.confidence)
    text: str | None = f"{sure} sure of a quantile"
    for bounds in curves.interval:
        if np.isnan(bounds).all():
            continue  # too few replicates
        for bound in bounds:
            axis.plot(steps, bound, color=hue, linewidth=0.5, linestyle=":", label=text)
            text = None
    if 0.5 in levels:
        middle = curves.band[levels.index(0.5)]
        axis.plot(steps, middle, color=hue, label="median")


def _draw_replicates(axis: Any, curves: Curves) -> None:
    """Draw the first replicates, and those that are outlying, which have a number."""
    if curves.rows is None:
        return
    usual = [i for i, n in enumerate(curves.numbers) if n not in curves.outlying]
    for position in usual[:REPLICATES]:
        text = "replicates" if position == usual[0] else None
        row = curves.rows[position]
        axis.plot(row, color="0.35", linewidth=0.5, label=text, zorder=1.5)
    strange = [i for i, n in enumerate(curves.numbers) if n in curves.outlying]
    for position in strange[:OUTLYING]:
        row, text = curves.rows[position], None
        if position == strange[0]:
            text = "outlying, with numbers"
        axis.plot(row, color=colour(1), linewidth=0.6, linestyle=stroke(1), label=text)
        if np.isfinite(row).any():
            peak = int(np.nanargmax(row))
            number = str(curves.numbers[position])
            axis.annotate(number, (peak, row[peak]), fontsize=6, color=colour(1))


def _draw_over(axis: Any, view: View, band: Floats, index: int, name: str) -> None:
    """Draw a median and the outermost band over those of other scenarios."""
    levels, steps = view.store.layout.spec.bands.levels, np.arange(band.shape[1])
    hue, own = colour(index), stroke(index)
    if len(levels) > 1:
        axis.fill_between(steps, band[0], band[-1], color=hue, alpha=0.2, linewidth=0)
        for edge in (band[0], band[-1]):  # so that it shows in grey, and through others
            axis.plot(steps, edge, color=hue, linewidth=0.4, linestyle=own)
    if 0.5 in levels:
        middle = band[levels.index(0.5)]
        axis.plot(steps, middle, color=hue, linestyle=own, label=name)


def _finish(panels: Any, columns: int, output: Output, text: str, *, log: bool) -> None:
    """Name the axes of an output's panels, which share their heights."""
    for position, axis in enumerate(panels):
        axis.set_xlabel(output.dims[0])
        axis.margins(x=0)
        if log:
            axis.set_yscale("log")
        if position:
            axis.sharey(panels[0])
        if position % columns:
            axis.tick_params(labelleft=False)
        else:
            axis.set_ylabel(wrap(text))


def _explain(canvas: Canvas, figure: Any, axes: Any, view: View) -> None:
    """Say once for all axes what is drawn."""
    if view.omission:
        figure.suptitle(view.omission, fontsize=7)
    handles: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, text in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(text, handle)
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=min(int(canvas.width // _LEGEND), len(handles)),
            title=textwrap.fill(view.caveat(), int(canvas.width * _LETTERS)),
            title_fontsize=7,
        )
