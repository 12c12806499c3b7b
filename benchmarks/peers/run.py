"""Measure W1 to W6 for mpiens and its peers, and write the tables.

    python benchmarks/peers/run.py --peers PEERS/bin/python --json figures.json

Runs in an environment of mpiens, with its mpiexec; the peers run in one of their own,
and those that are not in it are left out.  All peers of a work are run once per round,
each round beginning with another one.  Every answer is checked.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from importlib import metadata
from pathlib import Path
from statistics import median

import h5py
import numpy as np
import ours
import queueing
import seed
import tasks
from launch import HERE, Usage, launch
from report import Column, Run, ratios_to_best, replace_tables, write_table

MINE = "**mpiens**"
LARGE = {"draws": 20000, "walks": 2000, "naps": 400, "waits": 40, "none": 40, "tail": 6}
SMALL = {"draws": 800, "walks": 400, "naps": 16, "waits": 8, "none": 8, "tail": 1}
MPI = ("static", "mpi4py.futures", "schwimmbad")
MODULES = {
    "multiprocessing.Pool": "multiprocessing",
    "ProcessPoolExecutor": "concurrent.futures",
    "static": "mpi4py",
}
# peers and chunks: 1 is how users write it, others are tuned by hand (0: its choice)
FORMS: dict[str, list[tuple[str, int]]] = {
    "draws": [
        *(("static", 0), ("mpi4py.futures", 1), ("mpi4py.futures", 100)),
        *(("schwimmbad", 1), ("schwimmbad", 100)),
        *(("multiprocessing.Pool", 1), ("multiprocessing.Pool", 100)),
        *(("ProcessPoolExecutor", 1), ("ProcessPoolExecutor", 100)),
        *(("joblib", 1), ("joblib", 0), ("libensemble", 1), ("libensemble", 100)),
        *(("ray", 1), ("ray", 100), ("dask", 1), ("dask", 100)),
    ],
    "walks": [
        *(("static", 0), ("mpi4py.futures", 1), ("mpi4py.futures", 20)),
        *(("schwimmbad", 1), ("multiprocessing.Pool", 20)),
        *(("ProcessPoolExecutor", 1), ("ProcessPoolExecutor", 20), ("joblib", 20)),
        *(("libensemble", 20), ("ray", 20), ("dask", 20)),
    ],
    "naps": [
        *(("mpi4py.futures", 1), ("schwimmbad", 1), ("multiprocessing.Pool", 1)),
        *(("ProcessPoolExecutor", 1), ("joblib", 1), ("libensemble", 1)),
        *(("ray", 1), ("dask", 1)),
    ],
    "waits": [
        *(("mpi4py.futures", 1), ("schwimmbad", 1), ("multiprocessing.Pool", 1)),
        *(("libensemble", 1), ("ray", 1), ("dask", 1)),
    ],
}
Act = Callable[[Path], dict[str, float]]


def parse_options(words: list[str] | None) -> argparse.Namespace:
    """Return what is wanted; the defaults are the measurement that the docs show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--peers", default=sys.executable, help="the Python of the peers' environment")
    add("--only", nargs="+", choices=[*WORKS], help="works to measure")
    add("--rounds", type=int, default=3)
    add("--scale", choices=["large", "small"], default="large")
    add("--ranks", type=int, default=4)
    add("--workers", type=int, default=8, help="of W3 and W4")
    add("--json", type=Path, help="where all figures are written")
    add("--markdown", type=Path, help="a document in which the tables are renewed")
    return parser.parse_args(words)


def find_peers(python: str) -> dict[str, str]:
    """Return the versions of the peers that can be imported, by their modules."""
    code = """
import importlib, importlib.metadata as m, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        continue
    try:
        found[name] = m.version(name.partition('.')[0])
    except m.PackageNotFoundError:
        found[name] = sys.version.split()[0]
print(json.dumps(found))"""
    names = {MODULES.get(p, p) for forms in FORMS.values() for p, _ in forms}
    text = subprocess.check_output([python, "-c", code, *sorted(names)], text=True)
    found: dict[str, str] = json.loads(text.splitlines()[-1])
    return found


