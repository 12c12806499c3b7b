"""One run of one peer, in an environment of the peers; figures as JSON at the end.

    python pools.py PEER WORK --workers N --chunk C --tasks T

Peers of MPI are started by mpiexec; the process that has the pool prints.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import tasks

Map = Callable[[Callable[[Any], Any], list[Any], int], list[Any]]
"""Runs a function for items, in chunks, and returns the results in order."""


def by_hand(call: Callable[[Any, list[Any]], Any]) -> Map:
    """Let blocks be the items where a peer knows no chunks."""

    def run(function: Callable[[Any], Any], items: list[Any], chunk: int) -> list[Any]:
        if chunk == 1:
            return list(call(function, items))
        blocks = call(partial(tasks.run_block, function), tasks.cut(items, chunk))
        return [result for block in blocks for result in block]

    return run


@contextmanager
def open_multiprocessing(workers: int) -> Iterator[Map]:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield lambda f, items, chunk: pool.map(f, items, chunksize=chunk)


@contextmanager
def open_executor(workers: int) -> Iterator[Map]:
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(workers) as pool:
        yield lambda f, items, chunk: list(pool.map(f, items, chunksize=chunk))


@contextmanager
def open_futures(workers: int) -> Iterator[Map | None]:
    from mpi4py.futures import MPICommExecutor

    del workers
    with MPICommExecutor() as pool:
        if pool is None:
            yield None
        else:
            yield lambda f, items, chunk: list(pool.map(f, items, chunksize=chunk))


@contextmanager
def open_schwimmbad(workers: int) -> Iterator[Map | None]:
    from schwimmbad import MPIPool

    del workers
    with MPIPool() as pool:
        if not pool.is_master():
            pool.wait()
            yield None
            return
        yield by_hand(pool.map)


@contextmanager
def open_joblib(workers: int) -> Iterator[Map]:
    from joblib import Parallel, delayed

    def run(function: Callable[[Any], Any], items: list[Any], chunk: int) -> list[Any]:
        size = chunk or "auto"
        found = Parallel(n_jobs=workers, batch_size=size)(
            delayed(function)(item) for item in items
        )
        return list(found)

    yield run


@contextmanager
def open_dask(workers: int) -> Iterator[Map]:
    from distributed import Client, LocalCluster

    options = {"threads_per_worker": 1, "dashboard_address": None}
    with (
        LocalCluster(n_workers=workers, **options) as cluster,
        Client(cluster) as client,
    ):
        yield by_hand(lambda f, items: client.gather(client.map(f, items, pure=False)))


@contextmanager
def open_ray(workers: int) -> Iterator[Map]:
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, logging_level="error")
    remote = ray.remote(lambda function, item: function(item))
    try:
        yield by_hand(lambda f, items: ray.get([remote.remote(f, i) for i in items]))
    finally:
        ray.shutdown()


@contextmanager
def open_libensemble(workers: int) -> Iterator[Map]:
    import os
    import tempfile
    from pathlib import Path

    from libensemble.libE import libE
    from libensemble.tools.alloc_support import AllocSupport

    def run(function: Callable[[Any], Any], items: list[Any], chunk: int) -> list[Any]:
        shape = np.shape(function(items[0]))
        found = [("f", float, shape)]
        flags = [("sim_started", bool), ("sim_ended", bool)]
        known = np.zeros(len(items), [("x", float), ("sim_id", int), *flags])
        known["x"], known["sim_id"] = items, range(len(items))
        kind = type(items[0])

        def simulate(given: Any, _: Any, specs: Any, __: Any) -> Any:
            result = np.zeros(len(given), specs["out"])
            result["f"] = [function(kind(x)) for x in given["x"]]
            return result, {}

        def give(*given: Any) -> Any:
            busy, table, sims, _, _, own, info = given
            if info["sim_max_given"] or not info["any_idle_workers"]:
                return {}, own
            support = AllocSupport(busy, info["use_resource_sets"], own, info)
            work: dict[int, Any] = {}
            start = own.get("next", 0)
            if start >= len(table):
                return work, own, 1
            for worker in support.avail_worker_ids(gen_workers=False):
                rows = [*range(start, min(start + chunk, len(table)))]
                if not rows:
                    break
                work[worker] = support.sim_work(worker, table, sims["in"], rows, [])
                start = own["next"] = rows[-1] + 1
            return work, own

        sim_specs = {"sim_f": simulate, "in": ["x"], "out": found}
        exit_criteria = {"sim_max": len(items)}
        options = {
            "comms": "local",
            "nworkers": workers,
            "disable_log_files": True,
            "save_H_and_persis_on_abort": False,
        }
        table, *_ = libE(
            sim_specs,
            gen_specs={},
            exit_criteria=exit_criteria,
            H0=known,
            alloc_specs={"alloc_f": give},
            libE_specs=options,
        )
        order = np.argsort(table["sim_id"][: len(items)])
        return [*table["f"][order]]

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield run
        finally:
            os.chdir(before)


@contextmanager
def open_static(workers: int) -> Iterator[Map | None]:
    """Hand-written: every rank takes a block, and the root gathers."""
    from mpi4py import MPI

    del workers
    comm = MPI.COMM_WORLD

    def run(function: Callable[[Any], Any], items: list[Any], chunk: int) -> list[Any]:
        del chunk
        comm.bcast((function, items))
        return split(function, items)

    def split(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        edges = np.linspace(0, len(items), comm.size + 1).astype(int)
        own = items[edges[comm.rank] : edges[comm.rank + 1]]
        mine = np.array([function(item) for item in own], dtype=float)
        counts = comm.gather(mine.size)
        whole = np.empty(sum(counts)) if counts else None
        comm.Gatherv(mine, None if whole is None else [whole, counts])
        return [] if whole is None else [*whole.reshape(len(items), *mine.shape[1:])]

    if comm.rank == 0:
        yield run
        comm.bcast(None)
        return
    while (work := comm.bcast(None)) is not None:
        split(*work)
    yield None


PEERS: dict[str, Any] = {
    "static": open_static,
    "multiprocessing.Pool": open_multiprocessing,
    "ProcessPoolExecutor": open_executor,
    "mpi4py.futures": open_futures,
    "schwimmbad": open_schwimmbad,
    "joblib": open_joblib,
    "dask": open_dask,
    "ray": open_ray,
    "libensemble": open_libensemble,
}


def run_draws(pool: Map, count: int, chunk: int) -> dict[str, float]:
    """W1: many tasks that do nothing; seconds in a warm pool."""
    pool(tasks.draw, [*range(100)], chunk)
    begun = time.perf_counter()
    found = pool(tasks.draw, [*range(count)], chunk)
    seconds = time.perf_counter() - begun
    checked = [*range(0, count, max(1, count // 50))]
    if [float(found[i]) for i in checked] != [tasks.draw(i) for i in checked]:
        raise SystemExit("the numbers are not those of the streams")
    return {"seconds": seconds}


def run_walks(pool: Map, count: int, chunk: int) -> dict[str, float]:
    """W2: many series, and bands of them; seconds until all are there, and in all."""
    pool(tasks.walk, [*range(100)], chunk)
    idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    begun = time.perf_counter()
    found = np.array(pool(tasks.walk, [*range(count)], chunk))
    gathered = time.perf_counter()
    tasks.find_bands(found)
    ended = time.perf_counter()
    if not all((found[i] == tasks.walk(i)).all() for i in range(0, count, 97)):
        raise SystemExit("the series are not those of the streams")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    gather, total = gathered - begun, ended - begun
    return {"seconds": gather, "total": total, "memory": peak - idle}


def run_naps(pool: Map, count: int, chunk: int) -> dict[str, float]:
    """W3: naps of very unlike length, the longest last; seconds for all."""
    naps = tasks.list_naps(count)
    pool(tasks.draw, [*range(100)], 1)  # another function: some learn what one takes
    begun = time.perf_counter()
    pool(tasks.nap, naps, chunk)
    return {"seconds": time.perf_counter() - begun}


def run_waits(pool: Map, count: int, chunk: int) -> dict[str, float]:
    """W5: naps of one second; what they cost is measured from outside."""
    begun = time.perf_counter()
    pool(tasks.nap, [1.0] * count, chunk)
    return {"seconds": time.perf_counter() - begun}


def run_none(pool: Map, count: int, chunk: int) -> dict[str, float]:
    """W5: the same without the waiting."""
    begun = time.perf_counter()
    pool(tasks.nap, [0.0] * count, chunk)
    return {"seconds": time.perf_counter() - begun}


WORKS = {
    "draws": run_draws,
    "walks": run_walks,
    "naps": run_naps,
    "waits": run_waits,
    "none": run_none,
}


def main() -> None:
    """Run one work with one peer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--chunk", type=int, default=1)
    parser.add_argument("--tasks", type=int, default=20000)
    options = parser.parse_args()
    with PEERS[options.peer](options.workers) as pool:
        if pool is not None:
            found = WORKS[options.work](pool, options.tasks, options.chunk)
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
