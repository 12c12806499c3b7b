"""Cubes: axes crossed with each other, some of them in step, some points left out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mpiens.fault import Fault, nearest, place

Axes = Mapping[str, tuple[Any, ...]]
Zips = tuple[tuple[str, ...], ...]
Exclusions = tuple[Mapping[str, Any], ...]
_ZIP, _EXCLUDE = place("sweep", "zip"), place("sweep", "exclude")


def decode(part: dict[str, Any]) -> tuple[Axes, Zips, Exclusions, list[Fault]]:
    """Return axes, zips and exclusions of [sweep]; with faults, the sound axes."""
    axes, faults = {}, []
    groups, entries = part.get("zip", []), part.get("exclude", [])
    for axis, values in part.items():
        if axis in ("zip", "exclude"):
            continue
        if isinstance(values, list) and values:
            axes[axis] = tuple(values)
        else:
            text = f"should be a list of values, not {values!r}"
            faults.append(Fault(place("sweep", axis), text))
    if not _is_list(groups, lambda g: g and _is_list(g, lambda a: isinstance(a, str))):
        text = f'should list groups of axes, as in [["a", "b"]], not {groups!r}'
        faults.append(Fault(_ZIP, text))
        groups = []
    if not _is_list(entries, lambda entry: entry and isinstance(entry, dict)):
        text = f"should list points, as in [{{ a = 1, b = 2 }}], not {entries!r}"
        faults.append(Fault(_EXCLUDE, text))
        entries = []
    # an axis that is at fault itself has been told of
    zips = tuple(tuple(a for a in g if a in axes or a not in part) for g in groups)
    faults += check_zips(axes, zips)
    if not faults:
        faults += check_exclusions(axes, zips, tuple(entries))
    if faults:
        return axes, (), (), faults
    return axes, zips, tuple(entries), []


def cross(
    axes: Axes, zips: Zips = (), exclude: Exclusions = ()
) -> Iterator[dict[str, Any]]:
    """Yield the points of a cube as {axis: value}, the last axis fastest.

    Zipped axes walk in step; their group takes the place of the first of them.
    """
    for point, exclusions in _walk(axes, zips, exclude):
        if not exclusions:
            yield {axis: values[point[axis]] for axis, values in axes.items()}


def check_zips(axes: Axes, zips: Zips) -> Iterator[Fault]:
    """Yield what is wrong with the axes that shall walk in step."""
    zipped: set[str] = set()
    for group in zips:
        for axis in group:
            if axis not in axes:
                yield Fault(_ZIP, f"{axis!r} is no axis{nearest(axis, axes)}")
            elif axis in zipped:
                text = f"names {axis!r} twice; an axis walks with one group"
                yield Fault(_ZIP, text)
            zipped.add(axis)
        sizes = {axis: len(axes[axis]) for axis in group if axis in axes}
        if len({*sizes.values()}) > 1:
            told = " and ".join(f"{axis} has {size}" for axis, size in sizes.items())
            text = f"{told} values; axes that walk together need equally many"
            yield Fault(_ZIP, text)


def check_exclusions(axes: Axes, zips: Zips, exclude: Exclusions) -> Iterator[Fault]:
    """Yield what is wrong with the points to be left out; the zips have no fault."""
    strange = [axis for entry in exclude for axis in entry if axis not in axes]
    for axis in dict.fromkeys(strange):
        yield Fault(_EXCLUDE, f"{axis!r} is no axis{nearest(axis, axes)}")
    if strange or not exclude:
        return
    used: set[int] = set()
    remain = False
    for _, exclusions in _walk(axes, zips, exclude):
        used.update(exclusions)
        remain |= not exclusions
    for number, entry in enumerate(exclude):
        if number not in used:
            text = f"{dict(entry)} matches no point; name values that meet in the sweep"
            yield Fault(_EXCLUDE, text)
    if not remain:
        yield Fault(_EXCLUDE, "leaves no point of the sweep; exclude fewer")


def _is_list(value: Any, good: Callable[[Any], Any]) -> bool:
    return isinstance(value, list) and all(map(good, value))


def _walk(
    axes: Axes, zips: Zips, exclude: Exclusions
) -> Iterator[tuple[dict[str, int], list[int]]]:
    """Yield each point by its index on every axis, and which exclusions match it."""
    partners = {axis: group for group in zips for axis in group}
    groups = [*dict.fromkeys(partners.get(axis, (axis,)) for axis in axes)]
    matches = [
        {axis: _find(value, axes[axis]) for axis, value in entry.items()}
        for entry in exclude
    ]
    for indices in itertools.product(*(range(len(axes[g[0]])) for g in groups)):
        point = {a: i for g, i in zip(groups, indices, strict=True) for a in g}
        yield (
            point,
            [
                number
                for number, match in enumerate(matches)
                if all(point[axis] in found for axis, found in match.items())
            ],
        )


def _find(wanted: Any, values: tuple[Any, ...]) -> set[int]:
    """Return where a value stands; 1 is 1.0, and is not true."""
    return {
        index
        for index, value in enumerate(values)
        if value == wanted and isinstance(value, bool) == isinstance(wanted, bool)
    }