def run_peer(
    options: argparse.Namespace, work: str, peer: str, chunk: int, folder: Path
) -> dict[str, float]:
    """Run one peer once; schwimmbad and MPI's pools have a rank that only deals."""
    count = (LARGE if options.scale == "large" else SMALL)[work]
    workers = options.workers if work == "naps" else options.ranks
    own = ["--workers", str(workers), "--chunk", str(chunk), "--tasks", str(count)]
    command = [options.peers, str(HERE / "pools.py"), peer, work, *own]
    if peer in MPI:
        ranks = workers + (work == "naps" and peer != "static")
        mpiexec = str(Path(options.peers).with_name("mpiexec"))
        command = [mpiexec, "-n", str(ranks), *command]
    usage = launch(command, folder, path=[str(HERE)], tolerant=True)
    lines = [line for line in usage.output.splitlines() if line.startswith("{")]
    figures: dict[str, float] = json.loads(lines[-1])
    return {**figures, "whole": usage.seconds, "cpu": usage.cpu, "workers": workers}


def list_draws(options: argparse.Namespace) -> dict[str, Act]:
    """W1."""
    count = (LARGE if options.scale == "large" else SMALL)["draws"]
    return {MINE: partial(ours.run_draws, count=count, ranks=options.ranks)}


def list_walks(options: argparse.Namespace) -> dict[str, Act]:
    """W2; memory is that of the root beyond what it takes for a task of one number."""
    count = (LARGE if options.scale == "large" else SMALL)["walks"]

    def act(folder: Path) -> dict[str, float]:
        figures = ours.run_walks(folder, count, options.ranks)
        (folder / "idle").mkdir()
        idle = ours.find_idle(folder / "idle", options.ranks)
        return {**figures, "memory": figures["memory"] - idle}

    return {MINE: act}


def list_naps(options: argparse.Namespace) -> dict[str, Act]:
    """W3, in order and with the costs hinted."""
    count = (LARGE if options.scale == "large" else SMALL)["naps"]
    run = partial(ours.run_naps, count=count, ranks=options.workers)
    return {MINE: run, f"{MINE}, `cost` hinted": partial(run, cost="seconds")}


