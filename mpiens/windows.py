"""What [windows] says: a range cut into bins, each reaching into its neighbours."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from mpiens.fault import Fault, place

WINDOW = "window"  # what the scenarios of windows are named by: window=3
LOW, HIGH = "low", "high"  # the parameters by which a model is told of its window
SHOWN = 32  # windows that are told one by one
_SECTION = "windows"
_STRICT = {"extra": "forbid", "strict": True}


@dataclass(frozen=True, slots=True)
class Window:
    """A bin, from ``first`` to ``last``, and what it is extended to: low and high."""

    first: float
    last: float
    low: float
    high: float

    @property
    def parameters(self) -> Mapping[str, float]:
        """What the model is given."""
        return {LOW: self.low, HIGH: self.high}


@dataclass(frozen=True)
class Windows:
    """A range of one parameter, and how it is cut.

    Bins are between ``edges``, or ``bins`` of equal width from ``low`` to ``high``, or
    of equal cost as an earlier result file has measured it, the ``pilot``.  ``overlap``
    is the share of a neighbour's width that a window reaches into it.
    """

    __pydantic_config__ = _STRICT
    parameter: str
    """What the range is of, for axes and names."""
    low: float | None = None
    """Lower end of the range."""
    high: float | None = None
    """Upper end of the range."""
    bins: Annotated[int, Ge(1)] | None = None
    """How many windows."""
    edges: tuple[float, ...] | None = None
    """Or the edges of their bins."""
    cost: Literal["equal"] | None = None
    """`"equal"`: bins that take equally long, as the `pilot` tells."""
    pilot: str | None = None
    """A result file of windows on this range."""
    overlap: Annotated[float, Ge(0), Le(1)] = 0.25
    """The share of a neighbour's width that a window reaches into it."""

    def faults(self) -> Iterator[Fault]:
        """Yield what is wrong with it."""
        given = [k for k in ("low", "high", "bins") if getattr(self, k) is not None]
        if self.edges is not None and given and self.cost is None:
            text = f"cannot go with {' and '.join(given)}; keep either"
            yield Fault(place(_SECTION, "edges"), text)
            return
        if self.edges is None or self.cost is not None:
            for key in ("low", "high", "bins"):
                if getattr(self, key) is None:
                    text = "is missing; give low, high and bins, or edges"
                    yield Fault(place(_SECTION, key), text)
        if self.cost is not None and self.pilot is None:
            text = 'is missing, and cost = "equal" needs it; name a result file of '
            yield Fault(place(_SECTION, "pilot"), f"{text}windows on this range")
        if self.cost is None and self.pilot is not None:
            text = 'tells what a range costs; give cost = "equal", or drop it'
            yield Fault(place(_SECTION, "pilot"), text)
        yield from self._check_range()

    def _check_range(self) -> Iterator[Fault]:
        """Yield ends and edges that do not rise, or are not those of the range."""
        ends = [end for end in (self.low, self.high) if end is not None]
        for key in ("low", "high"):
            if not math.isfinite(getattr(self, key) or 0.0):
                text = f"{getattr(self, key)} is no end of a range; give a finite one"
                yield Fault(place(_SECTION, key), text)
        if len(ends) == 2 and not ends[0] < ends[1]:
            text = f"{ends[0]:g} is not below high = {ends[1]:g}; a range rises"
            yield Fault(place(_SECTION, "low"), text)
        if self.edges is None:
            return
        where, edges = place(_SECTION, "edges"), list(self.edges)
        finite = all(map(math.isfinite, edges))
        if len(edges) < 2 or not finite or not _rise(edges):
            yield Fault(where, f"{edges} should rise, be finite, and be two or more")
        elif self.cost is not None and (
            [edges[0], edges[-1]] != ends or len(edges) != (self.bins or 0) + 1
        ):
            text = "are not those of low, high and bins; leave edges out, to have them"
            yield Fault(where, f"{text} made of the pilot")

    @property
    def waits(self) -> bool:
        """Whether its edges are to be made of a pilot that has not been read yet.

        Until then bins have equal width.
        """
        return self.cost is not None and self.edges is None

    @property
    def bin_edges(self) -> tuple[float, ...]:
        """The edges of all bins; shape (bins + 1,)."""
        if self.edges is not None:
            return self.edges
        if self.low is None or self.high is None or self.bins is None:
            raise ValueError("a range has two ends, and a number of bins")
        width = self.high - self.low
        inner = (self.low + width * i / self.bins for i in range(self.bins))
        return *inner, self.high

    def cut(self) -> tuple[Window, ...]:
        """Return the windows, in order."""
        return cut(self.bin_edges, self.overlap)

    def describe(self) -> Iterator[str]:
        """Yield what ``mpiens check`` says of it, a line for each thing to know."""
        windows = self.cut()
        how = f", of equal cost by {self.pilot}" if self.cost else ""
        yield (
            f"windows of {self.parameter}: {len(windows)} from "
            f"{windows[0].first:g} to {windows[-1].last:g}{how}, overlap "
            f"{self.overlap:g} of the neighbour"
        )
        for index, window in enumerate(windows[:SHOWN]):
            bounds = f"{window.low:g} to {window.high:g}"
            own = f"(bin {window.first:g} to {window.last:g})"
            yield f"  {name_window(index)}: {bounds} {own}"
        if len(windows) > SHOWN:
            yield f"  and {len(windows) - SHOWN} more"

    def document(self) -> dict[str, Any]:
        """Return the section as the user writes it, and the edges of a pilot."""
        fields = dataclasses.asdict(self)
        return {key: value for key, value in fields.items() if value is not None}


