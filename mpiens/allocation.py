"""What Slurm has given to a job, and whether an ensemble fits into it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mpiens.progress import format_bytes

MIB, GIB = 1 << 20, 1 << 30
# Measured as proportional set size (smaps_rollup) of supervisor and runner of an empty
# model, with CPython 3.11 on Linux: 77 to 88 MiB for the only rank of a node, and 34 to
# 40 MiB for each further one, by MPICH 5, Open MPI 5 and Open MPI 4.  What these are
# more is for rows and bands under way.
NODE = 64 * MIB  # code, which the ranks of a node share, and what only the root imports
RANK = 64 * MIB


@dataclass(frozen=True)
class Need:
    """What an ensemble takes; all but the tasks in bytes.

    ``shared`` is for a node, ``loading`` for the root's node while shared data is
    loaded, beside the data itself, and all else for a rank.
    """

    tasks: int
    shared: int = 0
    skeleton: int = 0
    imports: int = 0
    task: int | None = None  # None where nobody knows
    loading: int = 0

    @property
    def rank(self) -> int:
        """What a rank takes while it runs a task."""
        # a skeleton is there as it came, and as the objects made of it
        return RANK + 2 * self.skeleton + self.imports + (self.task or 0)

    def of_node(self, ranks: int) -> int:
        """Return what so many ranks take on one node, be it the root's."""
        running, loading = ranks * self.rank, ranks * RANK + self.loading
        return NODE + self.shared + max(running, loading)

    def describe(self, ranks: int) -> str:
        """Return a line that tells what so many ranks take on one node, and why."""
        parts = [f"code {format_bytes(NODE)}"]
        if self.shared:
            parts += [f"shared data {format_bytes(self.shared)}"]
        if self.loading > ranks * (self.rank - RANK):
            parts += [f"loading it {format_bytes(self.loading)}"]
            parts += [f"{ranks} ranks x {format_bytes(RANK)}"]
        else:
            parts += [f"{ranks} ranks x {format_bytes(self.rank)}"]
        whole = f"{format_bytes(self.of_node(ranks))} per node needed"
        text = f"memory: {whole} ({', '.join(parts)})"
        if self.task is None:
            text += " beside what tasks take, which [limits] task_memory would tell"
        return text


