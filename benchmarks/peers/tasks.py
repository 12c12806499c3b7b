"""What every peer runs: functions of a task's number, and what they have to return."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

SEED = 20260529
STEPS, REPLICATES = 2000, 200  # of a series; of a scenario
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
NAP, LONG = 0.05, 20  # mean seconds of a nap; how many means the last one takes


def stream(replicate: int) -> np.random.Generator:
    """Return the stream of a replicate, as mpiens makes it with common pairing."""
    sequence = np.random.SeedSequence(SEED, spawn_key=(replicate,))
    return np.random.default_rng(sequence)


def draw(task: int) -> float:
    """W1: a task that does nothing but begin its own stream."""
    return stream(task).random()


def walk(task: int) -> Any:
    """W2: a series of one replicate of one scenario."""
    scenario, replicate = divmod(task, REPLICATES)
    return stream(replicate).random(STEPS) + scenario


def list_naps(count: int) -> list[float]:
    """W3: lognormal seconds of so many naps, and a long one last."""
    naps = np.random.default_rng(SEED).lognormal(sigma=1.0, size=count)
    naps *= NAP * count / naps.sum()
    return [*naps.tolist(), LONG * NAP]


def nap(seconds: float) -> float:
    """W3 and W5: a task that waits."""
    time.sleep(seconds)
    return seconds


def run_block(function: Callable[[Any], Any], block: list[Any]) -> list[Any]:
    """Run several tasks as one: how chunks are made by hand."""
    return [function(item) for item in block]


def cut(items: list[Any], chunk: int) -> list[list[Any]]:
    """Cut the items into blocks."""
    return [items[start : start + chunk] for start in range(0, len(items), chunk)]


def find_bands(series: Any) -> Any:
    """W2: the bands of all scenarios: (level, scenario, step)."""
    whole = np.asarray(series).reshape(-1, REPLICATES, STEPS)
    return np.quantile(whole, LEVELS, axis=1)


def makespan(seconds: list[float], workers: int) -> float:
    """Return when all tasks are over that free workers take in their order."""
    free = [0.0] * workers
    for own in seconds:
        first = free.index(min(free))
        free[first] += own
    return max(free)


def bound(seconds: list[float], workers: int) -> float:
    """Return what no schedule can beat."""
    return max(sum(seconds) / workers, *seconds)
