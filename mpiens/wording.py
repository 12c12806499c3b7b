"""How numbers, shares and summaries are written for people."""

from __future__ import annotations

import math
from collections.abc import Callable

from mpiens.row import Output


def name_summary(output: Output, kind: str) -> str:
    """Return what a summary is called, with its units if it has any."""
    units = find_units(output, kind)
    return f"{output.name}, {kind.replace('_', ' ')}" + (f" ({units})" if units else "")


def find_units(output: Output, kind: str | None = None) -> str | None:
    """Return the units of an output, or of a summary: a time is along its dimension."""
    if kind == "peak_time":
        return output.dims[0] if output.dims else None
    return output.units


def write_number(value: float) -> str:
    """Write a number as people read it; what is none is a dash."""
    if math.isnan(value):
        return "-"
    return (
        f"{value:,.0f}"
        if abs(value) >= 100 or value == round(value)
        else f"{value:.3g}"
    )


def enclose(
    value: float,
    interval: tuple[float, float],
    write: Callable[[float], str] = write_number,
) -> str:
    """Write a number and its interval."""
    low, high = map(write, interval)
    return f"{write(value)} [{low}, {high}]"


def write_share(value: float) -> str:
    """Write a share, as percents."""
    if not math.isfinite(value):
        return "-" if math.isnan(value) else f"{value:+}"
    return f"{100 * value:.3g}%"


def name_better(kind: str, better: str | None) -> str:
    """Return what a probability is of: a time is early or late."""
    if kind == "peak_time":
        return "later" if better == "higher" else "earlier"
    return "better" if better else "lower"


def turn_share(
    averted: float, interval: tuple[float, float], better: str | None
) -> tuple[str, float, tuple[float, float]]:
    """Return what an averted share is called where higher is better, and the share."""
    if better == "higher":
        return "gained", -averted, (-interval[1], -interval[0])
    return "averted", averted, interval


def write_percent(level: float) -> str:
    """Write a level, or how sure something is, as percents."""
    return f"{100 * level:g}%"