def cut(edges: Sequence[float], overlap: float) -> tuple[Window, ...]:
    """Return a window for each bin between edges that rise; shape (bins,).

    Each reaches into either neighbour by a share of that neighbour's width, and none
    beyond the ends of the range.
    """
    bins = [*itertools.pairwise(edges)]
    found = []
    for index, (first, last) in enumerate(bins):
        before = bins[index - 1][0] if index else first
        after = bins[index + 1][1] if index + 1 < len(bins) else last
        low = _between(first, before, overlap)
        found.append(Window(first, last, low, _between(last, after, overlap)))
    return tuple(found)


def name_window(index: int) -> str:
    """Return the name of a window, such as ``window=3``."""
    return f"{WINDOW}={index}"


def equalise(
    lows: Sequence[float],
    highs: Sequence[float],
    seconds: Sequence[float],
    ends: tuple[float, float],
    bins: int,
) -> tuple[float, ...]:
    """Return edges of bins that cost the same, by what windows have cost.

    Windows from ``lows`` to ``highs`` took ``seconds``, each spread evenly over its
    width; where several lie the cost of a place is their mean, so that it is constant
    in pieces.  Raises ValueError where no window lies on a part of the range.
    """
    marks = sorted({*lows, *highs, *ends})
    marks = [mark for mark in marks if ends[0] <= mark <= ends[1]]
    total = [0.0]
    for left, right in itertools.pairwise(marks):
        rates = [
            second / (high - low)
            for low, high, second in zip(lows, highs, seconds, strict=True)
            if low <= left < high
        ]
        if not rates:
            raise ValueError(f"has no window from {left:g} to {right:g}")
        total.append(total[-1] + sum(rates) / len(rates) * (right - left))
    if not total[-1] > 0:
        raise ValueError("has measured no time")
    inner = (_invert(marks, total, total[-1] * i / bins) for i in range(1, bins))
    return ends[0], *inner, ends[1]


def _invert(marks: Sequence[float], total: Sequence[float], wanted: float) -> float:
    """Return where a cost, rising along marks, reaches a value."""
    index = next(i for i, reached in enumerate(total) if reached >= wanted)
    index = max(index, 1)
    share = (wanted - total[index - 1]) / (total[index] - total[index - 1])
    return _between(marks[index - 1], marks[index], share)


def _between(start: float, end: float, share: float) -> float:
    """Return what lies a share of the way from start to end: never beyond either."""
    if share >= 1:
        return end
    reached = start + (end - start) * share
    return min(max(reached, min(start, end)), max(start, end))


def _rise(values: Sequence[float]) -> bool:
    return all(a < b for a, b in itertools.pairwise(values))
