"""Tables of what was measured: medians, ranges, and ratios within a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

BEGIN, END = "<!-- tables, written by run.py -->", "<!-- end of the tables -->"


def replace_tables(document: str, tables: str) -> str:
    """Return a document with new tables between its marks; without marks only them."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        return tables + "\n"
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


@dataclass(frozen=True)
class Run:
    """What one run of one peer gave: figures by name."""

    work: str
    peer: str
    round: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Column:
    """A figure of a table: how it is named, made, written, and held against a peer."""

    title: str
    make: Callable[[dict[str, float]], float | None]
    form: str = "{:.3g}"
    against: str | None = None


def write_table(runs: Sequence[Run], columns: Sequence[Column]) -> str:
    """Return a table in Markdown: a line per peer, in the order of the runs."""
    peers = list(dict.fromkeys(run.peer for run in runs))
    titles = " | ".join(column.title for column in columns)
    lines = [f"| | {titles} | runs |"]
    lines.append("| --- |" + " --- |" * (len(columns) + 1))
    for peer in peers:
        own = [run for run in runs if run.peer == peer]
        cells = [_write_cell(runs, own, column) for column in columns]
        lines.append(f"| {peer} | " + " | ".join(cells) + f" | {len(own)} |")
    return "\n".join(lines)


def _write_cell(runs: Sequence[Run], own: Sequence[Run], column: Column) -> str:
    values = []
    for run in own:
        value = column.make(run.figures)
        if column.against is not None:
            value = _compare(runs, run, column)
        if value is not None:
            values.append(value)
    if not values:
        return "-"
    texts = [column.form.format(v) for v in (median(values), min(values), max(values))]
    return texts[0] if texts[1] == texts[2] else f"{texts[0]} ({texts[1]}-{texts[2]})"


def _compare(runs: Sequence[Run], run: Run, column: Column) -> float | None:
    """Return a figure relative to that of another peer in the same round."""
    others = [r for r in runs if r.peer == column.against and r.round == run.round]
    if not others:
        return None
    mine, other = column.make(run.figures), column.make(others[0].figures)
    return None if mine is None or not other else mine / other


def best(runs: Sequence[Run], figure: str, *, besides: Sequence[str]) -> float | None:
    """Return the median over rounds of the least figure of a round's other peers."""
    rounds = {run.round for run in runs}
    least = []
    for number in sorted(rounds):
        values = [
            run.figures[figure]
            for run in runs
            if run.round == number and run.peer not in besides and figure in run.figures
        ]
        if values:
            least.append(min(values))
    return median(least) if least else None


def ratios_to_best(
    runs: Sequence[Run], figure: str, mine: str, *, besides: Sequence[str]
) -> list[float]:
    """Return, per round, the least figure of all other peers by ours."""
    found = []
    for run in runs:
        if run.peer == mine and figure in run.figures:
            own = [r for r in runs if r.round == run.round]
            if (least := best(own, figure, besides=[mine, *besides])) is not None:
                found.append(least / run.figures[figure])
    return found
