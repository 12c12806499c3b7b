"""One task in the foreground, without MPI: to try a model, or to replay a result."""

from __future__ import annotations

import pdb
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpiens import model, streams
from mpiens.child import on_standard_error
from mpiens.fault import Fault, SpecError, nearest
from mpiens.layout import DONE, FAILED
from mpiens.model import Model, format_failure
from mpiens.reader import locate_faults, read
from mpiens.row import checksum, describe
from mpiens.spec import Spec
from mpiens.store import Store

GOOD, BAD = 0, 3


@dataclass(frozen=True)
class Trial:
    """What one task returned, and what it took."""

    returned: Any
    seconds: float
    peak_bytes: int


def try_task(path: Path, scenario: str | None, replicate: int, *, pdb: bool) -> int:
    """Run one task of a spec and print what it returned; return the exit code."""
    reading = read(path)
    spec = reading.require()
    try:
        task = find_task(spec, scenario, replicate)
        with on_standard_error():
            model.inspect_model(spec)
            trial = _run(spec, task, enter_pdb=pdb)
    except SpecError as error:
        faults = locate_faults(error.faults, path)
        raise SpecError(faults, str(path)) from error.__cause__
    if trial is None:
        return BAD
    name = spec.scenarios[spec.locate(task)[0]].name
    print(f"scenario {name}, replicate {replicate}")
    try:
        described = describe(spec, trial.returned)
    except ValueError as error:
        print(f"mpiens: {error}", file=sys.stderr)
        return BAD
    for output, (shape, dtype) in described.items():
        value = np.asarray(trial.returned[output])
        shown = np.array2string(value, threshold=6, edgeitems=3, precision=4)
        print(f"{output}: shape {shape}, {np.dtype(dtype)}: {shown}")
    print(f"{trial.seconds:.3g} s, {trial.peak_bytes / 2**20:,.0f} MiB at most")
    return GOOD


def replay_task(path: Path, scenario: str, replicate: int, *, pdb: bool) -> int:
    """Run one task of a result file again and say whether it gives the same bits."""
    store = Store(path)
    spec = store.layout.spec
    task = find_task(spec, scenario, replicate)
    with on_standard_error():
        trial = _run(spec, task, enter_pdb=pdb)
    status = int(store.status[task])
    what = f"scenario {scenario}, replicate {replicate}:"
    row = np.zeros(1, store.layout.row.dtype)
    failed = trial is None
    if trial is not None:
        try:
            store.layout.row.fill(row[0], trial.returned)
        except ValueError as error:
            print(f"mpiens: {error}", file=sys.stderr)
            failed = True
    if failed:
        known = "as it did in the file" if status == FAILED else "unlike in the file"
        print(f"{what} failed, {known}")
        return BAD
    if status != DONE:
        print(f"{what} succeeded, unlike in the file, which has no row of it")
        return BAD
    stored = store.read("/tasks/checksum").reshape(-1)[task]
    same = checksum(row.tobytes()) == int(stored)
    print(f"{what} {'bit-identical' if same else 'NOT bit-identical'}")
    return GOOD if same else BAD


def find_task(spec: Spec, scenario: str | None, replicate: int) -> int:
    """Return the task of a scenario's name and a replicate; SpecError if none is."""
    names = [s.name for s in spec.scenarios]
    wanted = names[0] if scenario is None else scenario
    if wanted not in names:
        text = f"there is no scenario {wanted!r}{nearest(wanted, names)}"
        raise SpecError([Fault("", text)])
    if not 0 <= replicate < spec.replicates:
        text = f"there is no replicate {replicate}; they are 0 to {spec.replicates - 1}"
        raise SpecError([Fault("", text)])
    return spec.number(names.index(wanted), replicate)


def _run(spec: Spec, task: int, *, enter_pdb: bool) -> Trial | None:
    """Run one task; its fault is printed, and looked at in the debugger if asked."""
    runs = Model(spec, lambda: model.load(spec.shared, spec.folder))
    scenario, replicate = spec.locate(task)
    [stream] = streams.make(
        spec.ensemble.seed,
        [spec.scenarios[scenario].name],
        [replicate],
        common=spec.common,
    )
    start = time.perf_counter()
    try:
        returned = runs.run(task, stream)
    except (Exception, SystemExit) as error:
        print(format_failure(error), file=sys.stderr)
        parameters = dict(spec.scenarios[scenario].parameters)
        print(f"parameters: {parameters}", file=sys.stderr)
        print(f"seed: {stream.seed}, spawn key: {stream.key}", file=sys.stderr)
        if enter_pdb:
            pdb.post_mortem(error.__traceback__)
        return None
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Trial(returned, seconds, peak)
