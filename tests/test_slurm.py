"""Under a real Slurm with two nodes: what its launchers, limits and signals do."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from cluster import MPI_TYPES, NODES, Cluster, ClusterError
from conftest import (
    ENVIRONMENTS,
    SPEC,
    Launch,
    Launcher,
    mpiexec_of,
    python_of,
    wait_until,
    write,
)

# Two ranks on each of the two nodes.
FOUR = ["--nodes=2", "--ntasks=4", "--ntasks-per-node=2"]

# By mpiens' own start: Slurm's PMI-2 would now and then be too narrow for MPICH's UCX.
WORLD = """
import socket

from mpiens import mpi
from mpi4py import MPI

comm = mpi.start()
world = comm.raw
node = world.Split_type(MPI.COMM_TYPE_SHARED)
places = world.gather((socket.gethostname(), node.size))
if world.rank == 0:
    print(world.size, *sorted(places))
mpi.finish(comm, 0)
"""
TWO_BY_TWO = "4 ('n1', 2) ('n1', 2) ('n2', 2) ('n2', 2)\n"

# A job that tells in `log` what it hears and when, in seconds since the epoch.
LISTENER = """
#!/bin/bash
say() { echo "$(date +%s) $*" >>log; }
trap 'say USR1' USR1
trap 'say TERM; exit 3' TERM
end=$(SLURM_TIME_FORMAT=%s squeue --noheader --job="$SLURM_JOB_ID" --format=%e)
say "begin ${SLURM_RESTART_COUNT:-0} $end"
while true; do sleep 0.1; done
"""


def srun(environment: str, *words: str) -> list[str]:
    """The words that start four ranks of an environment's Python on the two nodes."""
    mpi = f"--mpi={MPI_TYPES[environment]}"
    return ["srun", *FOUR, mpi, python_of(environment), *words]


def submit(cluster: Cluster, launcher: Launcher, *words: str) -> int:
    """Submit a job, which carries the launch's mark like any other; return its id."""
    command = ["sbatch", "--parsable", "--output=job.%j", *words]
    submitted = launcher.run(command, **cluster.variables)
    assert submitted.code == 0, submitted.errors
    return int(submitted.output)


def ranks_of(launch: Launch) -> dict[int, int]:
    """The process of each rank of a running mpiens; a runner is its rank's child."""
    found = {}
    for pid in launch.pids():
        process = Path(f"/proc/{pid}")
        with contextlib.suppress(OSError):
            parent = process.joinpath("stat").read_text().rpartition(")")[2].split()[1]
            above = Path(f"/proc/{parent}/comm").read_text()
            variables = process.joinpath("environ").read_bytes().split(b"\0")
            for variable in variables:
                name, _, value = variable.partition(b"=")
                if name == b"SLURM_PROCID" and above.startswith("slurmstepd"):
                    found[int(value)] = pid
    return found


def slow_down(folder: Path) -> None:
    """Have 200 tasks that take 0.2 s each where the environment says SLOW."""
    write(
        folder,
        "model.py",
        """
        import os
        import time

        def simulate(rng):
            time.sleep(0.2 if "SLOW" in os.environ else 0)
            return {"infected": rng.poisson(5, 10)}
        """,
    )
    spec = SPEC.partition("[parameters]")[0].replace("= 12", "= 200")
    (folder / "sweep.toml").write_text(spec)


def lines(path: Path) -> list[list[str]]:
    """The complete lines of a file that may not be there yet, in words."""
    text = path.read_text() if path.exists() else ""
    return [line.split() for line in text.split("\n")[:-1]]


def test_there_are_two_nodes(cluster: Cluster) -> None:
    assert cluster.states() == ["idle", "idle"]
    assert set(cluster.run("srun", *FOUR, "hostname").split()) == set(NODES)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_srun_makes_one_world_on_two_nodes(
    cluster: Cluster, launcher: Launcher, tmp_path: Path, environment: str
) -> None:
    write(tmp_path, "world.py", WORLD)
    launch = launcher.run(srun(environment, "world.py"), **cluster.variables)
    assert (launch.code, launch.output) == (0, TWO_BY_TWO), launch.errors
    assert launch.orphans() == []


