"""What a changed spec means for a file that was begun under an earlier one.

More replicates and other scenarios are growth; bands, limits, units and summaries
only recompute; every other change would mix two ensembles, and is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mpiens.calibrate import Calibrate
from mpiens.design import Design
from mpiens.fault import place
from mpiens.spec import Output, Spec, to_text

Parameters = Mapping[str, tuple[Any, ...]]
_SAMPLES = place("design", "samples")
_MOVING = "every point of an lhs moves with their number (sobol and halton keep theirs)"


@dataclass(frozen=True)
class Change:
    """How one spec differs from the one before it."""

    refused: tuple[str, ...]  # places in the spec
    grows: bool  # other scenarios, or more replicates
    relays: bool  # the file has to be laid down anew
    why: Mapping[str, str] = field(default_factory=dict)  # of a place, where not plain

    @property
    def none(self) -> bool:
        """Whether the file can be gone on with as it is."""
        return not (self.refused or self.relays)


def compare(
    old: Spec, new: Spec, old_parameters: Parameters, new_parameters: Parameters
) -> Change:
    """Say how a new spec differs; parameters are given with the model's defaults."""
    refused = [
        *_changed_ensemble(old, new),
        *_changed_parameters(old, new, old_parameters, new_parameters),
        *_changed_outputs(old, new),
    ]
    whole = ("shared", "prepare")
    refused += [place(s) for s in whole if getattr(old, s) != getattr(new, s)]
    if old.calibrate is not None and new.calibrate is not None:
        refused += _changed_calibration(old.calibrate, new.calibrate)
    grows = new.replicates > old.replicates or _keys(old) != _keys(new)
    cosmetic = old.bands != new.bands or _cosmetics(old) != _cosmetics(new)
    cosmetic |= old.aggregate != new.aggregate or old.calibrate != new.calibrate
    cosmetic |= old.precision != new.precision
    cosmetic |= old.ensemble.replicates != new.ensemble.replicates
    cosmetic |= old.join != new.join or old.windows != new.windows
    why = {where: _MOVING for where in refused if where == _SAMPLES}
    return Change(tuple(dict.fromkeys(refused)), grows, grows or cosmetic, why)


def match(old: Spec, new: Spec) -> dict[int, int]:
    """Return the scenarios of the new spec that the old one had, by index."""
    known = {key: index for index, key in enumerate(_keys(old))}
    return {i: known[k] for i, k in enumerate(_keys(new)) if k in known}


def _changed_calibration(old: Calibrate, new: Calibrate) -> Iterator[str]:
    """Yield what would make trials of two kinds one study."""
    for key in ("parameters", "targets", "objectives", "failed", "ordered"):
        if getattr(old, key) != getattr(new, key):
            yield place("calibrate", key)
    if new.trials < old.trials:
        yield place("calibrate", "trials")


def _keys(spec: Spec) -> list[tuple[str, Any]]:
    """Return what makes scenarios the same: their names, and those of windows a range.

    Windows are numbered, and cut otherwise they are others.
    """
    bounds = [None] if spec.windows is None else spec.windows.cut()
    return [(s.name, bounds[s.window or 0]) for s in spec.scenarios]


def _changed_ensemble(old: Spec, new: Spec) -> Iterator[str]:
    for key in ("model", "seed", "pairing", "reduce"):
        if getattr(old.ensemble, key) != getattr(new.ensemble, key):
            yield place("ensemble", key)
    for key in ("command", "stdin", "files", "read"):
        if getattr(old.model, key) != getattr(new.model, key):
            yield place("model", key)
    if (old.calibrate is None) != (new.calibrate is None):
        yield place("calibrate")
    fixed = old.calibrate is not None  # its trials have been scored
    if new.replicates < old.replicates or (fixed and new.replicates != old.replicates):
        yield place("ensemble", "replicates")


def _changed_parameters(
    old: Spec, new: Spec, before: Parameters, now: Parameters
) -> Iterator[str]:
    changed: dict[str, str] = {}
    names = (before.keys() | now.keys()) - {*new.calibrated}
    for index, former in match(old, new).items():
        for name in names:
            then = before[name][former] if name in before else None
            value = now[name][index] if name in now else None
            if not _is_same(then, value):
                changed.setdefault(_find_place(old, new, name, index), name)
    yield from sorted(changed)


def _find_place(old: Spec, new: Spec, name: str, index: int) -> str:
    """Return what has changed a parameter of a scenario, as a place in the new spec."""
    base = new.scenarios[index].base
    if new.design is not None and name in new.design.points:
        return _find_mover(old, new, new.design, name)
    if base is not None and name in new.bases[base]:
        return new.place_own(base, name)
    return place("parameters", name)


def _find_mover(old: Spec, new: Spec, design: Design, name: str) -> str:
    """Return what has moved the points of a design."""
    before = old.design
    if before is None or not (before.sampled and design.sampled):
        return design.place(name)
    if before.method != design.method:
        return place("design", "method")
    if old.ensemble.seed != new.ensemble.seed:
        return place("ensemble", "seed")
    if before.ranges.get(name) != design.ranges[name]:
        return design.place(name)
    if design.method == "lhs" and before.samples != design.samples:
        return _SAMPLES
    return place("design", "ranges")  # others, or their order


def _is_same(then: Any, value: Any) -> bool:
    """Whether a file's parameter is what a spec says: files keep numbers as floats."""
    if _is_number(then) and _is_number(value):
        return bool(then == value)
    # among numbers a file has NaN for a parameter that a scenario is not given
    texts = ["null" if v != v else to_text(v) for v in (then, value)]  # noqa: PLR0124
    return texts[0] == texts[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _changed_outputs(old: Spec, new: Spec) -> Iterator[str]:
    for name in sorted(old.outputs.keys() | new.outputs.keys()):
        then = old.outputs.get(name, Output())
        now = new.outputs.get(name, Output())
        for key in ("dims", "dtype", "keep", "length"):
            if getattr(then, key) != getattr(now, key):
                yield place(f"outputs.{name}", key)


def _cosmetics(spec: Spec) -> dict[str, Any]:
    return {
        name: (output.units, output.summaries, output.takeoff)
        for name, output in spec.outputs.items()
        if output.units or output.summaries or output.takeoff
    }
