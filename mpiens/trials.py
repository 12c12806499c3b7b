"""The trials of several jobs on one study, put into one file."""

from __future__ import annotations

import dataclasses

import numpy as np

from mpiens.deadline import Look
from mpiens.fault import Fault, SpecError
from mpiens.layout import PENDING, Layout
from mpiens.ledger import Ledger
from mpiens.store import Store

Order = list[tuple[Store, Ledger, int]]


def leave_out_idle(stores: list[Store]) -> list[Store]:
    """Return the files of jobs that have asked for a trial, or all where none has.

    One that began when all had been asked for does not even know its outputs.
    """
    if any(store.layout.spec.calibrate is None for store in stores):
        return stores
    return [store for store in stores if Ledger.of(store).asked] or stores


def order_jobs(stores: list[Store]) -> Order:
    """Return every (file, its trials, trial) in the order of the study.

    Raises SpecError where files are not of one study, whose streams all differ.
    """
    found: dict[int, tuple[Store, Ledger, int]] = {}
    for store in stores:
        own = Ledger.of(store)
        for trial in range(own.asked):
            stream = int(own["stream"][trial])
            if stream in found:
                text = f"{store.path} and {found[stream][0].path} both have a trial of "
                text += f"stream {stream}; merge files of jobs on one [calibrate] "
                raise SpecError([Fault("", f"{text}storage, each of them once")])
            found[stream] = (store, own, trial)
    return [found[stream] for stream in sorted(found)]


def lay_out(layout: Layout, trials: int) -> Layout:
    """Return the layout of a file that has room for so many trials."""
    spec = layout.spec
    if spec.calibrate is None:
        raise RuntimeError("there is no [calibrate]")
    most = max(trials, spec.calibrate.trials)  # jobs may ask for the last one at once
    calibrate = dataclasses.replace(spec.calibrate, trials=most)
    given = {  # to every trial alike, but for what is calibrated
        name: (None,) * spec.per_trial
        if name in spec.calibrated
        else values[: spec.per_trial]
        for name, values in layout.parameters.items()
    }
    return dataclasses.replace(
        layout,
        spec=dataclasses.replace(spec, calibrate=calibrate),
        parameters={name: values * most for name, values in given.items()},
    )


def take_jobs(merged: Store, order: Order, look: Look) -> None:
    """Take over the trials of all jobs, with their tasks."""
    spec = merged.layout.spec
    each = spec.per_trial * spec.replicates
    ledger = Ledger(spec)
    for target, (store, own, trial) in enumerate(order):
        pairs = {trial * each + i: target * each + i for i in range(each)}
        merged.take(store, pairs, look)
        ledger.take(target, own, trial)
    ledger.bind(merged)
    unasked = np.arange(len(order) * each, len(merged.status))
    merged.leave_out(unasked[merged.status[unasked] == PENDING])
