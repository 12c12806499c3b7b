"""How many ranks one manager keeps busy: a closed queue with one server.

Every rank is either running a task or waits for the manager, who serves one range after
another: the machine repair model, here with exponential tasks and service, solved by
mean value analysis (Reiser and Lavenberg, J. ACM 27, 1980).  A range that is dealt
ahead of need hides the wait while that is shorter than the range: then only the
manager's own capacity counts.
"""

from __future__ import annotations

import heapq

import numpy as np


def utilisation(ranks: int, run: float, service: float) -> float:
    """Return the share of time in which a rank runs tasks, with nothing dealt ahead.

    ``run`` is how long a range takes, and ``service`` how long the manager has for it.
    """
    waiting = 0.0  # ranges at the manager, as one who arrives finds them
    cycle = run + service
    for count in range(1, ranks + 1):
        response = service * (1 + waiting)
        cycle = run + response
        waiting = count * response / cycle
    return run / cycle


def capacity(run: float, service: float, *, busy: float = 0.95) -> int:
    """Return how many ranks are busy for such a share of time, one range ahead.

    The manager is the only bound then: ranks x service / run <= 1 / busy.
    """
    return int(run / service / busy)


def range_seconds(task: float, *, least: float = 2.5e-3) -> float:
    """Return how long the ranges of tasks are that the manager deals at least."""
    return task * max(1, -(-least // task))


def simulate(
    ranks: int, run: float, service: float, *, ranges: int, seed: int
) -> float:
    """Return the same share by playing it through, nothing ahead; a check."""
    rng = np.random.default_rng(seed)
    ends = [(float(rng.exponential(run)), rank) for rank in range(ranks)]
    heapq.heapify(ends)
    free, busy = 0.0, sum(end for end, _ in ends)
    for _ in range(ranges):
        asked, rank = heapq.heappop(ends)
        free = max(free, asked) + float(rng.exponential(service))
        own = float(rng.exponential(run))
        busy += own
        heapq.heappush(ends, (free + own, rank))
    whole = min(end for end, _ in ends)
    return (busy - sum(end - whole for end, _ in ends)) / (ranks * whole)
