"""Runners: whatever a model does costs its task, and never what keeps the runner."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Launcher, write

from mpiens.bell import Bell
from mpiens.child import Cell, ask_child
from mpiens.fault import SpecError
from mpiens.outcome import BATCH, DESCRIBE, FAILURE, ROW, TASKS, Batch, Failure
from mpiens.reader import decode
from mpiens.row import Row, settle
from mpiens.runner import Inline, Process
from mpiens.spec import Limits, Spec
from mpiens.window import nothing
from mpiens.worker import Worker

# newer Pythons warn of forks beside threads, and numpy's BLAS may have started some
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")

MODEL = """
import ctypes, os, random, signal, subprocess, sys, time
from pathlib import Path
import numpy as np

HERE = Path(__file__).parent


def count(name):
    with open(HERE / name, "a") as file:
        file.write("x")
    return (HERE / name).stat().st_size


def simulate(rng, shared, scenario, replicate, seed, *, beta=0.5):
    task = f"{scenario}-{replicate}"
    value = rng.normal(size=4)
    BODY
    return {"value": value, "beta": beta}
"""
SPEC = """
[ensemble]
model = "{model}.py:simulate"
replicates = 6
seed = 20260529

[scenarios.a]
[scenarios.b]
beta = 0.25
"""
TASKS_ALL = range(12)
ROW_OF_ALL = {"value": ((4,), "<f8"), "beta": ((), "<f8")}


def make_spec(folder: Path, body: str = "pass") -> Spec:
    model = f"model_{uuid.uuid4().hex}"
    lines = textwrap.indent(textwrap.dedent(body), "    ").lstrip()
    (folder / f"{model}.py").write_text(MODEL.replace("BODY", lines))
    return decode(SPEC.format(model=model), folder / "spec.toml").require()


def sequence(replicate: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(20260529, spawn_key=(replicate,))


def expected(task: int) -> tuple[bytes, float]:
    """Return what the model returns, by numpy's own streams."""
    rng = np.random.default_rng(sequence(task % 6))
    return rng.normal(size=4).tobytes(), 0.5 if task < 6 else 0.25


@dataclass
class Outcome:
    """What became of tasks."""

    values: dict[int, tuple[bytes, float]] = field(default_factory=dict)
    attempts: dict[int, int] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values) + len(self.failures)


def drive(worker: Worker, tasks: Any = TASKS_ALL, limit: float = 30) -> Outcome:
    """Run tasks as the manager would; the first that succeeds settles the row."""
    outcome = Outcome()
    row: Row | None = None
    end = time.monotonic() + limit
    worker.deal(np.array(tasks, dtype=np.int64))
    while len(outcome) < len(tasks):
        for kind, data in worker.step():
            if kind == DESCRIBE and row is None:
                row = settle(worker.runner.spec, pickle.loads(data).described)
                worker.settle(row)
            elif kind == BATCH and row is not None:
                batch = Batch.from_bytes(data, row)
                for record, values in zip(batch.records, batch.rows, strict=True):
                    task = int(record["task"])
                    assert task not in outcome.values, "told twice"
                    value = values["value"].tobytes(), float(values["beta"])
                    outcome.values[task] = value
                    outcome.attempts[task] = int(record["attempts"])
            elif kind == FAILURE:
                failure = pickle.loads(data)
                assert failure.task not in outcome.failures, "told twice"
                outcome.failures[failure.task] = failure
        if time.monotonic() > end:
            pytest.fail(f"after {limit} s: {outcome}")
        worker.wait(0.05, Bell())
    return outcome


def run(
    spec: Spec, shared: Callable[[], Any] = nothing, tasks: Any = TASKS_ALL, **how: Any
) -> Outcome:
    worker = Worker(start=lambda: Process(spec, shared), limits=Limits(**how))
    try:
        return drive(worker, tasks)
    finally:
        worker.close()


