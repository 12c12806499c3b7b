"""One run of the real program: a spec, `mpiens -n N`, and what its file says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tasks
from launch import HERE, Usage, launch

HEAD = """[ensemble]
model = "{module}:{function}"
replicates = {replicates}
seed = {seed}
"""


def write_spec(
    folder: Path, function: str, replicates: int, rest: str, *, module: str = "model"
) -> Path:
    """Write a spec whose model is the benchmark's."""
    head = HEAD.format(
        module=module, function=function, replicates=replicates, seed=tasks.SEED
    )
    path = folder / "work.toml"
    path.write_text(head + rest, encoding="utf-8")
    return path


def run(spec: Path, ranks: int, *, watch: bool = False) -> Usage:
    """Run it with default settings, as a user does."""
    command = [sys.executable, "-m", "mpiens", "-n", str(ranks), spec.name]
    path = [str(HERE), str(HERE.parents[1])]
    return launch(command, spec.parent, path=path, watch=watch)


def read(spec: Path) -> tuple[dict[str, Any], Any]:
    """Return the attributes of the result, and its series."""
    with h5py.File(spec.with_suffix(".h5")) as file:
        return dict(file.attrs), file["series/x"][:]


def run_draws(folder: Path, count: int, ranks: int) -> dict[str, float]:
    """W1: seconds from the first range dealt to the last row in the file."""
    spec = write_spec(folder, "draw", count, "[outputs.x]\n")
    usage = run(spec, ranks)
    told, found = read(spec)
    checked = [*range(0, count, max(1, count // 50))]
    if [float(found[0, i]) for i in checked] != [tasks.draw(i) for i in checked]:
        raise SystemExit("the numbers are not those of the streams")
    return {"seconds": told["seconds_dealing"], "whole": usage.seconds}


def run_walks(folder: Path, count: int, ranks: int) -> dict[str, float]:
    """W2: seconds until all series are in the file, and until their bands are."""
    towns = [*range(count // tasks.REPLICATES)]
    rest = f'[sweep]\ntown = {towns}\n[outputs.x]\ndims = ["step"]\n'
    spec = write_spec(folder, "walk", tasks.REPLICATES, rest)
    usage = run(spec, ranks, watch=True)
    told, found = read(spec)
    whole = found.reshape(count, tasks.STEPS)
    if not all((whole[i] == tasks.walk(i)).all() for i in range(0, count, 97)):
        raise SystemExit("the series are not those of the streams")
    with h5py.File(spec.with_suffix(".h5")) as file:
        bands = np.moveaxis(file["bands/x"][:], 1, 0)
    if not (bands == tasks.find_bands(whole)).all():
        raise SystemExit("the bands are not numpy's")
    return {
        "seconds": told["seconds_dealing"],
        "total": told["seconds"],
        "memory": usage.root_peak,
        "whole": usage.seconds,
    }


def find_idle(folder: Path, ranks: int) -> float:
    """Return the MiB that the root takes at most for next to nothing."""
    return run(
        write_spec(folder, "draw", ranks, "[outputs.x]\n"), ranks, watch=True
    ).root_peak


def run_naps(folder: Path, count: int, ranks: int, cost: str = "") -> dict[str, float]:
    """W3: seconds from the first range dealt to the last row in the file."""
    naps = tasks.list_naps(count)
    limits = f'[limits]\ncost = "{cost}"\n' if cost else ""
    rest = f"{limits}[sweep]\nseconds = {naps}\n[outputs.x]\n"
    spec = write_spec(folder, "nap", 1, rest)
    run(spec, ranks)
    told, found = read(spec)
    if found.reshape(-1).tolist() != naps:
        raise SystemExit("not every task was run")
    return {"seconds": told["seconds_dealing"]}


def run_waits(folder: Path, count: int, ranks: int, seconds: float) -> Usage:
    """W5: as many naps as ranks have time for."""
    rest = f"[parameters]\nseconds = {seconds}\n[outputs.x]\n"
    return run(write_spec(folder, "nap", count, rest), ranks)


def run_tail(folder: Path, seconds: float, ranks: int) -> Usage:
    """W5: one long nap, and nothing for the others."""
    rest = f"[sweep]\nseconds = [{seconds}, 0.0, 0.01, 0.02]\n[outputs.x]\n"
    return run(write_spec(folder, "nap", 1, rest), ranks)


def run_looks(
    folder: Path, data: Path, ranks: int, loader: str, more: str = ""
) -> dict[str, float]:
    """W4: seconds until every rank has summed its part, and memory in all."""
    rest = (
        f"[parameters]\nranks = {ranks}\n[outputs.x]\n[outputs.total]\n"
        f'[shared]\nloader = "model:{loader}"\nkwargs = {{ path = "{data}" }}\n{more}'
    )
    spec = write_spec(folder, "look", ranks, rest)
    usage = run(spec, ranks, watch=True)
    _, found = read(spec)
    return {
        "seconds": float(found.max()) - usage.began,
        "memory": usage.memory,
    }
