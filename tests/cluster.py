"""A real Slurm of two nodes on one machine, for as long as a test wants it.

Every node has process ids, a host name, shared memory and a folder for PMIx of its
own, so that to an MPI it is another machine; files and the network are the same. A
node is a PID namespace: nothing that ran on it, however it hid, outlives it.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

# What `srun --mpi=` has to say for the MPI of each environment; with another one every
# rank is alone, or dies in MPI_Init.
MPI_TYPES = {"mpich": "pmi2", "openmpi": "pmix", "debian": "pmix"}
NODES = ("n1", "n2")
STARTED = "slurmd started"
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"}

# cred_expire is also what a requeued job has to wait before it starts again, in seconds
# (121 by default). The scheduler's settings let a job start within a second or two.
SLURM_CONF = """\
ClusterName=mpiens
SlurmctldHost=control(127.0.0.1)
SlurmctldPort={control}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n.spool
SlurmctldPidFile={folder}/control.pid
SlurmdPidFile={folder}/%n.pid
ReturnToService=2
JobRequeue=1
KillWait={kill_wait}
SchedulerParameters=sched_interval=1,batch_sched_delay=0,bf_interval=1
NodeName=n1 NodeHostname=n1 NodeAddr=127.0.0.1 Port={n1} CPUs={cpus}
NodeName=n2 NodeHostname=n2 NodeAddr=127.0.0.1 Port={n2} CPUs={cpus}
PartitionName=all Nodes=ALL Default=YES State=UP
"""

# $0 is the cluster's folder, $1 the daemon's name, and the rest its command.
# The shell stays, as the namespace's process 1, to bury what loses its parent.
NAMESPACE = """
set -e
hostname "$1"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs "$0/pmix"
mount --bind "$0/hosts" /etc/hosts
shift
"$@"
exit
"""


class ClusterError(Exception):
    """Slurm did not do what it was asked for."""


class Cluster:
    """The daemons of one Slurm, in a temporary folder; a context manager.

    They die with the thread that starts them, so let that be the main one. Commands
    find this Slurm by ``variables`` in their environment.
    """

    def __init__(self, cpus: int = 8, kill_wait: int = 10) -> None:
        self.cpus = cpus
        self.kill_wait = kill_wait
        self.folder = Path()
        self.variables: dict[str, str] = {}
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Cluster:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    # --- daemons --------------------------------------------------------------

    def start(self, limit: float = 60) -> None:
        """Start all daemons and wait until both nodes are idle."""
        if os.geteuid() != 0:
            raise ClusterError("only root can start a Slurm with nodes of its own")
        # Not in pytest's folder: a socket's path has no more than 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="mpiens-slurm-"))
        self.variables = {"SLURM_CONF": str(self.folder / "slurm.conf")}
        try:
            self._write_files()
            self._start_munged(limit)
            self._start("control", "slurmctld", "-D")
            for node in NODES:
                self.start_node(node)
            self.wait_idle(limit)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the nodes, with every job on them, and the other daemons."""
        for name in reversed(list(self._daemons)):
            self.kill(name)
        if self.variables:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.variables = {}

    def start_node(self, node: str, limit: float = 30) -> None:
        """Start a node, or start one again that was killed."""
        # As after a reboot: a job that is queued again has the same number, and under
        # PMIx it could not start in what its killed step has left here.
        spool = self.folder / f"{node}.spool"
        shutil.rmtree(spool, ignore_errors=True)
        spool.mkdir()
        log = self.folder / f"{node}.log"
        before = log.read_text().count(STARTED) if log.exists() else 0
        self._start(node, "slurmd", "-D", "-N", node)

        def started() -> bool:
            return log.read_text().count(STARTED) > before

        self._wait(started, limit, f"{node} has not started")

    def kill(self, name: str) -> None:
        """Kill a node, and all that runs on it; or ``control``, Slurm's controller.

        An srun with ranks on a killed node waits for Slurm to notice: minutes.
        """
        daemon = self._daemons.pop(name)
        for pid in self._pids_of(daemon):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        # It has waited for the namespace's process 1, which ends after all others.
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait(10)

    def pids(self, node: str) -> list[int]:
        """Every process of a node, the daemon's too, by its id outside of the node."""
        return self._pids_of(self._daemons[node])

    @staticmethod
    def _pids_of(daemon: subprocess.Popen[bytes]) -> list[int]:
        try:
            namespace = Path(f"/proc/{daemon.pid}/ns/pid_for_children").readlink()
        except OSError:
            return []
        found = []
        # Its start has perhaps not come to the namespace yet.
        if namespace != Path("/proc/self/ns/pid").readlink():
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if (folder / "ns" / "pid").readlink() == namespace:
                        found.append(int(folder.name))
        return found

    def _write_files(self) -> None:
        self.folder.chmod(0o755)  # munged wants its socket within everybody's reach
        for name in ("state", "pmix"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        text = SLURM_CONF.format(
            folder=self.folder,
            cpus=self.cpus,
            kill_wait=self.kill_wait,
            **dict(zip(("control", *NODES), _free_ports(3), strict=True)),
        )
        (self.folder / "slurm.conf").write_text(text)
        # In one folder for both, the second node's PMIx server would not start.
        (self.folder / "mpi.conf").write_text(f"PMIxCliTmpDirBase={self.folder}/pmix\n")
        # This machine too: what an mpiexec under salloc starts connects to its name.
        names = ["localhost", "control", *NODES, socket.gethostname()]
        (self.folder / "hosts").write_text(f"127.0.0.1 {' '.join(names)}\n")

    def _start_munged(self, limit: float) -> None:
        files = {
            "key-file": "munge.key",
            "socket": "munge.socket",
            "pid-file": "munge.pid",
            "log-file": "munge.messages",
            "seed-file": "munge.seed",
        }
        paths = [f"--{key}={self.folder / name}" for key, name in files.items()]
        self._start("munge", "munged", "--foreground", "--origin=127.0.0.1", *paths)
        socket_there = (self.folder / "munge.socket").exists
        self._wait(socket_there, limit, "munged has not opened its socket")

    def _start(self, name: str, *command: str) -> None:
        # MPICH would take System V's shared memory, without --ipc, for a way between
        # the nodes.
        namespaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--mount-proc"]
        # A chain by which all dies with pytest: setpriv, kill-child, process 1.
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", *namespaces]
        words += ["--kill-child", "sh", "-c", NAMESPACE, str(self.folder), name]
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
        if not shutil.which(command[0], path=path):
            raise ClusterError(f"there is no {command[0]}: is Slurm installed?")
        with (self.folder / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [*words, *command],
                cwd=self.folder,
                env=self.variables | {"PATH": path},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _wait(self, happened: Callable[[], bool], limit: float, fault: str) -> None:
        """Wait for something to happen, as long as all daemons are alive."""
        end = time.monotonic() + limit
        while not happened():
            for name, daemon in self._daemons.items():
                if (code := daemon.poll()) is not None:
                    raise self._error(f"{name} ended with {code}")
            if time.monotonic() > end:
                raise self._error(f"{fault} after {limit:.0f} s")
            time.sleep(0.05)

    def _error(self, fault: str) -> ClusterError:
        """Return an error that shows the last lines of every daemon's log."""
        lines = [fault]
        for log in sorted(self.folder.glob("*.log")):
            lines += [f"-- {log.name}", *log.read_text().splitlines()[-15:]]
        return ClusterError("\n".join(lines))

    # --- commands -------------------------------------------------------------

    def run(self, *command: str, limit: float = 30) -> str:
        """Run one of Slurm's commands, such as ``squeue``; return what it prints."""
        try:
            done = subprocess.run(
                command,
                env=os.environ | self.variables,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            raise self._error(f"{' '.join(command)}: no end after {limit} s") from None
        if done.returncode != 0:
            words = " ".join(command)
            raise ClusterError(f"{words}: exit code {done.returncode}\n{done.stderr}")
        return done.stdout

    def states(self) -> list[str]:
        """Return the state of every node, as ``sinfo`` words it."""
        return self.run("sinfo", "--noheader", "--Node", "--format=%T").split()

    def wait_idle(self, limit: float = 60) -> None:
        """Wait until both nodes are there and have nothing to do."""

        def idle() -> bool:
            with contextlib.suppress(ClusterError):  # the controller is not up yet
                return self.states() == ["idle"] * len(NODES)
            return False

        self._wait(idle, limit, "the nodes are not idle")

    def clear(self, limit: float = 60) -> None:
        """Kill every job, and wait until both nodes are idle again."""
        self.run("scancel", "--user=root", "--full", "--signal=KILL")
        self.run("scancel", "--user=root")
        for name in NODES:
            if name not in self._daemons:
                self.start_node(name)
        self.wait_idle(limit)

    def show(self, job: int | str) -> dict[str, str]:
        """Return what ``scontrol show job`` knows of a job, such as ``ExitCode``."""
        text = self.run("scontrol", "--oneliner", "show", "job", str(job))
        return dict(re.findall(r"(\S+?)=(\S*)", text.splitlines()[0]))

    def wait(
        self, job: int | str, state: str = "", limit: float = 60
    ) -> dict[str, str]:
        """Wait until a job is in this state, or has ended; return what `show` does."""
        shown: dict[str, str] = {}

        def there() -> bool:
            nonlocal shown
            shown = self.show(job)
            if state and shown["JobState"] in ENDED - {state}:
                raise ClusterError(f"job {job} is {shown['JobState']}, never {state}")
            return shown["JobState"] in ({state} if state else ENDED)

        self._wait(there, limit, f"job {job} is not {state or 'over'}")
        return shown


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody uses, below those that the kernel gives to clients."""
    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            if port not in ports:
                ports.append(port)
    return ports
