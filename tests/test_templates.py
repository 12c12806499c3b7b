"""The templates in slurm/, submitted as they stand to a real Slurm with two nodes.

Every line that a template's header shows is taken from there and run.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import NODES, Cluster
from conftest import ENVIRONMENTS, Launcher, python_of, wait_until, write

ROOT = Path(__file__).parents[1]
TEMPLATES = ROOT / "slurm"
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
TASKS = 200
TWO_BY_TWO = "--nodes=2 --ntasks=4 --ntasks-per-node=2"

# Its tasks take as long as the job's environment says.
MODEL = """
import os
import time


def simulate(rng, *, days=10, mask=0.0):
    time.sleep(float(os.environ.get("TASK_SECONDS", "0")))
    return {"infected": rng.poisson(100 * (1 - mask), days).cumsum()}
"""
SMALL = f"""
[ensemble]
model = "model.py:simulate"
replicates = {TASKS // 2}
seed = 7
[scenarios.baseline]
[scenarios.masks]
mask = 0.3
[outputs.infected]
dims = ["day"]
summaries = ["final"]
[bands]
baseline = "baseline"
"""


def header(template: str) -> list[str]:
    """The lines that the comment at the top of a template shows."""
    text = (TEMPLATES / template).read_text()
    found = re.findall(r"^# +(sbatch .*)$", text.partition("#SBATCH")[0], re.MULTILINE)
    assert found
    return list(found)


@dataclass
class Site:
    """A user's folder on the cluster: the templates, a model and its spec."""

    cluster: Cluster
    launcher: Launcher
    folder: Path

    def submit(self, line: str, environment: str = "mpich", seconds: float = 0) -> int:
        """Type a line; return the id of the last job that it has submitted."""
        launch = self.launcher.run(
            ["bash", "-c", line],
            MPIENS_PYTHON=python_of(environment),
            TASK_SECONDS=str(seconds),
            **self.cluster.variables,
        )
        assert launch.code == 0, launch.errors
        return int(launch.output.split()[-1])

    def end(self, job: int, limit: float = 90) -> tuple[str, str]:
        """Wait for a job's end; return its state and exit code."""
        shown = self.cluster.wait(job, limit=limit)
        return shown["JobState"], shown["ExitCode"]

    def complete(self, job: int, limit: float = 90) -> None:
        assert self.end(job, limit) == ("COMPLETED", "0:0"), self.logs()

    def drain(self, limit: float = 120) -> None:
        """Wait until there is no job any more."""
        wait_until(lambda: not self.cluster.run("squeue", "--noheader"), limit)

    def logs(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def done(self) -> int:
        """How many tasks are finished, as a user asks."""
        shown = self.launcher.mpiens("show", "results/sweep.h5.partial", "--json")
        return int(json.loads(shown.output)["tasks"]["done"]) if shown.output else 0

    def await_tasks(self, count: int = 1) -> None:
        wait_until(lambda: self.done() >= count)

    def agrees(self, environment: str = "mpich", results: str = "results") -> None:
        """The result is complete, and the one of a single rank."""
        file = f"alone.{environment}.h5"
        alone = self.launcher.mpiens("sweep.toml", "-o", file, environment=environment)
        assert alone.code == 0, alone.errors
        digest = self.launcher.digest(f"{results}/sweep.h5")
        assert digest == self.launcher.digest(file)
        assert not list((self.folder / results).glob("*.partial*"))


@pytest.fixture
def site(cluster: Cluster, launcher: Launcher, tmp_path: Path) -> Site:
    for template in TEMPLATES.iterdir():
        shutil.copy(template, tmp_path)
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "sweep.toml", SMALL)
    return Site(cluster, launcher, tmp_path)


def test_the_page_shows_lines_that_are_run_here() -> None:
    shown = re.findall(r"^sbatch .*", PAGE, re.MULTILINE)
    run = [line for template in TEMPLATES.iterdir() for line in header(template.name)]
    assert len(shown) == 4
    begun = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    assert {*re.findall(r"^sbatch .*", begun, re.MULTILINE)} <= {*shown}
    assert set(shown) <= set(run)
    variables = "".join(template.read_text() for template in TEMPLATES.iterdir())
    for name in re.findall(r"^\| `([A-Z_]+)` \|", PAGE, re.MULTILINE):
        assert f"${{{name}:-" in variables


FIT = """
[ensemble]
model = "model.py:simulate"
replicates = 2
seed = 1
[outputs.infected]
dims = ["day"]
[calibrate]
trials = 12
storage = "study.log"
[calibrate.parameters]
mask = { low = 0.0, high = 0.9 }
[calibrate.targets.infected]
output = "infected"
data = "data.csv"
column = "infected"
"""


def test_jobs_of_an_array_share_a_calibration(site: Site) -> None:
    page = (ROOT / "docs" / "calibration.md").read_text(encoding="utf-8")
    [line] = re.findall(r"^sbatch --array.*", page, re.MULTILINE)
    [merge] = re.findall(r"^mpiens merge fit.*", page, re.MULTILINE)
    write(site.folder, "fit.toml", FIT)
    cases = "\n".join(f"{day},{60 * (day + 1)}" for day in range(10))
    write(site.folder, "data.csv", f"day,infected\n{cases}\n")
    folder = Path(python_of("mpich")).parent
    site.submit(f"PATH={folder}:$PATH {line.replace('srun', 'srun --mpi=pmi2')}")
    site.drain()
    ran = site.launcher.run(["bash", "-c", f"PATH={folder}:$PATH {merge}"])
    assert ran.code == 0, f"{ran.errors}{site.logs()}"
    told = site.launcher.mpiens("show", "fit.h5", "--json")
    assert told.code == 0, f"{told.errors}{site.logs()}"
    shown = json.loads(told.output)
    trials = shown["calibration"]["trials"]
    assert 12 <= len(trials) <= 14, "the last may be asked for by each job"
    assert {trial["state"] for trial in trials} == {"complete"}


@pytest.mark.parametrize(
    ("environment", "mpi"), [("mpich", "pmi2"), ("debian", "pmix")]
)
def test_the_check_of_the_page_tells_ranks_and_hdf5(
    site: Site, environment: str, mpi: str
) -> None:
    [line] = re.findall(r"^srun .*world.*", PAGE, re.MULTILINE)
    line = line.replace("pmi2", mpi).replace(" python ", f" {python_of(environment)} ")
    launch = site.launcher.run(["bash", "-c", line], **site.cluster.variables)
    parallel = environment != "mpich"
    assert sorted(launch.output.splitlines()) == [
        f"rank {rank} of 2 parallel HDF5: {parallel}" for rank in range(2)
    ], launch.errors


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_sweep_on_two_nodes_is_that_of_one_rank(site: Site, environment: str) -> None:
    plain, overridden = header("sweep.sbatch")
    job = site.submit(overridden, environment)
    site.complete(job)
    assert site.cluster.show(job)["NumNodes"] == "2"
    site.agrees(environment)
    site.complete(site.submit(plain, environment))
    assert "is complete: nothing to do" in site.logs()


def test_a_sweep_with_failed_tasks_ends_with_3(site: Site) -> None:
    spec = SMALL.replace("mask = 0.3", "").replace(f"= {TASKS // 2}", "= 2")
    write(
        site.folder,
        "model.py",
        """
        def simulate(rng, replicate):
            return {"infected": 1 / replicate * rng.random(3)}
        """,
    )
    write(site.folder, "sweep.toml", spec)
    job = site.submit(header("sweep.sbatch")[0])
    assert site.end(job) == ("FAILED", "3:0"), site.logs()


@pytest.mark.parametrize("environment", ["mpich", "openmpi"])
def test_an_array_and_its_merge_are_submitted_by_one_line(
    site: Site, environment: str
) -> None:
    [together, *_] = header("array.sbatch")
    assert together == header("merge.sbatch")[0]
    site.complete(site.submit(together, environment))
    assert len(list(site.folder.glob("results/sweep.?-of-4.h5"))) == 4
    site.agrees(environment)


def test_the_merge_names_a_missing_element_and_the_line_for_it(site: Site) -> None:
    _, one, _ = header("array.sbatch")
    _, merge = header("merge.sbatch")
    site.submit(one.replace("--array=2", "--array=0,1,3"))
    site.drain()
    assert site.end(site.submit(merge)) == ("FAILED", "75:0"), site.logs()
    assert (site.folder / "results/sweep.h5.partial").exists()
    assert "shard 2 of 4 lacks 50 tasks" in site.logs()
    [line] = re.findall(r"run just that by (sbatch .*), and merge again", site.logs())
    for words in (line, one):  # the one in the header finds nothing left to do
        site.submit(words)
        site.drain()
    assert "sweep.2-of-4.h5 is complete: nothing to do" in site.logs()
    site.complete(site.submit(merge))
    site.agrees()


def test_an_array_has_as_many_shards_as_it_is_told(site: Site) -> None:
    _, _, eight = header("array.sbatch")
    site.submit(eight)
    site.drain()
    assert len(list(site.folder.glob("results/sweep.?-of-8.h5"))) == 8, site.logs()
    _, merge = header("merge.sbatch")
    site.complete(
        site.submit(merge.replace("sbatch", "sbatch --export=ALL,SHARDS=8", 1))
    )
    site.agrees()


def test_a_job_is_queued_again_at_its_time_limit_until_it_is_complete(
    site: Site,
) -> None:
    """50 seconds of work in jobs of a minute, which stop 15 s or more before its end.

    Under every MPI at once: what they wait for costs this machine nothing.
    """
    _, line = header("requeue.sbatch")
    jobs = {
        environment: site.submit(
            f"export RESULTS={environment}; {line}", environment, seconds=1
        )
        for environment in ENVIRONMENTS
    }
    for environment, job in jobs.items():
        shown = site.cluster.wait(job, "COMPLETED", limit=280)
        assert shown["ExitCode"] == "0:0", site.logs()
        assert int(shown["Restarts"]) >= 1, site.logs()
        log = (site.folder / f"requeue.{job}.log").read_text()
        assert log.count("(exit code 75): queued again") == int(shown["Restarts"]), log
        site.agrees(environment, results=environment)


def test_the_signal_before_the_time_limit_reaches_every_rank(site: Site) -> None:
    """Sent by hand, as Slurm does; and scancel ends a job that was queued again."""
    line, _ = header("requeue.sbatch")
    job = site.submit(line, seconds=0.5)
    site.await_tasks()
    site.cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    wait_until(lambda: site.cluster.show(job)["Restarts"] == "1")
    site.cluster.wait(job, "RUNNING")
    assert "stopped early (SIGUSR1 was received)" in site.logs()
    assert "are finished (exit code 75): queued again" in site.logs()
    before = site.done()
    site.await_tasks(before + 1)
    site.cluster.run("scancel", str(job))
    assert site.end(job) == ("CANCELLED", "75:0"), site.logs()
    assert site.logs().count("queued again") == 1
    site.complete(site.submit(line))
    site.agrees()


def test_a_job_without_progress_is_not_queued_again(site: Site) -> None:
    line, _ = header("requeue.sbatch")
    job = site.submit(line, seconds=600)
    wait_until((site.folder / "results/sweep.h5.lock").exists)
    time.sleep(2)
    site.cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    assert site.end(job) == ("FAILED", "75:0"), site.logs()
    assert "no task was finished (exit code 75): not queued again" in site.logs()


def test_a_job_is_queued_again_so_often_and_no_more(site: Site) -> None:
    line, _ = header("requeue.sbatch")
    job = site.submit(f"export REQUEUES=1; {line}", seconds=0.5)
    for times in range(2):
        wait_until(lambda times=times: site.cluster.show(job)["Restarts"] == str(times))
        site.cluster.wait(job, "RUNNING")
        site.await_tasks(site.done() + 1)
        site.cluster.run("scancel", "--batch", "--signal=USR1", str(job))
    assert site.end(job) == ("FAILED", "75:0"), site.logs()
    assert "queued again 1 times already" in site.logs()


def test_scancel_and_the_same_line_again(site: Site) -> None:
    _, line = header("sweep.sbatch")
    job = site.submit(line, seconds=0.5)
    site.await_tasks()
    site.cluster.run("scancel", str(job))
    assert site.end(job) == ("CANCELLED", "75:0"), site.logs()
    assert 0 < site.done() < TASKS
    site.complete(site.submit(line))
    site.agrees()


@pytest.mark.parametrize("template", ["sweep.sbatch", "requeue.sbatch"])
def test_a_node_that_goes_down_costs_no_finished_task(
    site: Site, template: str
) -> None:
    """Slurm starts the job again, once there are two nodes again."""
    line = header(template)[0].replace("sbatch", f"sbatch {TWO_BY_TWO}", 1)
    job = site.submit(line, "openmpi", seconds=0.2)
    site.await_tasks()
    site.cluster.kill("n2")
    site.cluster.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")
    site.cluster.wait(job, "PENDING")
    before = site.done()
    assert 0 < before < TASKS
    site.cluster.start_node("n2")
    shown = site.cluster.wait(job, "COMPLETED", limit=120)
    assert (shown["ExitCode"], shown["Restarts"]) == ("0:0", "1"), site.logs()
    site.agrees("openmpi")


@pytest.mark.parametrize("environment", ["mpich", "openmpi"])
def test_shared_data_is_in_memory_once_on_each_of_two_nodes(
    site: Site, environment: str
) -> None:
    size = 64 << 20
    write(
        site.folder,
        "model.py",
        f"""
        import time
        from pathlib import Path

        import numpy as np


        def load():
            with open("loaded", "a") as log:
                log.write("loaded\\n")
            return {{"contacts": np.random.default_rng(1).random({size // 8})}}


        def simulate(shared, replicate):
            total = shared["contacts"].sum()
            Path(f"seen.{{replicate}}").touch()
            while Path("wait").exists():
                time.sleep(0.1)
            return {{"infected": [total] * 3}}
        """,
    )
    shared = '[shared]\nloader = "model.py:load"\n'
    spec = SMALL.partition("[scenarios")[0].replace(f"= {TASKS // 2}", "= 4") + shared
    write(site.folder, "sweep.toml", spec)
    (site.folder / "wait").touch()
    line = header("sweep.sbatch")[0].replace("sbatch", f"sbatch {TWO_BY_TWO}", 1)
    job = site.submit(line, environment)
    wait_until(lambda: len(list(site.folder.glob("seen.*"))) == 4)
    for node in NODES:
        assert 0.98 < large_memory(site.cluster.pids(node), size) / size < 1.02
    (site.folder / "wait").unlink()
    site.complete(job)
    assert (site.folder / "loaded").read_text() == "loaded\n"


def large_memory(pids: list[int], size: int) -> int:
    """The bytes of memory in mappings of this size or more, shared ones counted once.

    A copy of the data would be in one, be it a window, an array or a message.
    """
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/smaps").read_text()
        for length, share in re.findall(
            r"^Size: +(\d+).*\n(?:.*\n)*?Pss: +(\d+)", text, re.MULTILINE
        ):
            if int(length) * 1024 >= size:
                total += int(share) * 1024
    return total
