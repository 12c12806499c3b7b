"""The seed case: an epidemic on a network that every worker needs whole.

    python seed.py make FILE [--people N]          some 65 MB, compressed
    python seed.py spawn|fork|before FILE --workers W   eight runs by a process pool

The program that mpiens grew out of ran like this, and the more workers it had the
slower it was.  ``spawn`` and ``fork`` read the data in every worker, as users write it;
tuned by hand is ``before``: read once, and forked.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import numpy as np
import tasks

RUNS, DAYS, CONTACTS = 8, 20, 12
_shared: Any = None


def make(path: str, people: int) -> None:
    """Write a network of contacts, and how close each of them is."""
    rng = np.random.default_rng(tasks.SEED)
    contacts = rng.integers(people, size=(people, CONTACTS), dtype=np.int32)
    close = rng.integers(16, size=(people, CONTACTS)) / 16
    np.savez_compressed(path, contacts=contacts, close=close)


def load(path: str) -> dict[str, Any]:
    with np.load(path) as file:
        return {name: file[name] for name in ("contacts", "close")}


def simulate(rng: np.random.Generator, shared: Any) -> dict[str, Any]:
    """Return how many are infected on each day."""
    contacts, close = shared["contacts"], shared["close"]
    people = len(contacts)
    infected = np.zeros(people, dtype=bool)
    infected[rng.integers(people, size=50)] = True
    curve = []
    for _ in range(DAYS):
        pressure = (infected[contacts] * close).sum(axis=1)
        infected |= rng.random(people) < 1 - np.exp(-0.2 * pressure)
        curve.append(int(infected.sum()))
    return {"x": np.array(curve)}


def begin(path: str) -> None:
    """Read the data into a worker."""
    global _shared  # noqa: PLW0603
    _shared = load(path)


def run(replicate: int) -> list[int]:
    found: list[int] = simulate(tasks.stream(replicate), _shared)["x"].tolist()
    return found


def main() -> None:
    """Make the data, or run all by a pool and print what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["make", "spawn", "fork", "before"])
    parser.add_argument("file")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--people", type=int, default=1_340_000)
    options = parser.parse_args()
    if options.what == "make":
        make(options.file, options.people)
        return
    kind = "spawn" if options.what == "spawn" else "fork"
    start: dict[str, Any] = {"initializer": begin, "initargs": (options.file,)}
    if options.what == "before":
        begin(options.file)
        start = {}
    context = multiprocessing.get_context(kind)
    with ProcessPoolExecutor(options.workers, mp_context=context, **start) as pool:
        print(json.dumps(list(pool.map(run, range(RUNS)))))


if __name__ == "__main__":
    main()