@dataclass(frozen=True)
class Allocation:
    """The nodes of a job: ranks, cores and bytes of memory, each node by node.

    ``memory`` is empty where it is unknown.  It was asked for by ``option``, or, where
    that is empty, is all that the nodes have.
    """

    ranks: tuple[int, ...]
    cores: tuple[int, ...] = ()
    cores_per_rank: int = 1
    memory: tuple[int, ...] = ()
    option: str = ""
    installed: int | None = None  # bytes of memory of one of the nodes

    @classmethod
    def of(cls, environment: Mapping[str, str], machine: int) -> Allocation | None:
        """Return the allocation of this job by its environment; None without a job.

        ``machine`` is the memory of this machine in bytes, be it one of the nodes or
        not.
        """
        if "SLURM_JOB_ID" not in environment:
            return None
        numbers = {k: int(v) for k, v in environment.items() if v.isdecimal()}
        nodes = numbers.get("SLURM_JOB_NUM_NODES") or 1
        cores = expand(environment.get("SLURM_JOB_CPUS_PER_NODE", ""))
        cores = cores if len(cores) == nodes else ()
        installed = machine if "SLURMD_NODENAME" in environment else None
        memory: tuple[int, ...] = () if installed is None else (installed,) * nodes
        option = ""
        if per_node := numbers.get("SLURM_MEM_PER_NODE"):
            memory, option = (per_node * MIB,) * nodes, "--mem"
        elif per_core := numbers.get("SLURM_MEM_PER_CPU"):
            memory, option = tuple(n * per_core * MIB for n in cores), "--mem-per-cpu"
        return cls(
            ranks=_find_ranks(environment, numbers, nodes),
            cores=cores,
            cores_per_rank=numbers.get("SLURM_CPUS_PER_TASK") or 1,
            memory=memory,
            option=option,
            installed=installed,
        )

    def describe(self) -> str:
        """Return a line that tells what there is."""
        nodes = _count(len(self.ranks), "node")
        ranks = f"{_span(self.ranks, 'rank')} per node"
        cores = f"{_count(self.cores_per_rank, 'core')} per rank"
        if not self.memory:
            memory = "unknown memory"
        elif (low := min(self.memory)) == max(self.memory):
            memory = format_bytes(low)
        else:
            memory = f"{format_bytes(low)} to {format_bytes(max(self.memory))}"
        return f"allocation: {nodes}, {ranks}, {cores}, {memory} per node"

    def faults(self, need: Need, script: str) -> Iterator[str]:
        """Yield a sentence for all that does not fit; it ends with what would."""
        fits = self.fit(need, script)
        for ranks, cores in zip(self.ranks, self.cores, strict=False):
            if ranks * self.cores_per_rank > cores:
                each = _count(self.cores_per_rank, "core")
                what = f"{_count(ranks, 'rank')} of {each} are more than"
                there = f"the {_count(cores, 'core')} of a node can run at once"
                yield f"{what} {there}; try {fits}"
                break
        for ranks, memory in zip(self.ranks, self.memory, strict=False):
            if (needed := need.of_node(ranks)) > memory:
                what = f"{_count(ranks, 'rank')} need {format_bytes(needed)}"
                there = f"the {format_bytes(memory)} of a node"
                large = self.installed is not None and need.of_node(1) > self.installed
                way = "try larger nodes by" if large else "try"
                yield f"{what}, more than {there}; {way} {fits}"
                break

    def warn(self, need: Need, script: str) -> str | None:
        """Return a sentence where ranks would have nothing to do, or None."""
        if (idle := sum(self.ranks) - need.tasks) <= 0:
            return None
        what = f"{idle:,} of {sum(self.ranks):,} ranks would have nothing to do"
        return f"{what}; try {self.fit(need, script)}"

    def fit(self, need: Need, script: str) -> str:
        """Return a line for sbatch that asks for no more ranks, and fits.

        It asks for fewer ranks per node where cores or the memory of the nodes, as far
        as that is known, do not suffice, and for more memory where that helps.
        """
        nodes, each = len(self.ranks), self.cores_per_rank
        ranks = max(1, math.ceil(sum(self.ranks) / nodes))
        if self.cores:
            each = min(each, max(self.cores))
            pairs = zip(self.ranks, self.cores, strict=False)
            ranks = min(ranks, max(1, *(min(r, c // each) for r, c in pairs)))
        if self.installed is not None:
            while ranks > 1 and need.of_node(ranks) > self.installed:
                ranks -= 1
        nodes = min(nodes, math.ceil(need.tasks / ranks))
        ranks = min(ranks, math.ceil(need.tasks / nodes))
        layout = f"--nodes={nodes} --ntasks-per-node={ranks} --cpus-per-task={each}"
        return f"sbatch {layout}{self._fit_memory(need, ranks, each)} {script}"

    def _fit_memory(self, need: Need, ranks: int, each: int) -> str:
        """Return the option that asks for enough memory; nothing where none is needed.

        No less is asked for than the user did: only he knows what a task takes.
        """
        needed = need.of_node(ranks)
        if not self.memory or (not self.option and needed <= min(self.memory)):
            return ""
        if self.option == "--mem-per-cpu":
            before = self.memory[0] // self.cores[0]
            needed = math.ceil(needed / (ranks * each))
            return f" --mem-per-cpu={_write_memory(max(needed, before))}"
        whole = math.ceil(needed / GIB) * GIB
        if whole > GIB and not (self.installed and needed <= self.installed < whole):
            needed = whole
        before = min(self.memory) if self.option else 0
        return f" --mem={_write_memory(max(needed, before))}"


def expand(text: str) -> tuple[int, ...]:
    """Return the numbers of a list as Slurm writes it: ``2(x2),1`` is 2, 2, 1.

    Empty where the text is no such list.
    """
    numbers: list[int] = []
    for part in text.split(","):
        if not (found := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)):
            return ()
        numbers += [int(found[1])] * int(found[2] or 1)
    return tuple(numbers)


def _find_ranks(
    environment: Mapping[str, str], numbers: Mapping[str, int], nodes: int
) -> tuple[int, ...]:
    """Return the ranks of every node, by what is told of them, which may be little."""
    listed = expand(environment.get("SLURM_TASKS_PER_NODE", ""))
    total = numbers.get("SLURM_NTASKS", sum(listed))
    if len(listed) == nodes and sum(listed) == total:
        return listed
    if per_node := numbers.get("SLURM_NTASKS_PER_NODE"):
        return (per_node,) * nodes
    share, rest = divmod(total or nodes, nodes)
    return tuple(share + (node < rest) for node in range(nodes))


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _span(numbers: tuple[int, ...], noun: str) -> str:
    low, high = min(numbers), max(numbers)
    return _count(high, noun) if low == high else f"{low:,} to {_count(high, noun)}"


def _write_memory(count: int) -> str:
    """Write bytes for sbatch, in GiB or rounded up to MiB."""
    return f"{count // GIB}G" if count % GIB == 0 else f"{math.ceil(count / MIB)}M"
