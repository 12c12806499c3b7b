"""A result file as one flat table, of scenarios or of tasks, for CSV and Parquet."""

from __future__ import annotations

import csv
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from mpiens.fault import Fault, SpecError, nearest
from mpiens.layout import DONE, STATUS, TRIAL_STATE, UNUSED, Layout
from mpiens.ledger import Ledger
from mpiens.row import Output
from mpiens.spec import to_text
from mpiens.store import PARTIAL, Store
from mpiens.table import Entry, Table, samples

_BLOCK = 65536  # rows of a Parquet file that are written at once
_LONGEST = 2**63
_VERDICT = (
    *("mean", "mean_interval", "better", "better_interval"),
    *("averted", "averted_interval", "reduction"),
)


@dataclass(frozen=True)
class Column:
    """One column: its name, and bool, int, np.uint64, float or str for its values."""

    name: str
    kind: type[Any]


@dataclass(frozen=True)
class Frame:
    """A table whose rows are made as they are asked for; None is a missing value."""

    columns: list[Column]
    rows: Iterator[list[Any]]


@dataclass(frozen=True)
class _Group:
    """Columns that belong together, and their cells for what an index stands for."""

    columns: list[Column]
    cells: Callable[[int], list[Any]]
    prefix: str = ""  # for names that other columns have too


def by_scenario(store: Store) -> Frame:
    """Return a table with a row per scenario, sorted by its parameters."""
    entries = Table(store).entries
    compared = store.layout.has_baseline
    groups = [
        *_identify(store.layout),
        _Group(
            [Column("done", int), Column("failed", int)],
            lambda index: [entries[index].done, entries[index].failed],
        ),
        *_describe_trials(store),
        _Group(
            [Column(name, float) for name, _ in _summaries(entries[0], compared)],
            lambda index: [value for _, value in _summaries(entries[index], compared)],
        ),
        *_describe_aggregates(store),
    ]
    rows = (
        [cell for group in groups for cell in group.cells(index)]
        for index in _order(store.layout)
    )
    return _make(groups, rows)


def by_task(store: Store) -> Frame:
    """Return a table with a row per task, the scenarios sorted by their parameters.

    One scenario after another is read, so that memory is bounded by the largest.
    Tasks of other shards are left out.
    """
    groups = [*_identify(store.layout), *_describe_tasks(store)]

    def rows() -> Iterator[list[Any]]:
        status = store.status.reshape(store.layout.by_task)
        for index in _order(store.layout):
            scenario = [cell for group in groups[:2] for cell in group.cells(index)]
            columns = [column for group in groups[2:] for column in group.cells(index)]
            own = (status[index] != UNUSED).tolist()
            for cells in itertools.compress(zip(*columns, strict=True), own):
                yield [*scenario, *cells]

    return _make(groups, rows())


def select(frame: Frame, names: list[str]) -> Frame:
    """Return some columns of a table, in the order asked for.

    Raises SpecError where there is no such column.
    """
    known = {column.name: place for place, column in enumerate(frame.columns)}
    faults = [
        Fault("", f"there is no column {name!r}{nearest(name, known)}")
        for name in names
        if name not in known
    ]
    if faults:
        raise SpecError(faults)
    places = [known[name] for name in names]
    columns = [frame.columns[place] for place in places]
    return Frame(columns, ([row[place] for place in places] for row in frame.rows))


