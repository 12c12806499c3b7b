"""Which picture a result file makes, and making it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mpiens import charts, fans, traces
from mpiens.canvas import Canvas, check_form, save, styled
from mpiens.fault import Fault, SpecError
from mpiens.view import View

Draw = Callable[[Canvas, View], Any]
KINDS: dict[str, Draw] = {
    "search": traces.draw_search,
    "joined": traces.draw_joined,
    "points": charts.draw_points,
    "cube": charts.draw_cube,
    "fans": fans.draw_fans,
    "differences": fans.draw_differences,
    "summaries": charts.draw_summaries,
}
"""By the name that ``--kind`` takes; the first that a file can make is its default."""


def list_kinds(view: View) -> Iterator[str]:
    """Yield the pictures that can be made of a file."""
    layout, spec = view.store.layout, view.store.layout.spec
    lines, summaries = (
        any(True for _ in view.lines()),
        any(True for _ in view.summaries()),
    )
    design = spec.design is not None and spec.design.sampled
    there = {
        "search": spec.calibrate is not None,
        "joined": any(view.wants(joint.name) for joint in layout.joints),
        "points": design and summaries and not view.scenarios,
        "cube": len(spec.sweep) > 1 and not spec.zips and summaries,
        "fans": lines,
        "differences": lines and layout.has_baseline and view.complete,
        "summaries": summaries,
    }
    if spec.calibrate is not None:
        there = {"search": True}
    if view.done.any():
        yield from (kind for kind in KINDS if there.get(kind))


def draw(
    view: View, file: Path, *, kind: str | None, size: str, style: Path | None
) -> None:
    """Draw a picture of a result file; SpecError with what can be drawn, where not."""
    check_form(file)
    known = [*list_kinds(view)]
    if not known:
        text = "has nothing to draw yet: no task that is wanted is done"
        raise SpecError([Fault("", text)], str(view.store.path))
    if kind is not None and kind not in known:
        text = f"{kind} is not in this file, which makes {', '.join(known)}"
        raise SpecError([Fault("--kind", text)], str(view.store.path))
    with styled(size, style) as canvas:
        save(KINDS[kind or known[0]](canvas, view), file)