def test_mpich_needs_no_long_line_of_slurms_pmi(
    cluster: Cluster, launcher: Launcher, tmp_path: Path
) -> None:
    """A line of more than 1024 bytes is cut, and MPI_Init fails or never returns."""
    write(
        tmp_path,
        "start.py",
        """
        import os
        from mpiens import mpi

        world = mpi.start()
        print(mpi.library(), os.environ["MPIR_CVAR_CH4_NETMOD"])
        mpi.finish(world, 0)
        """,
    )
    launch = launcher.run(
        ["srun", "--mpi=pmi2", python_of("mpich"), "start.py"], **cluster.variables
    )
    assert launch.code == 0, launch.errors
    assert launch.output.split()[::2] == ["MPICH", "ofi"]


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_the_answer_under_srun_is_that_of_one_rank(
    cluster: Cluster, launcher: Launcher, environment: str
) -> None:
    alone = launcher.mpiens("sweep.toml", "-o", "alone.h5", environment=environment)
    assert alone.code == 0, alone.errors
    command = srun(environment, "-m", "mpiens", "sweep.toml")
    together = launcher.run(command, **cluster.variables)
    assert together.code == 0, together.errors
    assert launcher.digest("sweep.h5") == launcher.digest("alone.h5")
    assert together.orphans() == []


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_srun_without_the_mpi_type_is_refused(
    cluster: Cluster, launcher: Launcher, folder: Path, environment: str
) -> None:
    """Otherwise each rank would do all the work; Debian's MPI itself refuses."""
    command = srun(environment, "-m", "mpiens", "sweep.toml")
    command[command.index(f"--mpi={MPI_TYPES[environment]}")] = "--mpi=none"
    launch = launcher.run(command, **cluster.variables)
    assert launch.code not in (0, 75)
    if environment != "debian":
        assert "each is alone" in launch.errors
    assert not list(folder.glob("*.h5*"))


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_dead_rank_ends_the_step_and_the_same_command_goes_on(
    cluster: Cluster, launcher: Launcher, folder: Path, environment: str
) -> None:
    """Under MPICH only by the option: nobody tells the other ranks, and they wait."""
    slow_down(folder)
    command = srun(environment, "-m", "mpiens", "sweep.toml")
    command.insert(1, "--kill-on-bad-exit=1")
    launch = launcher.start(command, SLOW="1", **cluster.variables)
    partial = folder / "sweep.h5.partial"
    wait_until(lambda: partial.exists() and len(ranks_of(launch)) == 4)
    time.sleep(1)
    os.kill(ranks_of(launch)[2], signal.SIGKILL)
    assert launch.wait(cluster.kill_wait + 20).code not in (0, 75)
    assert launch.orphans() == []
    again = launcher.run(command, **cluster.variables)
    assert again.code == 0, again.errors


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_scancel_keeps_what_is_finished(
    cluster: Cluster, launcher: Launcher, folder: Path, environment: str
) -> None:
    slow_down(folder)
    command = srun(environment, "-m", "mpiens", "sweep.toml")
    write(folder, "job.sh", f"#!/bin/bash\nSLOW=1 exec {' '.join(command)}\n")
    job = submit(cluster, launcher, *FOUR, "job.sh")
    wait_until((folder / "sweep.h5.partial").exists)
    cluster.run("scancel", str(job))
    shown = cluster.wait(job)
    output = (folder / f"job.{job}").read_text()
    assert (shown["JobState"], shown["ExitCode"]) == ("CANCELLED", "75:0"), output
    assert "run the same command again to go on" in output


@pytest.mark.parametrize("environment", ENVIRONMENTS)
@pytest.mark.parametrize("how", ["salloc", "sbatch"])
def test_mpiexec_of_an_allocation_makes_one_world_on_its_nodes(
    cluster: Cluster, launcher: Launcher, tmp_path: Path, environment: str, how: str
) -> None:
    """Also where Open MPI tolerates faults, which it never does under srun."""
    write(tmp_path, "world.py", WORLD)
    mpiexec = mpiexec_of(environment)[:1]
    if environment == "openmpi":
        mpiexec += ["--with-ft", "ulfm"]
    command = [*mpiexec, "-n", "4", python_of(environment), "world.py"]
    if how == "salloc":
        command = ["salloc", "--quiet", *FOUR, *command]
        launch = launcher.run(command, **cluster.variables)
        code, output = launch.code, launch.output
    else:
        job = submit(cluster, launcher, *FOUR, f"--wrap={' '.join(command)}")
        code = 0 if cluster.wait(job)["ExitCode"] == "0:0" else 1
        output = (tmp_path / f"job.{job}").read_text()
    assert (code, output) == (0, TWO_BY_TWO)