def write_csv(frame: Frame, file: TextIO) -> None:
    """Write a table as CSV; what is missing is empty, truths are true and false."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([column.name for column in frame.columns])
    truth = {True: "true", False: "false"}
    for row in frame.rows:
        writer.writerow([truth[c] if isinstance(c, bool) else c for c in row])


def write_parquet(frame: Frame, path: Path) -> None:
    """Write a table as a Parquet file; SpecError where that cannot be."""
    try:
        # heavy, and not everyone wants it
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        text = "a Parquet file is written by pyarrow, which is not here; install it by "
        text += f'pip install "mpiens[parquet]" ({error})'
        raise SpecError([Fault("", text)]) from error
    kinds: dict[type[Any], Any] = {bool: pa.bool_(), int: pa.int64()}
    kinds |= {np.uint64: pa.uint64(), float: pa.float64(), str: pa.string()}
    schema = pa.schema([(column.name, kinds[column.kind]) for column in frame.columns])
    begun = path.with_name(path.name + PARTIAL)
    try:
        with begun.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
            while block := [*itertools.islice(frame.rows, _BLOCK)]:
                columns = zip(*block, strict=True)
                arrays = [
                    pa.array(cells, field.type)
                    for cells, field in zip(columns, schema, strict=True)
                ]
                writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        begun.replace(path)
    except OSError as error:
        begun.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise SpecError(
            [Fault("", f"cannot be written: {reason}")], str(path)
        ) from error


def _make(groups: list[_Group], rows: Iterator[list[Any]]) -> Frame:
    """Make a table of groups, without the NaN that stands for what is missing."""
    times = Counter(column.name for group in groups for column in group.columns)
    columns = [
        Column(group.prefix + c.name, c.kind) if times[c.name] > 1 else c
        for group in groups
        for c in group.columns
    ]
    return Frame(columns, ([_drop_nan(cell) for cell in row] for row in rows))


def _identify(layout: Layout) -> Iterator[_Group]:
    """Yield the name of a scenario and its parameters."""
    names = [scenario.name for scenario in layout.spec.scenarios]
    yield _Group([Column("scenario", str)], lambda index: [names[index]])
    columns = []
    values = []
    for name, own in layout.parameters.items():
        kind = _find_kind(own)
        columns.append(Column(name, kind))
        values.append([*map(_to_cell, own)] if kind is str else own)
    yield _Group(
        columns, lambda index: [own[index] for own in values], prefix="parameters."
    )


def _describe_trials(store: Store) -> Iterator[_Group]:
    """Yield the state and the losses of the trial that a scenario belongs to."""
    spec = store.layout.spec
    if spec.calibrate is None:
        return
    ledger = Ledger.of(store)
    names = [*spec.calibrate.targets]

    def tell(index: int) -> list[Any]:
        trial = index // spec.per_trial
        losses = ledger.losses(trial) or dict.fromkeys(names)
        state = TRIAL_STATE[int(ledger.state[trial])]
        return [state, float(ledger["loss"][trial]), *(losses[n] for n in names)]

    columns = [Column("state", str), Column("loss", float)]
    columns += [Column(f"loss.{name}", float) for name in names]
    yield _Group(columns, tell, prefix="trial.")


def _describe_tasks(store: Store) -> Iterator[_Group]:
    """Yield what is known of tasks, and what they left; cells are whole columns."""
    shape = store.layout.by_task
    status = store.status.reshape(shape)

    def tell(index: int) -> list[Any]:
        seconds, attempts, rank = (
            store.read_scenario(f"/tasks/{name}", index)
            for name in ("seconds", "attempts", "rank")
        )
        return [
            range(shape[1]),
            [STATUS[number] for number in status[index].tolist()],
            seconds.tolist(),
            attempts.tolist(),
            _mask(rank, rank >= 0),
        ]

    kinds: dict[str, type[Any]] = {"replicate": int, "status": str, "seconds": float}
    kinds |= {"attempts": int, "rank": int}
    yield _Group([Column(name, kind) for name, kind in kinds.items()], tell)
    scalars = [
        output
        for output in store.layout.row.outputs
        if not output.shape and f"/series/{output.name}" in store
    ]
    yield _Group(
        [Column(output.name, _kind_of(output)) for output in scalars],
        lambda index: [
            _mask(_read_scalars(store, output, index), status[index] == DONE)
            for output in scalars
        ],
        prefix="series.",
    )
    summaries = [*store.layout.summaries()]
    yield _Group(
        [Column(f"{output.name}.{kind}", float) for output, kind in summaries],
        lambda index: [
            samples(store, output, kind, index).tolist() for output, kind in summaries
        ],
    )


def _describe_aggregates(store: Store) -> Iterator[_Group]:
    """Yield what was made of each scenario; an array's entries have a column each."""
    for output in store.layout.aggregates:
        array = store.read(f"/aggregate/{output.name}")
        flat = array.reshape(len(array), -1).tolist()
        places = [".".join(map(str, place)) for place in np.ndindex(output.shape)]
        kind = _kind_of(output)
        yield _Group(
            [Column(f"{output.name}{'.' * bool(p)}{p}", kind) for p in places],
            flat.__getitem__,
            prefix="aggregate.",
        )


def _order(layout: Layout) -> list[int]:
    """Return the scenarios as their parameters sort them, the first one first."""
    columns = layout.parameters.values()
    return sorted(
        range(len(layout.spec.scenarios)),
        key=lambda index: [_rank(values[index]) for values in columns],
    )


def _rank(value: Any) -> tuple[int, Any]:
    """Return a key that sorts numbers, then text, and what is missing last."""
    if _drop_nan(value) is None:
        return 2, 0
    if isinstance(value, int | float):
        return 0, value
    return 1, _to_cell(value)


def _summaries(entry: Entry, compared: bool) -> Iterator[tuple[str, float]]:
    """Yield (column, value) of a scenario; a baseline itself has no difference."""
    for line in entry.lines:
        path = f"{line.output.name}.{line.kind}"
        for name, value in vars(line.own).items():
            yield f"{path}.{name}", value
        for name in ("mean", "low", "high") if compared else ():
            value = getattr(line.difference, name) if line.difference else math.nan
            yield f"{path}.difference.{name}", value
        for name in _VERDICT if compared else ():
            found: Any = getattr(line.verdict, name) if line.verdict else None
            told = f"{path}.verdict.{name.removesuffix('_interval')}"
            if name.endswith("_interval"):
                low, high = found or (math.nan, math.nan)
                yield f"{told}.low", low
                yield f"{told}.high", high
            else:
                yield told, math.nan if found is None else found


def _find_kind(values: tuple[Any, ...]) -> type[Any]:
    """Return the narrowest kind that holds all values of a parameter."""
    given = [value for value in values if _drop_nan(value) is not None]
    truths = [isinstance(value, bool) for value in given]
    if given and all(truths):
        return bool
    if not given or any(truths):
        return str if given else float
    if all(isinstance(value, int) and abs(value) < _LONGEST for value in given):
        return int
    return float if all(isinstance(value, int | float) for value in given) else str


def _kind_of(output: Output) -> type[Any]:
    if output.boolean:
        return bool
    dtype = np.dtype(output.dtype)
    if dtype == np.uint64:
        return np.uint64
    return int if dtype.kind in "iu" else float


def _read_scalars(store: Store, output: Output, index: int) -> NDArray[Any]:
    values = store.read_scenario(f"/series/{output.name}", index)
    return values.astype(bool) if output.boolean else values


def _to_cell(value: Any) -> str | None:
    """Return a value as text; lists and tables as JSON, as the file has them."""
    return value if value is None or isinstance(value, str) else to_text(value)


def _mask(values: NDArray[Any], good: NDArray[np.bool_]) -> list[Any]:
    pairs = zip(values.tolist(), good.tolist(), strict=True)
    return [value if is_good else None for value, is_good in pairs]


def _drop_nan(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
