"""Pictures of a search and of joined curves: how it went, and how well it fits."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens.calibrate import Domain
from mpiens.canvas import Canvas, colour, stroke, wrap
from mpiens.layout import COMPLETE, Series
from mpiens.ledger import Ledger
from mpiens.view import View, label

Floats = NDArray[np.float64]

PARAMETERS = 4  # of which pairs are drawn
_COLUMNS = 2


def draw_search(canvas: Canvas, view: View) -> Any:
    """Draw a calibration: losses as they came, the best trial's fit, parameters."""
    ledger = Ledger.of(view.store)
    complete = np.flatnonzero(ledger.state == COMPLETE)
    panels: list[Callable[[Any], None]] = [partial(_draw_progress, ledger, complete)]
    for name, series in view.store.layout.observed.items():
        panels.append(partial(_draw_fit, view, ledger, name, series))
    calibrate = view.store.layout.spec.calibrate
    domains = {} if calibrate is None else calibrate.parameters
    pairs = itertools.combinations([*domains.items()][:PARAMETERS], 2)
    panels += [partial(_draw_pair, ledger, complete, pair) for pair in pairs]
    rows = -(-len(panels) // _COLUMNS)
    figure, axes = canvas.lay_out(rows, _COLUMNS, height=2.2)
    for draw, axis in itertools.zip_longest(panels, axes.flat):
        if draw is None:
            axis.set_axis_off()
        else:
            draw(axis)
    return figure


def _draw_progress(ledger: Ledger, complete: NDArray[np.int64], axis: Any) -> None:
    """Draw every loss in the order in which trials were told, and the least so far."""
    order = complete[np.argsort(ledger["told_order"][complete])]
    losses, told = ledger["loss"][order], np.arange(1, len(order) + 1)
    axis.plot(told, losses, ".", color=colour(0), markersize=3, alpha=0.5)
    least = np.fmin.accumulate(losses) if len(losses) else losses
    axis.plot(told, least, color="black", drawstyle="steps-post", label="best so far")
    axis.set_xlabel("trials told")
    axis.set_ylabel("loss")
    if len(losses) and (losses > 0).all():
        axis.set_yscale("log")
    axis.legend()


def _draw_fit(view: View, ledger: Ledger, name: str, series: Series, axis: Any) -> None:
    """Draw what was observed, and the replicates of the best trial."""
    output = view.store.layout.output(series.output)
    steps = np.arange(len(series.values))
    if ledger.best is not None:
        each = view.store.layout.spec.per_trial
        for scenario in range(ledger.best * each, (ledger.best + 1) * each):
            own = view.name(scenario).partition(",")[2]
            if series.scenario not in (None, own):
                continue
            rows = view.curves(output, scenario).rows
            text: str | None = f"trial {ledger.best}, the best"
            for row in () if rows is None else rows:
                axis.plot(row, color=colour(0), linewidth=0.7, alpha=0.6, label=text)
                text = None
    axis.plot(
        steps, series.values, "o", color=colour(1), markersize=3, label="observed"
    )
    axis.set_title(name)
    axis.set_xlabel(output.dims[0])
    axis.set_ylabel(wrap(label(output)))
    axis.legend()


def _draw_pair(
    ledger: Ledger,
    complete: NDArray[np.int64],
    pair: tuple[tuple[str, Domain], tuple[str, Domain]],
    axis: Any,
) -> None:
    """Draw the trials over two parameters: the better, the darker."""
    if not len(complete):
        return
    ranks = np.argsort(np.argsort(ledger["loss"][complete])) / len(complete)
    order = np.argsort(-ranks)
    columns = []
    for (name, domain), which in zip(pair, ("x", "y"), strict=True):
        values = [ledger.parameters(int(t))[name] for t in complete[order]]
        if domain.choices is not None:
            names = [*map(str, domain.choices)]
            values = [names.index(str(value)) for value in values]
            getattr(axis, f"set_{which}ticks")(range(len(names)), names)
        elif domain.scale in ("log", "logit"):
            getattr(axis, f"set_{which}scale")(domain.scale)
        getattr(axis, f"set_{which}label")(name)
        columns.append(values)
    axis.scatter(*columns, c=ranks[order], cmap="cividis", s=8, vmin=0, vmax=1)
    axis.plot(columns[0][-1], columns[1][-1], "*", color=colour(1), label="the best")
    axis.legend()


def draw_joined(canvas: Canvas, view: View) -> Any:
    """Draw every joined curve with its errors, and below what its pieces differ by."""
    layout = view.store.layout
    joints = [joint for joint in layout.joints if view.wants(joint.name)]
    several, _ = layout.curve_shape
    figure, axes = canvas.lay_out(2 * len(joints), 1, height=2.0)
    for number, joint in enumerate(joints):
        top, bottom = axes[2 * number, 0], axes[2 * number + 1, 0]
        path, output = f"/joined/{joint.name}", layout.output(joint.name)
        told = {key: view.store.read(f"{path}/{key}") for key in ("x", "y", "error")}
        for index, curve in enumerate(layout.spec.curves):
            own = {k: array[index] if several else array for k, array in told.items()}
            there = np.isfinite(own["x"])
            x, y, error = (own[key][there] for key in ("x", "y", "error"))
            text, hue = curve.name if several else "joined", colour(index)
            top.plot(x, y, color=hue, linestyle=stroke(index), label=text)
            if np.isfinite(error).any():
                top.fill_between(
                    x,
                    y - 1.96 * error,
                    y + 1.96 * error,
                    color=hue,
                    alpha=0.25,
                    linewidth=0,
                    label="1.96 errors",
                )
            _draw_residuals(bottom, view, path, index if several else None, hue)
        top.set_ylabel(wrap(label(output)))
        top.legend()
        along = layout.spec.windows.parameter if layout.spec.windows else "x"
        top.set_xlabel(along)
        bottom.set_xlabel("overlap")
        bottom.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _draw_residuals(
    axis: Any, view: View, path: str, index: int | None, hue: str
) -> None:
    """Draw how much the two pieces of every overlap differ."""
    if f"{path}/residuals/rms" not in view.store:
        axis.set_axis_off()
        return
    scaled = view.store.read(f"{path}/residuals/scaled")
    rms = view.store.read(f"{path}/residuals/rms")
    if index is not None:
        scaled, rms = scaled[index], rms[index]
    known = bool(np.isfinite(scaled).any())
    values = scaled if known else rms
    axis.plot(values, "o", color=hue, markersize=3)
    if known:
        axis.axhline(1, color="black", linewidth=0.6)
    axis.set_ylabel("residual, in errors" if known else "residual, rms")
    axis.set_ylim(bottom=0)
