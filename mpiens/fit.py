"""What is shown of a calibration: the best trials, the way there, and the time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpiens import bands
from mpiens.confirm import DRAW
from mpiens.grid import Grid
from mpiens.layout import COMPLETE, DONE, FAILED_TRIAL, TRIAL_STATE
from mpiens.ledger import Ledger
from mpiens.progress import format_seconds
from mpiens.store import Store

SHOWN = 10  # trials
_MARKS = (1, 2, 5)  # of each power of ten: where the best loss so far is told


class Fit:
    """A calibration's trials, as they are shown."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._ledger = Ledger.of(store)
        self._calibrate = store.layout.spec.calibrate

    def document(self) -> dict[str, Any]:
        """Return all of it, for JSON."""
        ledger = self._ledger
        trials = [
            {
                "trial": trial,
                "number": int(ledger["number"][trial]),
                "stream": int(ledger["stream"][trial]),
                "state": TRIAL_STATE[int(ledger.state[trial])],
                "loss": float(ledger["loss"][trial]),
                "losses": ledger.losses(trial),
                "parameters": dict(ledger.parameters(trial)),
            }
            for trial in range(ledger.asked)
        ]
        best = ledger.best
        return {"best": best, "trials": trials, "seconds": self.phases()}

    def draw(self) -> Any:
        """Return the table of the best trials."""
        ledger = self._ledger
        drawn = Grid("best trials")
        calibrate = self._calibrate
        targets = [*calibrate.targets] if calibrate else []
        parameters = [*calibrate.parameters] if calibrate else []
        drawn.add_columns("trial", ["loss", *targets, *parameters])
        for trial in self._ledger.ranking()[:SHOWN]:
            own, losses = ledger.parameters(trial), ledger.losses(trial) or {}
            numbers = [float(ledger["loss"][trial]), *(losses[n] for n in targets)]
            cells = [_write(number) for number in numbers]
            cells += [_write(own[name]) for name in parameters]
            drawn.add_row([str(trial), *cells])
        return drawn.drawn

    def remarks(self) -> Iterator[str]:
        """Yield how far it is, how the loss fell, and where the time went."""
        state = self._ledger.state
        complete = int((state == COMPLETE).sum())
        failed = int((state == FAILED_TRIAL).sum())
        running = self._ledger.asked - complete - failed
        counts = f"{complete:,} complete, {failed:,} failed"
        counts += f", {running:,} running" if running else ""
        wanted = len(state)
        yield f"{self._ledger.asked:,} trials of {wanted:,} at most: {counts}"
        if progress := ", ".join(self._tell_progress()):
            yield f"best loss after so many trials: {progress}"
        told = self.phases()
        parts = [f"{name} {format_seconds(told[name])}" for name in told]
        if parts:
            yield f"time: {', '.join(parts)}"
        if "idle" in told:
            busy = told["simulate"] + told["score"]
            yield f"ranks {100 * busy / (busy + told['idle']):.0f}% busy"

    def phases(self) -> dict[str, float]:
        """Return the seconds that each phase took, over all ranks, and idle ones.

        Asking and telling are the root's, beside the work of its own runner.
        """
        ledger = self._ledger
        if not ledger.asked:
            return {}
        phases = {
            "ask": _total(ledger["ask_seconds"]),
            "simulate": _total(self._store.read("/tasks/seconds")),
            "score": _total(ledger["score_seconds"]),
            "tell": _total(ledger["tell_seconds"]),
        }
        if (ranks := self._store.attributes.get("ranks")) is not None:
            whole = float(ranks) * self._open_seconds()
            idle = whole - phases["simulate"] - phases["score"]
            phases["idle"] = max(0.0, idle)
        return phases

    def _open_seconds(self) -> float:
        """Return for how long any trial was open: pauses between runs do not count."""
        ledger = self._ledger
        ended = np.flatnonzero(~np.isnan(ledger["told"]))
        order = ended[np.argsort(ledger["asked"][ended])]
        total, until = 0.0, -math.inf
        for trial in order.tolist():
            begun, told = float(ledger["asked"][trial]), float(ledger["told"][trial])
            total += max(0.0, told - max(begun, until))
            until = max(until, told)
        return total

    def _tell_progress(self) -> Iterator[str]:
        order = self._ledger["told_order"]
        told = np.flatnonzero(order >= 0)
        losses = self._ledger["loss"][told[np.argsort(order[told])]]
        if np.isnan(losses).all():
            return
        least = np.fmin.accumulate(losses)
        marks = [m * 10**power for power in range(9) for m in _MARKS]
        for count in [m for m in marks if m < len(least)] + [len(least)]:
            if not np.isnan(least[count - 1]):
                yield f"{count}: {_write(float(least[count - 1]))}"


def tell_coverage(store: Store) -> Iterator[str]:
    """Yield how much of what was observed lies within the outermost band.

    Draws of a posterior are equally likely: their replicates make one band.
    """
    layout = store.layout
    low, high = layout.spec.bands.levels[0], layout.spec.bands.levels[-1]
    done = store.status.reshape(layout.by_task) == DONE
    for name, observed in layout.observed.items():
        rows = store.read(f"/series/{observed.output}").astype(float)
        groups: dict[str, list[int]] = {}
        for index, scenario in enumerate(layout.spec.scenarios):
            own = scenario.name.partition(",")[2] if layout.spec.bases else ""
            if observed.scenario is None or own.endswith(observed.scenario):
                drawn = scenario.name.startswith(DRAW)
                group = f"posterior,{observed.scenario}" if drawn else scenario.name
                groups.setdefault(group.removesuffix(",None"), []).append(index)
        there = ~np.isnan(observed.values)
        for group, members in groups.items():
            sample = np.concatenate([rows[i, done[i]] for i in members])
            if not len(sample):
                continue
            last = np.ascontiguousarray(np.moveaxis(sample, 0, -1))
            band = bands.quantiles(last, [low, high])
            within = (band[0] <= observed.values) & (observed.values <= band[1])
            share = f"{int(within[there].sum())} of {int(there.sum())} observed values"
            yield f"{group}, {name}: {share} lie within [{low:.0%}, {high:.0%}]"


def _total(seconds: NDArray[np.float64]) -> float:
    return float(np.nansum(seconds))


def _write(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
