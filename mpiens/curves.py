"""What [join] says: which outputs are joined to one curve, where, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge

from mpiens.fault import Fault, nearest, place

_STRICT = {"extra": "forbid", "strict": True}


@dataclass(frozen=True)
class Join:
    """How the pieces of one output are joined: what ``mpiens.join`` is given.

    ``x`` names the output that tells where each value belongs.
    """

    __pydantic_config__ = _STRICT
    x: str | None = None
    """The output that tells where each value lies."""
    taper: str | tuple[str | float, ...] | None = None
    """How a piece fades out at its ends: a window of scipy.signal, such as `"hann"` or
    `["kaiser", 6.0]`.
    """
    weights: Literal["variance"] | None = None
    """`"variance"`: one over the variance over replicates."""
    tolerance: Annotated[float, Ge(0)] | None = None
    """How far apart two x may lie and be the same point."""
    interpolate: bool = False
    """`true`: points that a piece lacks lie on a straight line between its own."""
    aligned: bool = False
    """`true`: pieces have no offsets."""
    credences: Mapping[str, float] = field(default_factory=dict)
    """What a piece counts, from 0 to 1, by its name."""
    anchor: float | tuple[float, float] = 0.0
    """The offset of the first piece, or a point `[x, value]` of the curve."""
    derivative: bool = False
    """`true`: the slopes are joined."""
    integrate: bool = False
    """`true`: and integrated again."""
    bootstrap: Annotated[int, Ge(0)] = 1000
    """How many resamples of replicates tell the error."""

    def options(self, pieces: Sequence[str]) -> dict[str, Any]:
        """Return the keywords of ``mpiens.join`` for pieces of these names."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)[1:]}
        return found | {"credences": [self.credences.get(name, 1.0) for name in pieces]}

    def faults(self, section: str, pieces: Sequence[str]) -> Iterator[Fault]:
        """Yield what is wrong with it; ``section`` is what it stands in."""
        for name, credence in self.credences.items():
            where = place(section, "credences", name)
            if name not in pieces:
                yield Fault(where, f"is no piece{nearest(name, pieces)}")
            elif not 0 <= credence <= 1:
                yield Fault(where, f"{credence} is no credence; it is from 0 to 1")
        if self.integrate and not self.derivative:
            text = "is of slopes; give derivative = true, or drop it"
            yield Fault(place(section, "integrate"), text)
        if self.aligned and self.derivative:
            text = "cannot go with derivative, as slopes have no offsets; drop either"
            yield Fault(place(section, "aligned"), text)
        elif (self.aligned or self.derivative) and not self.integrate and self.anchor:
            text = f"{self.anchor!r} has no use where no offset is sought; drop it"
            yield Fault(place(section, "anchor"), text)
        if self.bootstrap == 1:
            text = "1 resample has no scatter; give 0, or more"
            yield Fault(place(section, "bootstrap"), text)
        if (wrong := self._judge_taper()) is not None:
            yield Fault(place(section, "taper"), wrong)

    def document(self) -> dict[str, Any]:
        """Return the section as the user writes it."""
        fields = dataclasses.asdict(self)
        return {k: v for k, v in fields.items() if v is not None and v != {}}

    def _judge_taper(self) -> str | None:
        """Say what is wrong with a taper, by joining two small pieces with it."""
        if self.taper in (None, "hann", "boxcar"):
            return None
        from mpiens.joining import join  # noqa: PLC0415  (only to judge a taper)

        pieces = [[0.0, 1.0, 2.0, 3.0], [1.0, 2.0, 3.0, 4.0]]
        try:
            join(pieces, pieces, taper=self.taper)
        except (ValueError, ImportError) as error:
            return str(error)
        return None
