"""Calibrate by sleeping simulations: mpiens against Optuna over Dask.

    python benchmarks/calibration/run.py --peers /path/to/peers/bin/python

Runs in an environment of mpiens, with its mpiexec; the peers run in one of their own.
All peers are run once per round, each round beginning with another one.  The table goes
to standard output, everything else to standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from string import Template
from typing import Any

import h5py
import model
import numpy as np
from report import Run, Work, find_idle, to_document, write_table

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OURS = "mpiens parallel"
COMPLETE = 3  # a trial's state in the result file
FORMS = ("batched-12", "threads-12", "threads-7")
LINES = 40  # of what a failed run said
LIMIT = 900.0  # seconds that one run may take


@dataclass(frozen=True)
class Usage:
    """What a command took, from its start to its end."""

    seconds: float
    cpu: float  # seconds, of all its processes
    others: float  # share of the cores' time that went to anything else


def parse_options(words: list[str] | None) -> argparse.Namespace:
    """Return what is wanted; the defaults are the measurement that the docs show."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--peers", help="the Python of an environment with dask and optuna")
    add("--only", nargs="+", help='peers to run, such as "mpiens batched" threads-7')
    add("--trials", type=int, default=200)
    add("--replicates", type=int, default=5)
    add("--workers", type=int, default=16)
    add("--rounds", type=int, default=3)
    add("--scale", type=float, default=0.01, help="of the seconds that are slept")
    add("--batch", type=int, default=16, help="trials between barriers; or threads")
    add(
        "--in-flight", type=int, help="trials of mpiens parallel, if not its own choice"
    )
    add("--seed", type=int, default=20260529)
    add("--startup", type=int, default=10, help="n_startup_trials of TPE")
    add("--candidates", type=int, default=24, help="n_ei_candidates of TPE")
    add("--journal", action="store_true", help="the peers too keep a journal file")
    add("--json", type=Path, help="where all figures are written")
    add("--keep", type=Path, help="a folder for what the runs leave behind")
    return parser.parse_args(words)


def list_peers(options: argparse.Namespace) -> dict[str, Callable[[Path], Run]]:
    """Return what runs each peer, by name, in a folder of its own."""
    batched = {"mode": "batched", "in_flight": options.batch}
    parallel = {"mode": "parallel", "in_flight": options.in_flight}
    peers: dict[str, Callable[[Path], Run]] = {
        OURS: partial(run_ours, options, **parallel),
        "mpiens batched": partial(run_ours, options, **batched),
    }
    if options.peers is not None:
        for form in FORMS:
            peers[f"Dask {form}"] = partial(run_dask, options, form)
    if options.only is None:
        return peers
    wanted = [f"Dask {name}" if name in FORMS else name for name in options.only]
    return {name: peers[name] for name in dict.fromkeys([OURS, *wanted])}


def run_ours(
    options: argparse.Namespace, folder: Path, *, mode: str, in_flight: int | None
) -> Run:
    """Run mpiens on as many ranks as there are workers; all of them simulate.

    Timed is from before the first trial is asked for until the last has been told.
    """
    shutil.copy(HERE / "model.py", folder)
    model.write_data(folder / "observed.csv")
    text = Template((HERE / "calibration.toml").read_text(encoding="utf-8"))
    spec = text.substitute(
        vars(options),
        mode=mode,
        in_flight=f"in_flight = {in_flight}" if in_flight else "",
        parameters="\n".join(
            f'[calibrate.parameters.{name}]\nlow = {low}\nhigh = {high}\nscale = "{s}"'
            for name, (low, high, s) in model.RANGES.items()
        ),
    )
    (folder / "calibration.toml").write_text(spec, encoding="utf-8")
    ranks = ["-n", str(options.workers)]
    command = [sys.executable, "-m", "mpiens", *ranks, "calibration.toml"]
    usage, _ = run_timed(command, folder, ROOT)
    with h5py.File(folder / "calibration.h5") as file:
        trials = file["trials"]
        if not (trials["state"][:] == COMPLETE).all():
            raise RuntimeError(f"not all trials of {folder} are complete")
        asked, told = trials["asked"][:], trials["told"][:]
        before = np.nan_to_num(trials["ask_seconds"][np.argmin(asked)])
        found = {
            "began": float(asked.min() - before),
            "ended": float(told.max()),
            "simulations": int(file["tasks/attempts"][:].sum()),
            "scores": len(asked),
            "best": float(trials["loss"][:].min()),
        }
    return describe(options, folder, usage, found)


def run_dask(options: argparse.Namespace, form: str, folder: Path) -> Run:
    """Run one form of Optuna over Dask; timed is from first submit to last result."""
    same = ("trials", "replicates", "workers", "batch", "scale", "seed")
    words = ["--form", form]
    for name in (*same, "startup", "candidates"):
        words += [f"--{name}", str(getattr(options, name))]
    if options.journal:
        words += ["--journal", str(folder / "journal")]
    command = [options.peers, str(HERE / "dask_peer.py"), *words]
    usage, output = run_timed(command, folder, HERE)
    found = json.loads(output)
    if found["trials"] != options.trials:
        raise RuntimeError(f"{form} made {found['trials']} trials")
    return describe(options, folder, usage, found)


