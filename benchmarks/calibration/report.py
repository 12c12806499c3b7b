"""What a run of a peer is held against, and the table of all of them."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import model


@dataclass(frozen=True)
class Idle:
    """Worker-seconds of the timed window in which no simulation ran."""

    before: float  # until a worker's first simulation began
    between: float
    after: float  # since a worker's last simulation ended


@dataclass(frozen=True)
class Run:
    """One run of one peer; seconds are those of the window that is timed."""

    peer: str
    round: int
    seconds: float
    outside: float  # seconds before and after that window: starting, ending
    cpu: float  # seconds, starting and ending too
    others: float  # share of the machine that others had meanwhile
    trials: int
    simulations: int
    scores: int
    best: float  # the lowest loss
    busy: float  # seconds that all simulations slept, together
    idle: Idle


@dataclass(frozen=True)
class Work:
    """The simulations that every peer runs at least once."""

    trials: int
    replicates: int
    workers: int
    scale: float

    @property
    def durations(self) -> list[list[float]]:
        """The seconds that each simulation sleeps: (trial, replicate)."""
        return [
            [self.scale * model.duration(t, r) for r in range(self.replicates)]
            for t in range(self.trials)
        ]

    @property
    def total(self) -> float:
        """The seconds of all simulations, each once."""
        return sum(map(sum, self.durations))

    @property
    def bound(self) -> float:
        """The seconds that no schedule can be faster than."""
        return self.total / self.workers

    @property
    def ideal(self) -> float:
        """The seconds where a free worker at once takes the next in order."""
        return makespan([s for trial in self.durations for s in trial], self.workers)

    def ideal_batched(self, batch: int) -> float:
        """The same where all workers wait for the last of every batch of trials."""
        trials = self.durations
        return sum(
            makespan([s for t in trials[i : i + batch] for s in t], self.workers)
            for i in range(0, self.trials, batch)
        )


def makespan(durations: Sequence[float], workers: int) -> float:
    """Return when the last of the tasks ends, each taken in order by a free worker."""
    free = [0.0] * workers
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free)


def find_idle(
    ran: Sequence[tuple[int, float, float]], began: float, ended: float, workers: int
) -> Idle:
    """Return where workers were idle within a window.

    ``ran`` is (worker, start, end) of every simulation; a worker that ran none was idle
    before its first one.
    """
    own: dict[int, list[tuple[float, float]]] = {}
    for worker, start, end in ran:
        own.setdefault(worker, []).append((start, end))
    before = (workers - len(own)) * (ended - began)
    before += sum(min(stretches)[0] - began for stretches in own.values())
    after = sum(ended - max(e for _, e in stretches) for stretches in own.values())
    running = sum(end - start for _, start, end in ran)
    between = workers * (ended - began) - before - after - running
    return Idle(before, between, after)


def compare(runs: Sequence[Run], peer: str, ours: str) -> list[float]:
    """Return, for each round, how many times a peer's seconds ours took less."""
    seconds: dict[int, dict[str, float]] = {}
    for run in runs:
        seconds.setdefault(run.round, {})[run.peer] = run.seconds
    return [own[peer] / own[ours] for own in seconds.values()]


def measure(runs: Sequence[Run], peer: str, work: Work) -> dict[str, list[float]]:
    """Return what is reported of a peer, each a number per round."""
    own = [run for run in runs if run.peer == peer]
    capacities = [work.workers * run.seconds for run in own]
    return {
        "seconds": [run.seconds for run in own],
        "outside": [run.outside for run in own],
        "cpu": [run.cpu for run in own],
        "others": [run.others for run in own],
        "trials_per_worker_minute": [
            60 * run.trials / c for run, c in zip(own, capacities, strict=True)
        ],
        "utilisation": [run.busy / c for run, c in zip(own, capacities, strict=True)],
        "of_bound": [work.bound / run.seconds for run in own],
        "of_ideal": [work.ideal / run.seconds for run in own],
        **{
            f"idle_{name}": [
                getattr(run.idle, name) / c
                for run, c in zip(own, capacities, strict=True)
            ]
            for name in ("before", "between", "after")
        },
        "best": [run.best for run in own],
    }


def write_table(runs: Sequence[Run], work: Work, ours: str) -> str:
    """Return a table in Markdown: medians over rounds, (lowest-highest) beside."""
    head = [
        *("peer", "tasks per trial", "seconds", "trials per worker-minute"),
        *("utilisation", "of the bound", "of the ideal"),
        *("idle before, between, after", f"seconds / those of {ours}"),
    ]
    lines = [head, ["---"] * len(head)]
    for peer in list_peers(runs):
        figures = measure(runs, peer, work)
        own = [run for run in runs if run.peer == peer]
        shares = {name: f"{median(values):.1%}" for name, values in figures.items()}
        idle = (shares[f"idle_{name}"] for name in ("before", "between", "after"))
        cells = [
            peer,
            f"{median((run.simulations + run.scores) / run.trials for run in own):g}",
            spread(figures["seconds"], ".2f"),
            spread(figures["trials_per_worker_minute"], ".1f"),
            *(shares[name] for name in ("utilisation", "of_bound", "of_ideal")),
            ", ".join(idle),
            spread(compare(runs, peer, ours), ".2f"),
        ]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def spread(values: Sequence[float], form: str) -> str:
    """Write a median, with the lowest and highest where there are several."""
    middle = format(median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}}-{max(values):{form}})"


def list_peers(runs: Sequence[Run]) -> list[str]:
    """Return the peers in the order of their runs."""
    return list(dict.fromkeys(run.peer for run in runs))


def to_document(
    runs: Sequence[Run], work: Work, ours: str
) -> dict[str, dict[str, list[float]]]:
    """Return what is reported of every peer, for JSON: a number per round."""
    return {
        peer: {**measure(runs, peer, work), "ratio": compare(runs, peer, ours)}
        for peer in list_peers(runs)
    }
