"""Cubes: axes crossed with each other, some of them in step, some points left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mpiens.fault import Fault, nearest, place

Axes = Mapping[str, tuple[Any, ...]]
Zips = Sequence[Sequence[str]]
Exclusions = Sequence[Mapping[str, Any]]
_ZIP, _EXCLUDE = place("sweep", "zip"), place("sweep", "exclude")


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


def _walk(
    axes: Axes, zips: Zips, exclude: Exclusions
) -> Iterator[tuple[dict[str, int], list[int]]]:
    """Yield each point by its index on every axis, and which exclusions match it."""
    partners = {axis: tuple(group) for group in zips for axis in group}
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