def describe(
    options: argparse.Namespace, folder: Path, usage: Usage, found: dict[str, Any]
) -> Run:
    """Return a run; its name and round are filled in by who asked for it."""
    ran = model.read_log(folder)
    if len(ran) != found["simulations"]:
        told = found["simulations"]
        raise RuntimeError(f"{folder}: {len(ran)} simulations ran, not {told}")
    once = options.trials * options.replicates
    window = found["began"], found["ended"]
    seconds = window[1] - window[0]
    return Run(
        peer="",
        round=0,
        seconds=seconds,
        outside=usage.seconds - seconds,
        cpu=usage.cpu,
        others=usage.others,
        trials=options.trials,
        simulations=found["simulations"],
        scores=found["scores"],
        best=found["best"],
        busy=plan(options).total * found["simulations"] / once,
        idle=find_idle(ran, *window, options.workers),
    )


def plan(options: argparse.Namespace) -> Work:
    """Return the simulations that every peer has to run."""
    return Work(options.trials, options.replicates, options.workers, options.scale)


def run_timed(command: list[str], folder: Path, path: Path) -> tuple[Usage, str]:
    """Run a command; return what it took and its standard output.

    Raises RuntimeError, with the last of what it said, where it fails.
    """
    searched = os.pathsep.join(filter(None, (str(path), os.environ.get("PYTHONPATH"))))
    variables = os.environ | {
        "PYTHONPATH": searched,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    began, own, all_busy = time.monotonic(), read_children(), read_busy()
    with (folder / "errors").open("w", encoding="utf-8") as errors:
        done = subprocess.run(
            command,
            cwd=folder,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=LIMIT,
            check=False,
        )
    seconds = time.monotonic() - began
    cpu = read_children() - own
    others = max(0.0, read_busy() - all_busy - cpu) / (seconds * (os.cpu_count() or 1))
    if done.returncode != 0:
        lines = (folder / "errors").read_text(encoding="utf-8").splitlines()
        told = "\n".join(lines[-LINES:])
        raise RuntimeError(f"{command} ended with {done.returncode}:\n{told}")
    return Usage(seconds, cpu, others), done.stdout


def read_children() -> float:
    """Return the CPU seconds of all commands that have ended, with all they started."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def read_busy() -> float:
    """Return the seconds in which cores were busy for anybody, or taken away."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split()[1:9]
    user, nice, system, _idle, _wait, irq, soft, stolen = map(int, fields)
    busy = user + nice + system + irq + soft + stolen
    return busy / os.sysconf("SC_CLK_TCK")


def run_rounds(options: argparse.Namespace, folder: Path) -> list[Run]:
    """Run every peer once per round, each round beginning with another one."""
    peers = list_peers(options)
    runs = []
    for number in range(options.rounds):
        shift = number % len(peers)
        names = [*peers]
        for name in names[shift:] + names[:shift]:
            own = folder / f"{number}-{name.replace(' ', '-')}"
            own.mkdir(parents=True)
            run = dataclasses.replace(peers[name](own), peer=name, round=number)
            print(
                f"round {number}, {name}: {run.seconds:.2f} s, and {run.outside:.1f} s "
                f"outside; {run.cpu:.1f} s of CPU time, and others had "
                f"{run.others:.0%} of the cores",
                file=sys.stderr,
            )
            runs.append(run)
    order = [*peers]
    return sorted(runs, key=lambda run: (order.index(run.peer), run.round))


def describe_place(options: argparse.Namespace) -> dict[str, Any]:
    """Return where and with what this was measured."""
    place: dict[str, Any] = {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "system": platform.platform(),
        "mpiens": {
            name: metadata.version(name) for name in ("mpi4py", "numpy", "optuna")
        },
    }
    if options.peers is not None:
        code = "import json, sys; from importlib.metadata import version as v; "
        code += "print(json.dumps({n: v(n) for n in sys.argv[1:]}))"
        names = ("dask", "distributed", "numpy", "optuna")
        told = subprocess.check_output([options.peers, "-c", code, *names], text=True)
        place["peers"] = json.loads(told)
    return place


def main(words: list[str] | None = None) -> None:
    """Measure, print the table, and write JSON where it is wanted."""
    options = parse_options(words)
    work = plan(options)
    place = describe_place(options)
    if options.keep is not None:
        runs = run_rounds(options, options.keep)
    else:
        with tempfile.TemporaryDirectory() as folder:
            runs = run_rounds(options, Path(folder))
    bounds = {
        "total": work.total,
        "bound": work.bound,
        "ideal": work.ideal,
        "ideal_batched": work.ideal_batched(options.batch),
    }
    print(write_table(runs, work, OURS))
    print(
        f"\n{options.trials} trials of {options.replicates} simulations, "
        f"{work.total:.1f} s in all; on {options.workers} workers {bounds['bound']:.2f}"
        f" s at least, {bounds['ideal']:.2f} s in order, "
        f"{bounds['ideal_batched']:.2f} s with a barrier every {options.batch} trials."
        f" Others had up to {max(run.others for run in runs):.0%} of the cores."
    )
    if options.json is not None:
        document = {
            "options": vars(options),
            "place": place,
            "bounds": bounds,
            "peers": to_document(runs, work, OURS),
        }
        text = json.dumps(document, indent=1, default=str)
        options.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
