"""The ensemble that confirms a calibration: its best parameters, run again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from mpiens.ledger import Ledger
from mpiens.spec import Spec, name_trial
from mpiens.streams import hash_name

DRAW = "draw"  # what the scenarios of a posterior are named by: draw=17,trial=3


def place_of(file: Path) -> Path:
    """Return where the confirming ensemble of a result file lies."""
    return file.with_name(f"{file.stem}.confirm{file.suffix}")


def make_spec(ledger: Ledger, spec: Spec) -> Spec | None:
    """Return the spec of the confirming ensemble; None where none is wanted, or can be.

    Its scenarios are those of the best trials, under the names that these have in the
    calibration's file, and its seed is the next one: no stream is met twice.
    """
    if spec.calibrate is None or (confirm := spec.calibrate.confirm) is None:
        return None
    if ledger.best is None:
        return None
    chosen = ledger.ranking()[: confirm.top]
    names = [name_trial(trial, None) for trial in chosen]
    if confirm.posterior:
        chosen = _draw(ledger, confirm.top, spec.ensemble.seed)
        names = [f"{DRAW}={i},{name_trial(t, None)}" for i, t in enumerate(chosen)]
    bases: dict[str, dict[str, Any]] = {}
    for name, trial in zip(names, chosen, strict=True):
        for base, own in (spec.bases or {"": {}}).items():
            whole = f"{name},{base}" if base else name
            bases[whole] = {**own, **ledger.parameters(trial)}
    ensemble = dataclasses.replace(
        spec.ensemble, seed=spec.ensemble.seed + 1, replicates=confirm.replicates
    )
    return dataclasses.replace(spec, calibrate=None, bases=bases, ensemble=ensemble)


def _draw(ledger: Ledger, count: int, seed: int) -> list[int]:
    """Return trials drawn by exp(-loss), a loss being minus the log of a likelihood.

    The draw is systematic (Kitagawa, J. Comput. Graph. Stat. 5, 1996): a trial of
    weight w comes floor(count w) or ceil(count w) times.
    """
    ranked = np.array(ledger.ranking())
    losses = ledger["loss"][ranked]
    ends = np.cumsum(np.exp(losses[0] - losses))
    key = (hash_name("confirm"),)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))
    points = (np.arange(count) + rng.random()) / count * ends[-1]
    drawn: list[int] = ranked[np.searchsorted(ends, points, side="right")].tolist()
    return drawn