def test_what_depends_on_an_array_runs_after_all_of_it(
    cluster: Cluster, launcher: Launcher, tmp_path: Path
) -> None:
    element = "sleep 0.$SLURM_ARRAY_TASK_ID; echo $SLURM_ARRAY_TASK_ID >>log; exit "
    array = submit(
        cluster, launcher, "--array=0-2", f"--wrap={element} $SLURM_ARRAY_TASK_ID"
    )
    merge = submit(
        cluster, launcher, f"--dependency=afterany:{array}", "--wrap=echo merge >>log"
    )
    assert cluster.wait(merge)["JobState"] == "COMPLETED"
    ended = lines(tmp_path / "log")
    assert sorted(ended[:-1]) == [["0"], ["1"], ["2"]]
    assert ended[-1] == ["merge"]
    codes = [cluster.show(f"{array}_{index}")["ExitCode"] for index in range(3)]
    assert codes == ["0:0", "1:0", "2:0"]


def test_a_requeued_job_is_told_so(
    cluster: Cluster, launcher: Launcher, tmp_path: Path
) -> None:
    write(tmp_path, "job.sh", LISTENER.lstrip())
    log = tmp_path / "log"
    job = submit(cluster, launcher, "--requeue", "--open-mode=append", "job.sh")
    wait_until(lambda: len(lines(log)) == 1)
    cluster.run("scontrol", "requeue", str(job))
    wait_until(lambda: len(lines(log)) == 3)
    assert [line[1:3] for line in lines(log)] == [
        ["begin", "0"],
        ["TERM"],
        ["begin", "1"],
    ]
    assert cluster.show(job)["Restarts"] == "1"


def test_a_signal_comes_before_the_time_limit(
    cluster: Cluster, launcher: Launcher, tmp_path: Path
) -> None:
    """Slurm looks at limits every 30 s, so it comes earlier than was asked for."""
    write(tmp_path, "job.sh", LISTENER.lstrip())
    log = tmp_path / "log"
    submit(cluster, launcher, "--time=1", "--signal=B:USR1@30", "job.sh")
    wait_until(lambda: len(lines(log)) == 2, limit=75)
    (begin, _, _, end), (heard, what) = lines(log)
    assert what == "USR1"
    assert int(end) - int(begin) in (59, 60)
    early = int(end) - int(heard)
    assert 28 <= early <= 62


def test_scancel_ends_a_job_after_its_grace(
    cluster: Cluster, launcher: Launcher, tmp_path: Path
) -> None:
    write(tmp_path, "job.sh", LISTENER.lstrip())
    log = tmp_path / "log"
    job = submit(cluster, launcher, "job.sh")
    wait_until(lambda: len(lines(log)) == 1)
    cluster.run("scancel", str(job))
    shown = cluster.wait(job)
    assert [line[1] for line in lines(log)] == ["begin", "TERM"]
    assert shown["JobState"] == "CANCELLED"


def test_the_jobs_of_a_cluster_end_with_it(launcher: Launcher, tmp_path: Path) -> None:
    """Also those that left their session, and the ones on a node that was killed."""
    write(
        tmp_path, "job.sh", "#!/bin/bash\ntouch began.$SLURM_PROCID\nsetsid sleep 600"
    )
    with Cluster() as cluster:
        command = ["srun", "--nodes=2", "bash", "job.sh"]
        launch = launcher.start(command, **cluster.variables)
        began = [tmp_path / f"began.{rank}" for rank in range(2)]
        wait_until(lambda: all(path.exists() for path in began))
        daemons = [pid for node in NODES for pid in cluster.pids(node)]
        assert len(daemons) >= 2 * 4  # shell, slurmd, slurmstepd, the job
        cluster.kill("n2")
        cluster.clear()
        assert cluster.states() == ["idle", "idle"]
        daemons += [pid for node in NODES for pid in cluster.pids(node)]
        folder = cluster.folder
    assert not folder.exists()
    assert not any(Path(f"/proc/{pid}").exists() for pid in daemons)
    launch.kill()
    assert launch.orphans() == []


def test_a_daemon_that_cannot_start_shows_its_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cluster.SLURM_CONF", "NoSuchOption=1\n")
    started = time.monotonic()
    with pytest.raises(ClusterError, match=r"ended with 1(.|\n)*NoSuchOption"):
        Cluster().start(limit=20)
    assert time.monotonic() - started < 20
