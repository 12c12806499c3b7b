"""What Slurm has given to a job, by its environment, against what an ensemble needs."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from conftest import SPEC, Launch, Launcher, write
from hypothesis import given
from hypothesis import strategies as st

from mpiens.allocation import NODE, RANK, Allocation, Need, expand

MIB, GIB = 1 << 20, 1 << 30
MACHINE = 32 * GIB
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_NTASKS": "8",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_CPUS_PER_NODE": "4(x2)",
    "SLURM_MEM_PER_NODE": "16384",
}


def allocation(**changed: str | None) -> Allocation:
    """The allocation of an environment like JOB; None takes a variable away."""
    environment = {k: v for k, v in (JOB | changed).items() if v is not None}
    found = Allocation.of(environment, MACHINE)
    assert found is not None
    return found


def compress(numbers: list[int]) -> str:
    """Write a list as Slurm does."""
    groups = [(n, len([*same])) for n, same in itertools.groupby(numbers)]
    return ",".join(f"{n}(x{count})" if count > 1 else str(n) for n, count in groups)


@given(st.lists(st.integers(0, 500), min_size=1, max_size=40))
def test_a_compressed_list_is_expanded(numbers: list[int]) -> None:
    assert expand(compress(numbers)) == tuple(numbers)


@given(st.text(alphabet="0123456789x(), -a", max_size=12))
def test_what_is_no_list_is_empty(text: str) -> None:
    expanded = expand(text)
    assert expanded == () or text.replace("(", "").replace(",", "")[0].isdigit()


@pytest.mark.parametrize("text", ["", "a", "2(x", "2(x2)1", "-1", "2,,1", "2(2)"])
def test_no_list_is_guessed(text: str) -> None:
    assert expand(text) == ()


def test_without_a_job_there_is_no_allocation() -> None:
    assert Allocation.of({"SLURM_NTASKS": "8"}, MACHINE) is None


def test_an_allocation_is_read_from_its_environment() -> None:
    assert allocation() == Allocation(
        ranks=(4, 4), cores=(4, 4), memory=(16 * GIB,) * 2, option="--mem"
    )


@pytest.mark.parametrize(
    ("changed", "ranks"),
    [
        ({"SLURM_TASKS_PER_NODE": "5,3"}, (5, 3)),
        ({"SLURM_TASKS_PER_NODE": "8"}, (4, 4)),  # a step's, on one node only
        ({"SLURM_TASKS_PER_NODE": None, "SLURM_NTASKS": "5"}, (3, 2)),
        ({"SLURM_NTASKS": None}, (4, 4)),
        (
            {
                "SLURM_TASKS_PER_NODE": None,
                "SLURM_NTASKS": None,
                "SLURM_NTASKS_PER_NODE": "3",
            },
            (3, 3),
        ),
        ({"SLURM_TASKS_PER_NODE": None, "SLURM_NTASKS": None}, (1, 1)),
    ],
)
def test_ranks_are_found_where_little_is_told(
    changed: dict[str, str | None], ranks: tuple[int, ...]
) -> None:
    assert allocation(**changed).ranks == ranks


@pytest.mark.parametrize(
    ("changed", "memory"),
    [
        ({}, "16.0 GiB"),
        ({"SLURM_MEM_PER_NODE": None, "SLURM_MEM_PER_CPU": "512"}, "2.0 GiB"),
        ({"SLURM_MEM_PER_NODE": "0", "SLURMD_NODENAME": "n1"}, "32.0 GiB"),
        ({"SLURM_MEM_PER_NODE": None, "SLURMD_NODENAME": "n1"}, "32.0 GiB"),
        ({"SLURM_MEM_PER_NODE": None}, "unknown memory"),  # this is no node of the job
        ({"SLURM_MEM_PER_NODE": "0"}, "unknown memory"),
    ],
)
def test_memory_is_what_was_asked_for_or_all_or_unknown(
    changed: dict[str, str | None], memory: str
) -> None:
    told = "allocation: 2 nodes, 4 ranks per node, 1 core per rank"
    assert allocation(**changed).describe() == f"{told}, {memory} per node"


def test_uneven_nodes_are_told_as_a_span() -> None:
    uneven = allocation(
        SLURM_TASKS_PER_NODE="3,1",
        SLURM_NTASKS="4",
        SLURM_JOB_CPUS_PER_NODE="6,2",
        SLURM_CPUS_PER_TASK="2",
        SLURM_MEM_PER_NODE=None,
        SLURM_MEM_PER_CPU="1024",
    )
    assert uneven.describe() == (
        "allocation: 2 nodes, 1 to 3 ranks per node, 2 cores per rank, "
        "2.0 GiB to 6.0 GiB per node"
    )
    assert [*uneven.faults(Need(100, task=MIB), "x")] == []


def test_a_need_adds_up() -> None:
    need = Need(100, shared=4 * GIB, skeleton=MIB, imports=62 * MIB, task=256 * MIB)
    assert need.rank == RANK + (2 + 62 + 256) * MIB == 384 * MIB
    assert need.of_node(4) == NODE + 4 * GIB + 4 * 384 * MIB
    assert need.describe(4) == (
        "memory: 5.6 GiB per node needed "
        "(code 64.0 MiB, shared data 4.0 GiB, 4 ranks x 384.0 MiB)"
    )


def test_loading_may_take_more_than_running() -> None:
    need = Need(100, shared=4 * GIB, loading=5 * GIB)
    assert need.of_node(4) == NODE + 9 * GIB + 4 * RANK
    assert need.describe(4) == (
        "memory: 9.3 GiB per node needed (code 64.0 MiB, shared data 4.0 GiB, loading "
        "it 5.0 GiB, 4 ranks x 64.0 MiB) beside what tasks take, which [limits] "
        "task_memory would tell"
    )


SMALL = Need(100, task=MIB)
LARGE = Need(100, task=GIB)  # 4.3 GiB for four ranks, 2.2 GiB for two
TOO_MANY = "{} ranks of {} are more than the {} cores of a node can run at once; try "
TOO_LARGE = "{} ranks need {}, more than the {} of a node; "


def test_what_fits_is_no_fault() -> None:
    assert [*allocation().faults(LARGE, "x")] == []
    assert [*allocation(SLURM_JOB_CPUS_PER_NODE=None).faults(LARGE, "x")] == []
    assert [*allocation(SLURM_MEM_PER_NODE=None).faults(LARGE, "x")] == []
    assert allocation().warn(LARGE, "x") is None


@pytest.mark.parametrize(
    ("need", "changed", "sentences"),
    [
        (  # an oversubscribed node; no less memory than was asked for
            SMALL,
            {"SLURM_TASKS_PER_NODE": "8(x2)", "SLURM_NTASKS": "16"},
            [
                TOO_MANY.format(8, "1 core", 4)
                + "sbatch --nodes=2 --ntasks-per-node=4 --cpus-per-task=1 --mem=16G x"
            ],
        ),
        (
            SMALL,
            {"SLURM_CPUS_PER_TASK": "2", "SLURM_MEM_PER_NODE": None},
            [
                TOO_MANY.format(4, "2 cores", 4)
                + "sbatch --nodes=2 --ntasks-per-node=2 --cpus-per-task=2 x"
            ],
        ),
        (
            SMALL,
            {"SLURM_CPUS_PER_TASK": "6", "SLURM_MEM_PER_NODE": None},
            [
                TOO_MANY.format(4, "6 cores", 4)
                + "sbatch --nodes=2 --ntasks-per-node=1 --cpus-per-task=4 x"
            ],
        ),
        (  # too little memory was asked for
            LARGE,
            {"SLURM_MEM_PER_NODE": "2000"},
            [
                TOO_LARGE.format(4, "4.3 GiB", "2.0 GiB")
                + "try sbatch --nodes=2 --ntasks-per-node=4 --cpus-per-task=1 "
                "--mem=5G x"
            ],
        ),
        (
            LARGE,
            {"SLURM_MEM_PER_NODE": None, "SLURM_MEM_PER_CPU": "100"},
            [
                TOO_LARGE.format(4, "4.3 GiB", "400.0 MiB")
                + "try sbatch --nodes=2 --ntasks-per-node=4 --cpus-per-task=1 "
                "--mem-per-cpu=1104M x"
            ],
        ),
        (  # the nodes have no more
            Need(100, task=15 * GIB),
            {"SLURMD_NODENAME": "n1"},
            [
                TOO_LARGE.format(4, "60.3 GiB", "16.0 GiB")
                + "try sbatch --nodes=2 --ntasks-per-node=2 --cpus-per-task=1 "
                "--mem=31G x"
            ],
        ),
        (  # all that a node has is too little for one rank
            Need(100, task=40 * GIB),
            {"SLURMD_NODENAME": "n1", "SLURM_MEM_PER_NODE": "0"},
            [
                TOO_LARGE.format(4, "160.3 GiB", "32.0 GiB")
                + "try larger nodes by sbatch --nodes=2 --ntasks-per-node=1 "
                "--cpus-per-task=1 --mem=41G x"
            ],
        ),
        (  # both at once, with one way out
            LARGE,
            {
                "SLURM_MEM_PER_NODE": "1024",
                "SLURM_TASKS_PER_NODE": "8(x2)",
                "SLURM_NTASKS": "16",
            },
            [
                TOO_MANY.format(8, "1 core", 4)
                + "sbatch --nodes=2 --ntasks-per-node=4 --cpus-per-task=1 --mem=5G x",
                TOO_LARGE.format(8, "8.6 GiB", "1.0 GiB")
                + "try sbatch --nodes=2 --ntasks-per-node=4 --cpus-per-task=1 "
                "--mem=5G x",
            ],
        ),
    ],
)
def test_what_does_not_fit_is_told_with_what_would(
    need: Need, changed: dict[str, str | None], sentences: list[str]
) -> None:
    assert [*allocation(**changed).faults(need, "x")] == sentences


@pytest.mark.parametrize(
    ("tasks", "idle", "layout"),
    [
        (7, 1, "--nodes=2 --ntasks-per-node=4"),
        (4, 4, "--nodes=1 --ntasks-per-node=4"),
        (3, 5, "--nodes=1 --ntasks-per-node=3"),
    ],
)
def test_ranks_without_a_task_are_a_warning(tasks: int, idle: int, layout: str) -> None:
    there = allocation(SLURM_MEM_PER_NODE=None)
    assert [*there.faults(Need(tasks), "x")] == []
    assert there.warn(Need(tasks), "x") == (
        f"{idle} of 8 ranks would have nothing to do; try sbatch {layout} "
        "--cpus-per-task=1 x"
    )


@given(
    nodes=st.integers(1, 9),
    ranks=st.integers(1, 300),
    cores=st.integers(1, 130),
    each=st.integers(1, 9),
    memory=st.integers(1, 1 << 20),
    option=st.sampled_from(["SLURM_MEM_PER_NODE", "SLURM_MEM_PER_CPU"]),
    task=st.integers(1, 1 << 36),
    tasks=st.integers(1, 10_000),
)
def test_what_is_proposed_fits(
    nodes: int,
    ranks: int,
    cores: int,
    each: int,
    memory: int,
    option: str,
    task: int,
    tasks: int,
) -> None:
    need = Need(tasks, shared=GIB, task=task)
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": str(nodes)}
    environment |= {
        "SLURM_TASKS_PER_NODE": f"{ranks}(x{nodes})",
        "SLURM_JOB_CPUS_PER_NODE": f"{cores}(x{nodes})",
        "SLURM_CPUS_PER_TASK": str(each),
        option: str(memory),
    }
    before = Allocation.of(environment, MACHINE)
    assert before is not None
    words = before.fit(need, "x").split()
    asked = dict(word.removeprefix("--").split("=") for word in words[1:-1])
    nodes, ranks = int(asked["nodes"]), int(asked["ntasks-per-node"])
    environment |= {
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_TASKS_PER_NODE": f"{ranks}(x{nodes})",
        "SLURM_JOB_CPUS_PER_NODE": f"{cores}(x{nodes})",
        "SLURM_CPUS_PER_TASK": asked["cpus-per-task"],
    }
    if "mem" in asked:
        environment["SLURM_MEM_PER_NODE"] = str(read_mebibytes(asked["mem"]))
    else:
        environment["SLURM_MEM_PER_CPU"] = str(read_mebibytes(asked["mem-per-cpu"]))
    after = Allocation.of(environment, MACHINE)
    assert after is not None
    assert [*after.faults(need, "x")] == []
    assert sum(after.ranks) <= sum(before.ranks)


def read_mebibytes(text: str) -> int:
    return int(text[:-1]) * (1024 if text[-1] == "G" else 1)


# the command

MODEL = """
import os
import numpy as np