def test_a_process_runs_ranges_under_the_streams_of_numpy(tmp_path: Path) -> None:
    outcome = run(make_spec(tmp_path))
    assert outcome.values == {task: expected(task) for task in TASKS_ALL}
    assert set(outcome.attempts.values()) == {1}


def test_tasks_may_come_in_any_order(tmp_path: Path) -> None:
    tasks = [7, 3, 11, 0]
    outcome = run(make_spec(tmp_path), tasks=tasks)
    assert outcome.values == {task: expected(task) for task in tasks}


def test_without_a_process_the_batches_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    inline = ask_child(lambda: drive(Worker(start=lambda: Inline(spec, nothing))))
    assert inline == run(spec)


def test_generators_of_old_are_seeded_for_every_task(tmp_path: Path) -> None:
    body = "value = np.array([random.random(), np.random.rand(), seed, 0.0])"
    outcome = run(make_spec(tmp_path, body))
    for task in TASKS_ALL:
        seed = int(sequence(task % 6).generate_state(1)[0])
        numbers = [random.Random(seed).random(), np.random.RandomState(seed).rand()]
        assert outcome.values[task][0] == np.array([*numbers, seed, 0.0]).tobytes()


def test_the_shared_data_is_handed_to_the_model(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "value = value + shared['shift']")
    outcome = run(spec, lambda: {"shift": np.ones(4)})
    for task in TASKS_ALL:
        plain = np.frombuffer(expected(task)[0])
        assert outcome.values[task][0] == (plain + 1).tobytes()


