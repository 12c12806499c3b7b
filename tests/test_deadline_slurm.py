"""Before the end of a real Slurm job, which nobody has asked to send a signal."""

from __future__ import annotations

import time
from pathlib import Path

from cluster import MPI_TYPES, Cluster
from conftest import Launcher, python_of, write

MODEL = """
import os
import time


def simulate(rng):
    time.sleep(1 if "SLOW" in os.environ else 0)
    return {"luck": rng.normal()}
"""
SPEC = '[ensemble]\nmodel = "model.py:simulate"\nreplicates = 400\nseed = 3\n'


def test_a_job_ends_by_itself_before_slurm_kills_it(
    cluster: Cluster, launcher: Launcher, tmp_path: Path
) -> None:
    """Slurm 22.05 tells the job nothing of its end: it has to be asked."""
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "sweep.toml", SPEC)
    mpiens = f"{python_of('mpich')} -m mpiens sweep.toml"
    script = f"#!/bin/sh\nexec srun --mpi={MPI_TYPES['mpich']} {mpiens}\n"
    write(tmp_path, "job.sh", script)
    words = ["--output=job.out", "--nodes=2", "--ntasks-per-node=2"]

    def submit(*more: str, **variables: str) -> str:
        """Run the job to its end; return its exit code and signal, as Slurm says."""
        submitted = launcher.run(
            ["sbatch", "--parsable", *words, *more, "job.sh"],
            **variables,
            **cluster.variables,
        )
        return cluster.wait(submitted.output.strip(), limit=90)["ExitCode"]

    since = time.monotonic()
    code = submit("--time=1", SLOW="1")
    told = (tmp_path / "job.out").read_text()
    assert code == "75:0", told
    assert 20 < time.monotonic() - since < 57
    assert "stopped early (the job's time is nearly over)" in told
    assert "CANCELLED" not in told
    code = submit()
    assert code == "0:0", (tmp_path / "job.out").read_text()
    assert "400 of 400 tasks" in launcher.mpiens("show", "sweep.h5").output