ballast = np.ones(OWN << 17)


def load():
    return {"contacts": np.ones(32 << 17)}


def simulate(rng, shared):
    return {"luck": rng.normal()}
"""


@pytest.fixture
def ensemble(tmp_path: Path) -> Path:
    """A model of 100 MiB with 32 MiB of shared data, and tasks of 200 MB."""
    write(tmp_path, "model.py", MODEL.replace("OWN", "100"))
    spec = SPEC.partition("[parameters]")[0]
    spec += '[shared]\nloader = "model.py:load"\n[limits]\ntask_memory = 209715200\n'
    (tmp_path / "sweep.toml").write_text(spec)
    return tmp_path


def check(launcher: Launcher, **changed: str) -> Launch:
    command = [sys.executable, "-m", "mpiens", "check", "sweep.toml"]
    return launcher.run(command, **(JOB | changed))


@pytest.mark.usefixtures("ensemble")
def test_check_tells_what_there_is_and_what_is_needed(launcher: Launcher) -> None:
    launch = check(launcher)
    assert (launch.code, launch.errors) == (0, "")
    lines = launch.output.splitlines()
    there = "2 nodes, 4 ranks per node, 1 core per rank, 16.0 GiB per node"
    assert f"allocation: {there}" in lines
    [memory] = [line for line in lines if line.startswith("memory:")]
    parts = memory.partition("(")[2].rstrip(")").split(", ")
    assert parts[:2] == ["code 64.0 MiB", "shared data 32.0 MiB"]
    count, _, each = parts[2].partition(" ranks x ")
    assert count == "4"
    assert 362 < float(each.removesuffix(" MiB")) < 380  # RANK, 200 and 100, imports


@pytest.mark.usefixtures("ensemble")
def test_check_refuses_what_does_not_fit(launcher: Launcher) -> None:
    launch = check(launcher, SLURM_MEM_PER_NODE="1000", SLURM_CPUS_PER_TASK="2")
    assert launch.code == 2
    assert "allocation: 2 nodes, 4 ranks per node, 2 cores" in launch.output
    cores, memory = launch.errors.splitlines()
    assert cores.startswith("allocation: 4 ranks of 2 cores are more than the 4 cores")
    assert memory.startswith("allocation: 4 ranks need 1.5 GiB, more than the 1,000.0")
    for line in (cores, memory):
        layout = "--nodes=2 --ntasks-per-node=2 --cpus-per-task=2"
        assert line.endswith(f"; try sbatch {layout} --mem=1000M sweep.sbatch")


@pytest.mark.usefixtures("ensemble")
def test_check_only_warns_of_ranks_without_a_task(launcher: Launcher) -> None:
    launch = check(
        launcher,
        SLURM_NTASKS="16",
        SLURM_TASKS_PER_NODE="8(x2)",
        SLURM_JOB_CPUS_PER_NODE="8(x2)",
    )
    assert (launch.code, launch.errors) == (0, "")
    assert (
        "warning: 4 of 16 ranks would have nothing to do; try sbatch" in launch.output
    )
