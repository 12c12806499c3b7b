"""A simulation that sleeps, for mpiens and for its peers alike.

Every simulation adds a line to ``tasks.log`` in the current folder: which process ran
it, from when to when.

How long a simulation sleeps, and its noise, depend on nothing but the number of its
trial and replicate, so every peer sleeps the same seconds and meets the same losses.
Wants numpy only, for the workers of the peers import it too.
"""

from __future__ import annotations

import csv
import os
import time
from pathlib import Path

import numpy as np

MEAN = 33.0  # seconds that one simulation takes, as the teams reported it
SIGMA = 0.5  # of the logarithm: one in forty takes more than 2.3 times the mean
DAYS = 60
LOG = "tasks.log"
TARGETS = ("cases", "deaths")
RANGES = {  # low, high, scale
    "growth": (0.05, 0.5, "log"),
    "peak": (5.0, 50.0, "linear"),
    "size": (1e2, 1e5, "log"),
}
TRUTH = {"growth": 0.22, "peak": 27.0, "size": 4000.0}
_SLEEP, _NOISE = 0, 1  # which stream of a (trial, replicate)
_OBSERVED = 1 << 31  # a trial that no run reaches


def duration(trial: int, replicate: int) -> float:
    """Return the seconds that a simulation sleeps where the scale is 1."""
    rng = np.random.default_rng([trial, replicate, _SLEEP])
    return float(rng.lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA))


def draw(
    trial: int, replicate: int, growth: float, peak: float, size: float
) -> dict[str, np.ndarray]:
    """Return noisy curves, each (days,): cases, and deaths ten days later."""
    rng = np.random.default_rng([trial, replicate, _NOISE])
    days = np.arange(DAYS)

    def curve(middle: float) -> np.ndarray:
        share = 1 / (1 + np.exp(-growth * (days - middle)))
        return np.asarray(size * growth * share * (1 - share))

    return {
        "cases": rng.poisson(curve(peak)).astype(float),
        "deaths": rng.poisson(0.02 * curve(peak + 10)).astype(float),
    }


def simulate(  # noqa: PLR0913  (what a model takes)
    scenario: str,
    replicate: int,
    *,
    growth: float,
    peak: float,
    size: float,
    scale: float,
) -> dict[str, np.ndarray]:
    """Sleep, then return the curves of one replicate; the scenario is ``trial=7``."""
    began = time.time()
    trial = int(scenario.removeprefix("trial="))
    time.sleep(scale * duration(trial, replicate))
    curves = draw(trial, replicate, growth, peak, size)
    log = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(log, f"{os.getpid()} {began} {time.time()}\n".encode())  # whole, or not
    os.close(log)
    return curves


def score(target: str, data: np.ndarray, *replicates: dict[str, np.ndarray]) -> float:
    """Return the mean square of what data differ by from the mean over replicates."""
    mean = np.mean([curves[target] for curves in replicates], axis=0)
    return float(np.mean((mean - data) ** 2))


def observe() -> dict[str, np.ndarray]:
    """Return the data that are calibrated to, each (days,)."""
    return draw(_OBSERVED, 0, **TRUTH)


def read_log(folder: Path) -> list[tuple[int, float, float]]:
    """Return (process, start, end) of all simulations; times since the epoch."""
    lines = (folder / LOG).read_text(encoding="ascii").splitlines()
    fields = (line.split() for line in lines)
    return [(int(pid), float(began), float(ended)) for pid, began, ended in fields]


def write_data(path: Path) -> None:
    """Write the data as a table of days, with one column per target."""
    data = observe()
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("day", *TARGETS))
        table.writerows(zip(range(DAYS), *(data[t] for t in TARGETS), strict=True))
