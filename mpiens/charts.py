"""Charts of summaries: their replicates, over parameters of a design, over a cube."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens import bands
from mpiens.canvas import Canvas, colour, wrap
from mpiens.design import Range
from mpiens.row import Output
from mpiens.spec import Group
from mpiens.view import View, label

Floats = NDArray[np.float64]

_SPREAD = 0.25  # of the place of a scenario, over which its replicates lie


def draw_summaries(canvas: Canvas, view: View) -> Any:
    """Draw all replicates of each summary, with median and outermost levels.

    A panel each, and in it a place for each scenario.
    """
    summaries = [*view.summaries()]
    names = [view.name(scenario) for scenario in view.chosen]
    high = 0.9 + 0.22 * len(names)
    figure, axes = canvas.lay_out(len(summaries), 1, height=high)
    levels = view.store.layout.spec.bands.levels
    for (output, kind), axis in zip(summaries, axes[:, 0], strict=True):
        for place, scenario in enumerate(view.chosen):
            own = view.samples(output, kind, scenario)
            own = own[np.isfinite(own)]
            if not len(own):
                continue
            # spread evenly, in an order that has nothing to do with the values
            shift = _SPREAD * (2 * (np.arange(len(own)) * 0.618034 % 1) - 1)
            hue = colour(place)
            axis.plot(own, place + shift, ".", color=hue, alpha=0.4, markersize=3)
            low, middle, top = bands.quantiles(own, [levels[0], 0.5, levels[-1]])
            axis.plot([low, top], [place, place], color="black", linewidth=0.8)
            axis.plot([middle], [place], "|", color="black", markersize=9)
        axis.set_yticks(range(len(names)), names)
        axis.invert_yaxis()
        axis.set_xlabel(label(output, kind))
        if view.log:
            axis.set_xscale("log")
    if view.omission:
        figure.suptitle(view.omission, fontsize=7)
    return figure


def draw_points(canvas: Canvas, view: View) -> Any:
    """Draw each summary against each parameter of a sampled design.

    The mean over replicates, of the first case; a row each, and a column a parameter.
    """
    spec = view.store.layout.spec
    ranges = {} if spec.design is None else spec.design.ranges
    summaries, case = [*view.summaries()], spec.cases[0]
    done = view.done[[*case.scenarios]].any(axis=1)
    own = np.array(case.scenarios)[done]
    figure, axes = canvas.lay_out(len(summaries), len(ranges), share="row")
    for (output, kind), row in zip(summaries, axes, strict=True):
        means = np.array([view.samples(output, kind, i).mean() for i in own.tolist()])
        row[0].set_ylabel(wrap(f"mean {label(output, kind)}"))
        if view.log:
            row[0].set_yscale("log")
        for (name, where), axis in zip(ranges.items(), row, strict=True):
            values = [spec.scenarios[i].parameters[name] for i in own.tolist()]
            _scatter(axis, where, values, means)
            axis.set_xlabel(name)
    if len(spec.cases) > 1:
        figure.suptitle(case.name, fontsize=8)
    return figure


def _scatter(axis: Any, where: Range, values: Sequence[Any], means: Floats) -> None:
    """Draw means against values of a parameter, which may be choices."""
    if where.choices is not None:
        names = [*map(str, where.choices)]
        values = [names.index(str(value)) for value in values]
        axis.set_xticks(range(len(names)), names)
    elif where.scale != "linear":
        axis.set_xscale(where.scale)
    axis.plot(values, means, ".", color=colour(0), alpha=0.5, markersize=3)


def draw_cube(canvas: Canvas, view: View) -> Any:
    """Draw the median of each summary as a heat map over the first two axes of a cube.

    A row each, with a column for each case that the two axes are crossed with.
    """
    spec = view.store.layout.spec
    across, along = [*spec.sweep][:2]
    summaries, groups = [*view.summaries()], [*_group(view, across, along)]
    figure, axes = canvas.lay_out(len(summaries), len(groups), height=2.2)
    for (output, kind), row in zip(summaries, axes, strict=True):
        maps = [_map(view, output, kind, own, (across, along)) for own in groups]
        low, high = (f([f(m) for m in maps]) for f in (np.nanmin, np.nanmax))
        if low == high:  # one colour for all, from the middle of the scale
            low, high = low - 0.5, high + 0.5
        for own, values, axis in zip(groups, maps, row, strict=True):
            drawn = axis.imshow(
                values.T,
                origin="lower",
                aspect="auto",
                vmin=low,
                vmax=high,
                cmap="cividis",
            )
            _name_ticks(axis.set_xticks, spec.sweep[across])
            _name_ticks(axis.set_yticks, spec.sweep[along])
            axis.set_xlabel(across)
            axis.set_title(own.name)
        row[0].set_ylabel(along)
        figure.colorbar(drawn, ax=[*row], label=wrap(f"median {label(output, kind)}"))
    return figure


def _group(view: View, across: str, along: str) -> Iterator[Group]:
    """Yield the scenarios that differ in nothing but the two axes."""
    found: dict[str, list[int]] = {}
    for index, scenario in enumerate(view.store.layout.spec.scenarios):
        if view.scenarios and scenario.name not in view.scenarios:
            continue
        rest = [
            f"{a}={v}" for a, v in scenario.axes.items() if a not in (across, along)
        ]
        parts = [scenario.base, *rest, scenario.point]
        name = ",".join(part for part in parts if part)
        found.setdefault(name, []).append(index)
    for name, own in found.items():
        yield Group(name, tuple(own))


def _map(
    view: View, output: Output, kind: str, own: Group, axes: tuple[str, str]
) -> Floats:
    """Return the medians of a group over two axes; NaN where there is no replicate."""
    spec = view.store.layout.spec
    values = [[*map(repr, spec.sweep[axis])] for axis in axes]
    found = np.full([len(column) for column in values], np.nan)
    for index in own.scenarios:
        place = tuple(
            column.index(repr(spec.scenarios[index].axes[axis]))
            for axis, column in zip(axes, values, strict=True)
        )
        samples = view.samples(output, kind, index)
        if len(samples):
            found[place] = bands.quantiles(samples, [0.5])[0]
    return found


def _name_ticks(set_ticks: Any, values: Sequence[Any]) -> None:
    """Name at most eight of the values along an axis."""
    step = max(1, -(-len(values) // 8))
    places = range(0, len(values), step)
    texts = [
        f"{values[i]:g}" if isinstance(values[i], float) else str(values[i])
        for i in places
    ]
    set_ticks(places, texts)