FAULTS = {
    "raise ValueError('no such town')": "ValueError: no such town",
    "sys.exit(3)": "SystemExit: 3",
    "os._exit(7)": "exit code 7",
    "os._exit(0)": "exit code 0",
    "ctypes.string_at(0)": "SIGSEGV",
    "os.abort()": "SIGABRT",
    "raise KeyboardInterrupt": "exit code 1",
    "simulate(rng, shared, scenario, replicate, seed)": "RecursionError",
    "os.closerange(3, 200); value = 1": "closed files that are not its own",
    "print('x' * 10**7); raise ValueError('told')": "ValueError: told",
    "value = value[:2]": "'value' has shape (2,) here and shape (4,) in the file",
    "value = value.astype(complex)": "'value' is of type complex128",
    "value = [[1], [2, 3]]": "'value' is no array",
    "beta = 'high'": "'beta' is of type <U4",
    "return 3": "mapping of output names to numbers, not int",
    "return {'value': value}": "'beta' is missing",
    "return {'value': value, 'beta': beta, 'x': 1}": "'x' is in no earlier task",
    "raise type('Odd', (Exception,), {'__str__': lambda s: 1 / 0})": "Odd",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_its_task_and_no_other(tmp_path: Path, fault: str) -> None:
    outcome = run(make_spec(tmp_path, f"if task == 'b-1':\n    {fault}"))
    assert list(outcome.failures) == [7]
    assert FAULTS[fault] in outcome.failures[7].text
    assert outcome.failures[7].attempts == 1
    rest = [task for task in TASKS_ALL if task != 7]
    assert outcome.values == {task: expected(task) for task in rest}


def test_a_text_tells_the_line_of_the_model_and_none_of_ours(tmp_path: Path) -> None:
    outcome = run(make_spec(tmp_path, "if task == 'b-1': value[9] = 1 / beta"))
    text = outcome.failures[7].text
    assert "value[9] = 1 / beta" in text
    assert "IndexError: index 9 is out of bounds" in text
    assert "mpiens/runner.py" not in text


def test_the_first_task_may_fail_in_every_way(tmp_path: Path) -> None:
    body = """
        if task == 'a-0': raise ValueError('first')
        if task == 'a-1': os._exit(1)
        if task == 'a-2': value = 'text'
    """
    outcome = run(make_spec(tmp_path, body))
    assert sorted(outcome.failures) == [0, 1, 2]
    assert outcome.values == {task: expected(task) for task in range(3, 12)}


def test_what_a_model_prints_stays_in_its_process(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    body = """
        print('by print', flush=True)
        print('by stderr', file=sys.stderr)
        os.write(1, b'by write')
        subprocess.run(['echo', 'by echo'], check=True)
        print('y' * 10**6)
    """
    outcome = run(make_spec(tmp_path, body))
    assert outcome.values == {task: expected(task) for task in TASKS_ALL}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("fault", ["raise ValueError('told')", "os.abort()"])
def test_a_failure_keeps_what_its_task_printed_and_no_other(
    tmp_path: Path, fault: str
) -> None:
    body = f"""
        print('of task', task)
        if task == 'a-4':
            print('last words')
            if 'abort' in {fault!r}: sys.stdout.flush()
            {fault}
    """
    text = run(make_spec(tmp_path, body)).failures[4].text
    assert "of task a-4\nlast words" in text
    assert "of task a-3" not in text


def test_a_failure_keeps_the_last_64_kib_of_what_its_task_printed(
    tmp_path: Path,
) -> None:
    body = """
        if task == 'a-4':
            print('z' * 10**6)
            print('the end')
            raise ValueError('told')
    """
    text = run(make_spec(tmp_path, body)).failures[4].text
    assert "ValueError: told" in text
    assert "zz\nthe end" in text
    assert 60_000 < text.count("z") <= 64 << 10


@pytest.mark.parametrize("fault", ["raise ValueError('bad luck')", "os._exit(1)"])
def test_a_retry_runs_under_the_same_stream(tmp_path: Path, fault: str) -> None:
    spec = make_spec(tmp_path, f"if task == 'a-2' and count('tries') < 3: {fault}")
    outcome = run(spec, retries=2)
    assert outcome.values == {task: expected(task) for task in TASKS_ALL}
    assert outcome.attempts == {task: 3 if task == 2 else 1 for task in TASKS_ALL}


@pytest.mark.parametrize("fault", ["raise ValueError('bad luck')", "os._exit(1)"])
def test_a_task_is_retried_as_often_as_asked_and_no_more(
    tmp_path: Path, fault: str
) -> None:
    spec = make_spec(tmp_path, f"if task == 'a-2' and count('tries'): {fault}")
    outcome = run(spec, retries=2)
    assert {task: f.attempts for task, f in outcome.failures.items()} == {2: 3}
    assert (tmp_path / "tries").stat().st_size == 3
    assert len(outcome.values) == 11


@pytest.mark.parametrize("loop", ["while True: pass", "time.sleep(1000)"])
def test_an_endless_task_is_ended_at_task_seconds(tmp_path: Path, loop: str) -> None:
    spec = make_spec(tmp_path, f"if task == 'b-0' and count('tries'):\n    {loop}")
    outcome = run(spec, retries=1, task_seconds=0.4)
    assert list(outcome.failures) == [6]
    assert "longer than task_seconds = 0.4" in outcome.failures[6].text
    assert outcome.failures[6].attempts == 2
    assert outcome.failures[6].seconds >= 0.4
    assert (tmp_path / "tries").stat().st_size == 2
    assert outcome.values == {t: expected(t) for t in TASKS_ALL if t != 6}


@pytest.mark.parametrize(
    ("fault", "head"),
    [("ctypes.string_at(0)", "Segmentation fault"), ("time.sleep(99)", "task_seconds")],
)
def test_a_crash_and_a_loop_tell_where_in_the_model(
    tmp_path: Path, fault: str, head: str
) -> None:
    spec = make_spec(tmp_path, f"if task == 'b-0':\n    {fault}")
    text = run(spec, task_seconds=0.4).failures[6].text
    assert head in text
    assert f'{spec.ensemble.model.partition(":")[0]}", line' in text
    assert "in simulate" in text
    assert "mpiens/runner.py" not in text
    assert "frozen" not in text


def test_a_task_that_is_too_late_is_not_saved_by_the_signal(tmp_path: Path) -> None:
    # an interrupted sleep in C returns early, and what follows would be wrong
    spec = make_spec(tmp_path, "if task == 'b-0': ctypes.PyDLL(None).sleep(99)")
    outcome = run(spec, task_seconds=0.4)
    assert list(outcome.failures) == [6]
    assert "longer than task_seconds = 0.4" in outcome.failures[6].text


@pytest.mark.parametrize("rests", [True, False])
def test_what_runs_is_never_read_half_written(rests: bool) -> None:
    begun = time.monotonic()
    for _ in range(50):
        cell = Cell()
        pid = os.fork()
        while pid == 0:
            cell.write(13)
            if rests:
                cell.clear()
        readings = [cell.read() for _ in range(2000)]
        os.kill(pid, signal.SIGKILL)  # at any moment, also in the midst of writing
        os.waitpid(pid, 0)
        for task, since in [*readings, cell.read()]:
            assert (task, since) == (-1, 0.0) or (task == 13 and since >= begun)


def test_a_gigabyte_printed_is_read_and_forgotten(tmp_path: Path) -> None:
    body = """
        if task == 'b-0':
            for _ in range(1024): os.write(1, bytes(1 << 20))
            raise ValueError('told')
    """
    outcome = run(make_spec(tmp_path, body))
    assert len(outcome.failures[6].text) < 70_000
    assert "ValueError: told" in outcome.failures[6].text


START = "child = subprocess.Popen(['sh', '-c', 'sleep 1000 & echo $!; wait'], " + (
    "stdout=subprocess.PIPE); below = child.stdout.readline().decode().strip(); "
    "(HERE / 'started').write_text(f'{child.pid} {below}')"
)


@pytest.mark.parametrize(
    "end", ["time.sleep(100)", "os.abort()", "os._exit(3)", "pass", "child.kill()"]
)
def test_what_a_model_has_started_ends_with_its_runner(
    tmp_path: Path, end: str
) -> None:
    body = f"if task == 'b-0':\n    {START}\n    {end}"
    outcome = run(make_spec(tmp_path, body), task_seconds=0.8)
    assert len(outcome) == 12
    for pid in (tmp_path / "started").read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def test_a_model_may_use_a_pool_of_its_own(tmp_path: Path) -> None:
    body = """
        import multiprocessing
        with multiprocessing.get_context('fork').Pool(2) as pool:
            value = value + np.array(pool.map(abs, [1, 2, 3, 4]))
    """
    spec = make_spec(tmp_path, body)
    ready = threading.Event()  # as a supervisor does, whose children inherit it
    before = signal.signal(signal.SIGTERM, lambda number, frame: ready.set())
    try:
        outcome = run(spec, tasks=[0, 1])
    finally:
        signal.signal(signal.SIGTERM, before)
    for task in (0, 1):
        plain = np.frombuffer(expected(task)[0])
        assert outcome.values[task][0] == (plain + np.arange(1, 5)).tobytes()


def test_a_fork_of_the_model_that_stays_hides_no_death(tmp_path: Path) -> None:
    body = """
        if task == 'a-1' and os.fork() == 0: time.sleep(1000)
        if task == 'a-3': os._exit(3)
    """
    outcome = run(make_spec(tmp_path, body))
    assert list(outcome.failures) == [3]
    assert "exit code 3" in outcome.failures[3].text
    assert len(outcome.values) == 11


def test_a_fork_of_the_model_that_comes_back_does_no_harm(tmp_path: Path) -> None:
    outcome = run(make_spec(tmp_path, "os.fork()"))
    assert outcome.values == {task: expected(task) for task in TASKS_ALL}


def test_a_runner_that_was_stopped_is_ended_and_its_task_dealt_again(
    tmp_path: Path,
) -> None:
    stop = "os.kill(os.getpid(), signal.SIGSTOP)"
    spec = make_spec(tmp_path, f"if task == 'a-2' and count('tries') < 2: {stop}")
    outcome = run(spec, heartbeat=0.3, task_seconds=0.1)
    assert outcome.values == {task: expected(task) for task in TASKS_ALL}
    assert outcome.attempts[2] == 2


def test_a_job_that_was_suspended_loses_no_task(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "if task == 'a-2': count('begun'); time.sleep(0.5)")
    worker = Worker(lambda: Process(spec, nothing), Limits(task_seconds=1))
    suspended = False

    def step() -> Any:
        nonlocal suspended
        if not suspended and (tmp_path / "begun").exists():
            suspended = True
            os.kill(worker.runner.pid, signal.SIGSTOP)
            time.sleep(2)
            os.kill(worker.runner.pid, signal.SIGCONT)
        return original()

    original, worker.step = worker.step, step  # type: ignore[method-assign]
    try:
        outcome = drive(worker)
    finally:
        worker.close()
    assert suspended
    assert outcome.values == {task: expected(task) for task in TASKS_ALL}
    assert set(outcome.attempts.values()) == {1}


@pytest.mark.parametrize("number", ["SIGKILL", "SIGTERM"])
def test_a_task_whose_runner_the_system_killed_is_dealt_again(
    tmp_path: Path, number: str
) -> None:
    kill = f"os.kill(os.getpid(), signal.{number})"
    body = f"if task == 'a-2' and count('tries') <= 3: {kill}; time.sleep(100)"
    outcome = run(make_spec(tmp_path, body))
    assert outcome.values == {task: expected(task) for task in TASKS_ALL}
    assert outcome.attempts[2] == 4


def test_a_task_whose_runner_is_always_killed_fails_in_the_end(tmp_path: Path) -> None:
    kill = "os.kill(os.getpid(), signal.SIGKILL)"
    body = f"if task == 'a-2' and count('tries'): {kill}; time.sleep(100)"
    outcome = run(make_spec(tmp_path, body), retries=1)
    assert list(outcome.failures) == [2]
    assert "SIGKILL" in outcome.failures[2].text
    assert outcome.failures[2].attempts == 5
    assert (tmp_path / "tries").stat().st_size == 5


def test_a_model_that_cannot_be_imported_fails_its_tasks_and_ends(
    tmp_path: Path,
) -> None:
    spec = make_spec(tmp_path)
    source = tmp_path / spec.ensemble.model.partition(":")[0]
    source.write_text("import nowhere_to_be_found")
    outcome = run(spec, tasks=[0, 1])
    assert sorted(outcome.failures) == [0, 1]
    assert "nowhere_to_be_found" in outcome.failures[0].text


def test_results_held_back_keep_their_values_in_a_buffer_used_again(
    tmp_path: Path,
) -> None:
    body = """
        global buffer
        buffer = globals().get('buffer', np.zeros(4))
        buffer[:] = value
        value = buffer
    """
    process = Process(make_spec(tmp_path, body), nothing)
    row = settle(process.spec, ROW_OF_ALL)
    try:
        for tasks in ([0, 1], [2]):  # before the row is known
            process.send(TASKS, pickle.dumps((np.array(tasks), 1, {})))
        process.send(ROW, pickle.dumps(row))
        kinds: list[int] = []
        end = time.monotonic() + 30
        while BATCH not in kinds:
            assert time.monotonic() < end
            process.wait(0.05, Bell())
            for kind, data in process.poll():
                kinds.append(kind)
                if kind == BATCH:
                    batch = Batch.from_bytes(data, row)
    finally:
        process.close()
    assert kinds == [DESCRIBE, DESCRIBE, DESCRIBE, BATCH]
    assert batch.records["task"].tolist() == [0, 1, 2]
    values = [values["value"].tobytes() for values in batch.rows]
    assert values == [expected(task)[0] for task in range(3)]


SUPERVISOR = """
import os, pickle, signal, sys
import numpy as np
from mpiens.bell import Bell
from mpiens.outcome import TASKS
from mpiens.runner import Process
from mpiens.reader import decode
from mpiens.window import nothing

spec = decode(sys.argv[1], sys.argv[2]).require()
process = Process(spec, nothing)
process.send(TASKS, pickle.dumps((np.arange(2), 1, {})))
while process.cell.read()[0] < 0:
    process.wait(0.01, Bell())
print(process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_runner_dies_with_its_supervisor(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "while True: time.sleep(1)")
    text = SPEC.format(model=spec.ensemble.model.partition(".")[0])
    script = write(tmp_path, "supervisor.py", SUPERVISOR)
    ended = subprocess.run(
        [sys.executable, script, text, tmp_path / "spec.toml"],
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.returncode == -9
    pid = int(ended.stdout)
    end = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < end, "the runner lives on"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """A process that has ended may wait for ever to be collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def test_what_a_child_is_asked_leaves_nothing_behind(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def question() -> Any:
        os.environ["LEFT_BEHIND"] = "1"
        os.write(1, b"told")
        return {"answer": np.arange(3)}

    assert ask_child(question)["answer"].tolist() == [0, 1, 2]
    assert "LEFT_BEHIND" not in os.environ
    assert capfd.readouterr().out == ""


def test_a_child_that_ends_is_a_fault_of_the_spec() -> None:
    with pytest.raises(SpecError, match=r"\[ensemble\] model: .* ended .* code 9"):
        ask_child(lambda: os._exit(9))


LONG_TURNS = tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 12)


def test_a_runner_takes_long_turns_and_stays_as_nice_as_it_was(tmp_path: Path) -> None:
    body = f"""
    import struct
    words = ctypes.create_string_buffer(56)
    number = {{"x86_64": 315}}.get(os.uname().machine, 275)
    assert ctypes.CDLL(None).syscall(number, 0, words, 56, 0) == 0
    policy, _, nice = struct.unpack_from("=IQi", words, 4)
    turn = struct.unpack_from("=Q", words, 24)[0] / 1e9 if {LONG_TURNS} else 0.1
    value = np.array([policy, nice, turn, 0.0])"""
    spec = make_spec(tmp_path, body)
    nice = os.getpriority(os.PRIO_PROCESS, 0) + 3

    def act() -> Outcome:
        os.nice(3)
        return run(spec, tasks=[0])

    found = np.frombuffer(ask_child(act).values[0][0])
    assert found.tolist() == [os.SCHED_OTHER, nice, 0.1, 0.0]


@pytest.mark.parametrize("told", [False, True], ids=["alone", "told otherwise"])
def test_a_runner_keeps_the_memory_of_one_step_for_the_next(
    launcher: Launcher, tmp_path: Path, told: bool
) -> None:
    model = """
    import resource
    import numpy as np

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def step():
        return [np.ones(1 << 17) for _ in range(32)]  # 1 MiB each

    def simulate():
        step()
        before = faults()
        for _ in range(10):
            step()
        return {"faults": faults() - before}
    """
    write(tmp_path, "model.py", model)
    spec = '[ensemble]\nmodel = "model.py:simulate"\nreplicates = 1\nseed = 1\n'
    write(tmp_path, "run.toml", spec)
    own = {"MALLOC_TRIM_THRESHOLD_": str(128 << 10)} if told else {}
    ran = launcher.run([sys.executable, "-m", "mpiens", "run.toml"], **own)
    assert ran.code == 0, ran.errors
    with h5py.File(tmp_path / "run.h5") as file:
        faults = file["/series/faults"][0, 0]
    pages = 10 * 32 * (1 << 20) / os.sysconf("SC_PAGE_SIZE")
    if told:
        assert faults > pages / 2, "else this test would tell nothing"
    else:
        assert faults < pages / 100


def test_what_the_runner_was_not_given_can_be_given_back(tmp_path: Path) -> None:
    spec = make_spec(tmp_path)
    worker = Worker(start=lambda: Process(spec, nothing))
    try:
        for tasks in ([0, 1], [2], [3, 4]):
            worker.deal(np.array(tasks))
        next(worker.step(), None)  # the first range goes to the runner
        assert worker.give_back().tolist() == [2, 3, 4]
        assert worker.claims == [0, 1]
        assert worker.give_back().tolist() == []
    finally:
        worker.close()