def list_shared(options: argparse.Namespace) -> dict[str, Act]:
    """W4: what is beyond the same with hardly any data."""
    size = (512 if options.scale == "large" else 16) << 20

    def act(folder: Path, loader: str, name: str, more: str = "") -> dict[str, float]:
        rng = np.random.default_rng(tasks.SEED)
        found = {}
        for what, count in (("small", 1 << 17), ("large", size // 8)):
            own = folder / what
            own.mkdir()
            data = rng.random(count)
            np.save(own / "shared.npy", data)
            with h5py.File(own / "shared.h5", "w") as file:
                file["x"] = data
            path = own / name
            found[what] = ours.run_looks(own, path, options.workers, loader, more)
        usage = launch([sys.executable, str(HERE / "arrays.py"), "read", str(own)], own)
        alone = json.loads(usage.output)["seconds"]
        first = found["large"]["seconds"] - found["small"]["seconds"]
        grown = found["large"]["memory"] - found["small"]["memory"]
        copies = grown * (1 << 20) / (size - (1 << 20))
        return {"seconds": first, "read": alone, "copies": copies}

    return {
        f"{MINE}, read into the window": partial(act, loader="load", name="shared.h5"),
        f"{MINE}, mapped": partial(
            act, loader="load_mapped", name="shared.npy", more="mapped = true\n"
        ),
    }


def list_waits(options: argparse.Namespace) -> dict[str, Act]:
    """W5: what waiting costs, in a share of a core for each process that waits."""
    sizes = LARGE if options.scale == "large" else SMALL
    ranks, count, tail = options.ranks, sizes["waits"], sizes["tail"]

    def act(folder: Path) -> dict[str, float]:
        found = {}
        for name, run in (
            ("none", partial(ours.run_waits, count=count, ranks=ranks, seconds=0.0)),
            ("waits", partial(ours.run_waits, count=count, ranks=ranks, seconds=1.0)),
            ("tail", partial(ours.run_tail, seconds=float(tail), ranks=ranks)),
        ):
            (folder / name).mkdir()
            found[name] = run(folder / name)
        spans = {"waits": count / ranks, "tail": float(tail)}
        return {
            name: (found[name].cpu - found["none"].cpu) / spans[name] / ranks
            for name in spans
        }

    def peer(name: str, folder: Path) -> dict[str, float]:
        none, waits = (
            run_peer(options, work, name, 1, folder)["cpu"]
            for work in ("none", "waits")
        )
        return {"waits": (waits - none) / (count / ranks) / ranks}

    known = find_peers(options.peers)
    wanted = [n for n, _ in FORMS["waits"] if MODULES.get(n, n) in known]
    return {MINE: act, **{name: partial(peer, name) for name in wanted}}


def list_starts(options: argparse.Namespace) -> dict[str, Act]:
    """W5: start-up, from the command to its end, with four tasks that do nothing."""
    mpiexec = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(options.ranks)]
    path = [str(HERE), str(HERE.parents[1])]

    def start(folder: Path, code: str) -> dict[str, float]:
        command = [*mpiexec, sys.executable, "-c", code]
        return {"whole": launch(command, folder, path=path).seconds}

    def run(folder: Path) -> dict[str, float]:
        spec = ours.write_spec(folder, "draw", options.ranks, "[outputs.x]\n")
        command = [*mpiexec, sys.executable, "-m", "mpiens", spec.name]
        return {"whole": launch(command, folder, path=path).seconds}

    bare = "from mpi4py import MPI; import numpy, h5py"
    each = "from mpi4py import MPI; import mpiens.ensemble"
    root = "import pydantic, rich.table, mpiens.root, mpiens.table, mpiens.frame"
    return {
        "mpi4py, numpy, h5py imported": partial(start, code=bare),
        "all that mpiens imports": partial(
            start, code=f"{each}\nif not MPI.COMM_WORLD.rank:\n {root}"
        ),
        MINE: run,
        f"{MINE} by `-n`": lambda folder: {
            "whole": ours.run_draws(folder, options.ranks, options.ranks)["whole"]
        },
    }


def list_arrays(options: argparse.Namespace) -> dict[str, Act]:
    """W6."""
    shape = ["20", "1000", "2000"] if options.scale == "large" else ["2", "50", "200"]
    path = [str(HERE), str(HERE.parents[1])]

    def act(folder: Path) -> dict[str, float]:
        found = {}
        for what in ("bands", "write"):
            script = [str(HERE / "arrays.py"), what, str(folder), "--shape", *shape]
            usage = launch([sys.executable, *script], folder, path=path)
            told = json.loads(usage.output.splitlines()[-1])
            found |= {f"{what}_{name}": value for name, value in told.items()}
        return found

    return {MINE: act}


def list_services(options: argparse.Namespace) -> dict[str, Act]:
    """The manager's part of one range."""
    path = [str(HERE), str(HERE.parents[1])]
    count = "20000" if options.scale == "large" else "500"
    mpiexec = [str(Path(sys.executable).with_name("mpiexec")), "-n", "2"]

    def act(folder: Path) -> dict[str, float]:
        script = [sys.executable, str(HERE / "manager.py"), str(folder)]
        found = {}
        for command in ([*script, "--ranges", count], [*mpiexec, *script]):
            usage = launch(command, folder, path=path)
            found |= json.loads(usage.output.splitlines()[-1])
        return found

    return {MINE: act}


def list_seed(options: argparse.Namespace) -> dict[str, Act]:
    """The seed case, whole processes from start to end."""
    people = 1_340_000 if options.scale == "large" else 5_000
    workers = (1, 2, 4, 9) if options.scale == "large" else (1, 2)
    place = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    data = place / "shared.npz"
    path = [str(HERE), str(HERE.parents[1])]
    script = [sys.executable, str(HERE / "seed.py")]
    words = [str(data), "--people", str(people)]
    launch([*script, "make", *words], place, path=path)
    shared = seed.load(str(data))
    one = seed.simulate(tasks.stream(seed.RUNS - 1), shared)["x"].tolist()

    def describe(usage: Usage, found: list[list[int]]) -> dict[str, float]:
        if found[-1] != one:
            raise SystemExit("the epidemics are not those of the streams")
        per_minute = 60 * seed.RUNS / usage.seconds
        return {"per_minute": per_minute, "memory": usage.memory}

    def run_pool(folder: Path, kind: str, count: int) -> dict[str, float]:
        command = [*script, kind, str(data), "--workers", str(count)]
        usage = launch(command, folder, path=path, watch=True)
        return describe(usage, json.loads(usage.output))

    def run_mine(folder: Path, count: int) -> dict[str, float]:
        rest = (
            '[outputs.x]\ndims = ["day"]\n[shared]\nloader = "seed:load"\n'
            f'kwargs = {{ path = "{data}" }}\n'
        )
        spec = ours.write_spec(folder, "simulate", seed.RUNS, rest, module="seed")
        usage = ours.run(spec, count, watch=True)
        _, found = ours.read(spec)
        return describe(usage, found[0].tolist())

    kinds = {
        "ProcessPoolExecutor, spawn": "spawn",
        "ProcessPoolExecutor, fork": "fork",
        "ProcessPoolExecutor, read before the fork": "before",
    }
    found: dict[str, Act] = {}
    for count in workers:
        found[f"{MINE}, {count}"] = partial(run_mine, count=count)
        for name, kind in kinds.items():
            found[f"{name}, {count}"] = partial(run_pool, kind=kind, count=count)
    return found


def seconds(figures: dict[str, float]) -> float | None:
    return figures.get("seconds")


def field(name: str, factor: float = 1.0) -> Callable[[dict[str, float]], float | None]:
    """Return what takes a figure, times a factor."""

    def take(figures: dict[str, float]) -> float | None:
        return factor * figures[name] if name in figures else None

    return take


def over(name: str, other: str) -> Callable[[dict[str, float]], float | None]:
    """Return what takes the ratio of two figures."""

    def take(figures: dict[str, float]) -> float | None:
        return figures[name] / figures[other] if figures.get(other) else None

    return take


WORKS: dict[str, Callable[[argparse.Namespace], dict[str, Act]]] = {
    "draws": list_draws,
    "walks": list_walks,
    "naps": list_naps,
    "shared": list_shared,
    "waits": list_waits,
    "starts": list_starts,
    "arrays": list_arrays,
    "services": list_services,
    "seed": list_seed,
}


def list_peers(options: argparse.Namespace, work: str) -> dict[str, Act]:
    """Return what runs every peer of a work, in the order of the table."""
    found = WORKS[work](options)
    known = find_peers(options.peers)
    for peer, chunk in FORMS.get(work, []) if work != "waits" else []:
        if MODULES.get(peer, peer) in known:
            chosen = "static" if peer == "static" else "auto"
            name = f"{peer}, chunk {chunk or chosen}"
            found[name] = partial(run_peer, options, work, peer, chunk)
    return found


def run_rounds(options: argparse.Namespace, work: str) -> list[Run]:
    """Run every peer once per round, each round beginning with another one."""
    peers = list_peers(options, work)
    names = [*peers]
    runs = []
    for number in range(options.rounds):
        shift = number * max(1, len(names) // options.rounds) % len(names)
        for name in names[shift:] + names[:shift]:
            with tempfile.TemporaryDirectory() as folder:
                figures = peers[name](Path(folder))
            told = ", ".join(f"{k} {v:.4g}" for k, v in figures.items())
            print(
                f"{work}, round {number}, {name}: {told}", file=sys.stderr, flush=True
            )
            runs.append(Run(work, name, number, figures))
    return sorted(runs, key=lambda run: (names.index(run.peer), run.round))


def main(words: list[str] | None = None) -> None:
    """Measure, print the tables, and write what is wanted."""
    options = parse_options(words)
    runs = {work: run_rounds(options, work) for work in options.only or WORKS}
    text = write_document(options, runs)
    print(text)
    if options.markdown is not None:
        file = options.markdown
        before = file.read_text(encoding="utf-8") if file.exists() else ""
        file.write_text(replace_tables(before, text), encoding="utf-8")
    if options.json is not None:
        told = {w: [vars(run) for run in own] for w, own in runs.items()}
        options.json.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def write_document(options: argparse.Namespace, runs: dict[str, list[Run]]) -> str:
    """Return all tables, each under its heading, and where they were measured."""
    sizes = LARGE if options.scale == "large" else SMALL
    naps = tasks.list_naps(sizes["naps"])
    ideal = tasks.makespan(naps, options.workers)
    bound = tasks.bound(naps, options.workers)
    thousand = Column("thousand tasks/s", lambda f: sizes["draws"] / f["seconds"] / 1e3)
    by_us = Column("of mpiens", thousand.make, "{:.2f}", against=MINE)
    columns = {
        "draws": [thousand, by_us, Column("whole process, s", field("whole"))],
        "walks": [
            Column("gathered, s", seconds),
            Column("with bands, s", field("total")),
            Column("root's memory beyond idle, MiB", field("memory"), "{:.0f}"),
        ],
        "naps": [
            Column("s", seconds),
            Column("by the ideal in order", lambda f: f["seconds"] / ideal, "{:.3f}"),
            Column("by the bound", lambda f: f["seconds"] / bound, "{:.3f}"),
        ],
        "shared": [
            Column("until all have begun, s", seconds),
            Column("one read alone, s", field("read")),
            Column("copies", field("copies"), "{:.3f}"),
        ],
        "waits": [
            Column("while tasks of 1 s run, % of a core each", field("waits", 100)),
            Column("in a tail, % of a core each", field("tail", 100)),
        ],
        "starts": [Column("s", field("whole"))],
        "arrays": [
            Column("bands, s", field("bands_seconds")),
            Column("numpy.quantile, s", field("bands_numpy")),
            Column("ratio", over("bands_seconds", "bands_numpy"), "{:.2f}"),
            Column("sorting alone, s", field("bands_sort")),
            Column("write, s", field("write_seconds")),
            Column("tofile, s", field("write_tofile")),
            Column("rate by tofile's", over("write_tofile", "write_seconds"), "{:.2f}"),
        ],
        "seed": [
            Column("runs a minute", field("per_minute"), "{:.1f}"),
            Column("memory, MiB", field("memory"), "{:,.0f}"),
        ],
        "services": [
            Column("root, us a range", field("service", 1e6)),
            Column("messages, us a range", field("message", 1e6)),
            Column("ranges/s", lambda f: 1 / (f["service"] + f["message"]), "{:,.0f}"),
        ],
    }
    titles = {
        "draws": f"W1: {sizes['draws']:,} tasks that do nothing, {options.ranks} ranks",
        "walks": f"W2: {sizes['walks']:,} series of {tasks.STEPS:,} steps and bands",
        "naps": f"W3: {sizes['naps']} naps and a long one last, "
        f"{options.workers} workers",
        "shared": f"W4: shared data, {options.workers} ranks",
        "waits": f"W5: waiting, {options.ranks} ranks",
        "starts": f"W5: starting, {options.ranks} ranks",
        "arrays": "W6: bands and writing of 320 MB",
        "services": "How many ranges a manager deals",
        "seed": "The seed case: 8 runs with 65 MB of compressed data, by workers",
    }
    parts = [describe_place(options)]
    for work, own in runs.items():
        parts += [f"## {titles[work]}", write_table(own, columns[work])]
        if work in ("draws", "walks"):
            tuned = ratios_to_best(own, "seconds", MINE, besides=[])
            if tuned:
                parts.append(
                    "The best other peer of each round took "
                    f"{median(tuned):.2f} times as long as mpiens "
                    f"({min(tuned):.2f}-{max(tuned):.2f})."
                )
        if work == "naps":
            parts.append(f"Ideal in order {ideal:.3f} s, bound {bound:.3f} s.")
        if work == "services":
            parts.append(write_capacities(own))
    return "\n\n".join(parts)


def write_capacities(runs: list[Run]) -> str:
    """Return how many ranks one manager keeps busy, by the length of tasks."""
    service = median(r.figures["service"] + r.figures["message"] for r in runs)
    lines = [
        "| a task takes | ranks that are busy for 95% of the time |",
        "| --- | --- |",
    ]
    for run, told in ((1e-3, "1 ms"), (1e-2, "10 ms"), (0.1, "0.1 s"), (1.0, "1 s")):
        span = queueing.range_seconds(run)
        lines.append(f"| {told} | {queueing.capacity(span, service):,} |")
    lines.append(f"| 10 s | {queueing.capacity(10.0, service):,} |")
    return "\n".join(lines)


def describe_place(options: argparse.Namespace) -> str:
    """Return where and with what this was measured."""
    cpu = next(
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    )
    names = ("mpi4py", "numpy", "h5py")
    mine = ", ".join(f"{name} {metadata.version(name)}" for name in names)
    known = find_peers(options.peers)
    theirs = ", ".join(f"{name} {version}" for name, version in sorted(known.items()))
    return (
        f"Measured on {os.cpu_count()} cores ({cpu}), Python "
        f"{platform.python_version()}, {platform.system()} {platform.release()}; "
        f"mpiens with {mine}; peers: {theirs}. {options.rounds} rounds; medians "
        "(least-most)."
    )


if __name__ == "__main__":
    main()
