"""What a spec would do, told before it is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mpiens import model, window
from mpiens.child import ask_child
from mpiens.fault import SpecError
from mpiens.layout import DONE, Layout
from mpiens.progress import format_seconds
from mpiens.reader import locate_faults, read
from mpiens.spec import Spec
from mpiens.store import PARTIAL, Store


@dataclass(frozen=True)
class Plan:
    """A spec without faults, and what it will take."""

    spec: Spec
    shared_per_rank: int
    shared_per_node: int
    earlier: Store | None

    def lines(self) -> Iterator[str]:
        """Yield the plan, a line for each thing to know."""
        spec = self.spec
        names = [s.name for s in spec.scenarios]
        listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        yield f"scenarios: {len(names)} ({listed})"
        for axis, values in spec.sweep.items():
            yield f"axis {axis}: {len(values)} values"
        yield (
            f"tasks: {spec.tasks:,} ({len(names)} scenarios x "
            f"{spec.replicates} replicates), {spec.ensemble.pairing} streams"
        )
        if spec.shared is not None:
            yield (
                f"shared data: {format_bytes(self.shared_per_node)} per node, "
                f"{format_bytes(self.shared_per_rank)} per rank"
            )
        yield from self._outlook()

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


def check(path: Path, output: Path | None = None) -> Plan:
    """Return the plan of a spec; SpecError with all its faults where it has any."""
    reading = read(path)
    faults = list(reading.faults)
    spec = reading.spec
    sizes = 0, 0
    if spec is not None:
        try:
            ask_child(lambda: model.inspect_model(spec))
        except SpecError as error:
            faults += locate_faults(error.faults, path)
        else:
            try:
                sizes = ask_child(lambda: _measure_shared(spec))
            except SpecError as error:
                faults += locate_faults(error.faults, path)
    if spec is None or faults:
        raise SpecError(faults, str(path))
    return Plan(spec, *sizes, _find_earlier(output or Path(f"{path.stem}.h5")))


def format_bytes(count: float) -> str:
    """Write a number of bytes in the unit that suits it."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def _measure_shared(spec: Spec) -> tuple[int, int]:
    packed = window.load_packed(spec)
    return len(packed.skeleton), packed.nbytes


def _find_earlier(file: Path) -> Store | None:
    for path in (file, file.with_name(file.name + PARTIAL)):
        if path.exists():
            return Store(path)
    return None
