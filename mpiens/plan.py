"""What a spec would do, told before it is done."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiens import steps, study, window
from mpiens.allocation import Allocation, Need
from mpiens.child import ask_child
from mpiens.fault import Fault, SpecError
from mpiens.layout import DONE, Layout
from mpiens.pilot import settle_windows
from mpiens.progress import format_bytes, format_seconds
from mpiens.reader import locate_faults, read
from mpiens.spec import Spec
from mpiens.store import PARTIAL, Store


@dataclass(frozen=True)
class Plan:
    """A spec without faults, and what it will take."""

    spec: Spec
    need: Need
    earlier: Store | None
    allocation: Allocation | None
    script: str  # what is given to sbatch

    def lines(self) -> Iterator[str]:
        """Yield the plan, a line for each thing to know."""
        spec = self.spec
        names = [s.name for s in spec.scenarios]
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        if spec.calibrate is not None:
            yield from spec.calibrate.describe()
        yield f"scenarios: {len(names)} ({listed})"
        for axis, values in spec.sweep.items():
            yield f"axis {axis}: {len(values)} values"
        for group in spec.zips:
            yield f"axes {', '.join(group)}: walk together"
        for entry in spec.excluded:
            yield f"excluded: {', '.join(f'{a} = {v}' for a, v in entry.items())}"
        if spec.design is not None:
            yield from spec.design.describe()
        if spec.windows is not None:
            yield from spec.windows.describe()
        yield (
            f"tasks: {spec.tasks:,} ({len(names)} scenarios x "
            f"{spec.replicates} replicates), {spec.ensemble.pairing} streams"
        )
        asked = {"prepare": spec.prepare, "aggregate": spec.aggregate}
        for name, section in asked.items():
            if section is not None:
                yield f"{name}: a step for each of {len(names)} scenarios"
        if spec.shared is not None:
            yield (
                f"shared data: {format_bytes(self.need.shared)} per node, "
                f"{format_bytes(self.need.skeleton)} per rank"
            )
        if self.allocation is not None:
            yield self.allocation.describe()
            yield self.need.describe(max(self.allocation.ranks))
            if warning := self.allocation.warn(self.need, self.script):
                yield f"warning: {warning}"
        yield from self._outlook()

    def refuse(self) -> None:
        """Raise SpecError where the allocation does not hold what the spec needs."""
        if self.allocation is not None:
            told = [*self.allocation.faults(self.need, self.script)]
            if told:
                raise SpecError([Fault("allocation", text) for text in told])

    def _outlook(self) -> Iterator[str]:
        """Yield what an earlier file tells of sizes and times."""
        if self.earlier is None:
            yield "output: its size is known once the first task is done"
            return
        layout = self.earlier.layout
        future = Layout(self.spec, layout.parameters, layout.row)
        nbytes = sum(dataset.nbytes for dataset in future.datasets())
        yield f"output: {format_bytes(nbytes)} in all"
        seconds = self.earlier.read("/tasks/seconds").reshape(-1)
        known = seconds[self.earlier.status == DONE]
        if len(known):
            total = float(np.mean(known)) * self.spec.tasks
            yield (
                f"time: {format_seconds(float(np.mean(known)))} a task by "
                f"{self.earlier.path.name}, {format_seconds(total)} for all on one rank"
            )


def check(
    path: Path, output: Path | None = None, environment: Mapping[str, str] = os.environ
) -> Plan:
    """Return the plan of a spec; SpecError with all its faults where it has any.

    The environment tells of the allocation, where there is one.
    """
    file = output or Path(f"{path.stem}.h5")
    reading = settle_windows(read(path), file)
    faults = list(reading.faults)
    spec = reading.spec
    imports, shared, skeleton, loading = 0, 0, 0, 0
    if spec is not None:
        faults += locate_faults([*study.find_faults(spec)], path)
        try:
            imports = ask_child(lambda: _measure_imports(spec))
            shared, skeleton, loading = ask_child(lambda: _measure_shared(spec))
        except SpecError as error:
            faults += locate_faults(error.faults, path)
    if spec is None or faults:
        raise SpecError(faults, str(path))
    task = spec.limits.task_memory
    need = Need(spec.tasks, shared, skeleton, imports, task, loading)
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Plan(
        spec=spec,
        need=need,
        earlier=_find_earlier(file),
        allocation=Allocation.of(environment, machine),
        script=f"{path.stem}.sbatch",
    )


def _measure_imports(spec: Spec) -> int:
    """Return the bytes that the model's imports take in this process."""
    before = _read_memory("RssAnon")
    steps.inspect_all(spec)
    return max(0, _read_memory("RssAnon") - before)


def _measure_shared(spec: Spec) -> tuple[int, int, int]:
    """Return the bytes of shared data and of their skeleton, and what loading took."""
    before = _read_memory("VmRSS")
    packed = window.load_packed(spec)
    loading = max(0, _read_memory("VmHWM") - before) if spec.shared else 0
    return packed.nbytes, len(packed.skeleton), loading


def _read_memory(name: str) -> int:
    """Return what the kernel counts of this process's memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0


def _find_earlier(file: Path) -> Store | None:
    for path in (file, file.with_name(file.name + PARTIAL)):
        if path.exists():
            return Store(path)
    return None
