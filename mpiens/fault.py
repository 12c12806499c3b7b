"""What a user can mend: faults, each with its place, told all at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

_TOLD = 8  # faults of one file of data


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that the user can mend: where it stands, and what is wrong there."""

    place: str
    text: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.place}{': ' if self.place else ''}{self.text}"


class SpecError(ValueError):
    """The user's input is wrong: all faults at once, one sentence each."""

    def __init__(self, faults: list[Fault], path: str = "") -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.faults, self.path)

    def lines(self) -> Iterator[str]:
        """Yield one line per fault, as a compiler would print it."""
        for fault in self.faults:
            line = f":{fault.line}" if fault.line is not None else ""
            yield f"{self.path}{line}: {fault}" if self.path else str(fault)


def place(section: str, *keys: str) -> str:
    """Write a place in the file as the user wrote it: ``[section] key``."""
    return " ".join([f"[{section}]", ".".join(keys)]) if keys else f"[{section}]"


def nearest(wrong: str, known: Any) -> str:
    """Return ``", did you mean ...?"`` where one of the known names is near."""
    found = difflib.get_close_matches(wrong, list(known), n=1)
    return f"; did you mean {found[0]}?" if found else ""


def shorten(faults: list[Fault]) -> list[Fault]:
    """Return the first faults of a file and how many there are beside them."""
    told = faults[:_TOLD]
    if more := len(faults) - len(told):
        told.append(Fault(told[0].place, f"and {more:,} more faults like these"))
    return told
