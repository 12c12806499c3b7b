"""Bursts: short tasks run without care leave what they leave with all of it."""

from __future__ import annotations

import os
import pickle
import textwrap
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_runner import drive

from mpiens import executor
from mpiens.child import Cell
from mpiens.executor import PROBATION, Executor, Watch
from mpiens.outcome import BATCH, DESCRIBE, FAILURE, Batch
from mpiens.reader import decode
from mpiens.row import settle
from mpiens.runner import Process
from mpiens.spec import Spec
from mpiens.window import nothing
from mpiens.worker import Worker

SPEC = """
[ensemble]
model = "{model}.py:simulate"
replicates = 400
seed = 20260529

[scenarios.a]
[scenarios.b]
beta = 0.25
"""
MODEL = """
import os
import random
import signal
import time

import numpy as np


def simulate(rng, scenario, replicate, *, beta=0.5):
    late = scenario == "b" and replicate % 100 == 77
    value, draw = rng.normal(size=4), 0.0
    BODY
    return {"value": value, "beta": beta + draw}
"""
TASKS = range(800)
LATE = {477, 577, 677, 777}  # tasks long after the first burst has begun
DIES = {  # what a late task does, and how its failure is told
    "os._exit(3)": "exit code 3",
    "os.kill(os.getpid(), signal.SIGSEGV)": "SIGSEGV",
    "os.closerange(0, 512)": "closed files",
    "raise ValueError('no such town')": "no such town",
    "raise SystemExit(4)": "SystemExit: 4",
    "value = value[:3]": "shape",
    "value = value + 1j": "real number",
}


def make_spec(folder: Path, body: str = "pass") -> Spec:
    model = f"model_{uuid.uuid4().hex}"
    (folder / f"{model}.py").write_text(MODEL.replace("BODY", body))
    return decode(SPEC.format(model=model), folder / "spec.toml").require()


def drive_all(spec: Spec) -> Any:
    """Run all tasks in a runner of its own, in ranges, as the manager deals them."""
    worker = Worker(lambda: Process(spec, nothing), spec.limits, spec.input_of)
    try:
        return drive(worker, TASKS)
    finally:
        worker.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine, too, these tasks are short."""
    monkeypatch.setattr(executor, "BRIEF", 1.0)
    monkeypatch.setattr(executor, "SHORT", 1.0)


@pytest.fixture
def bursts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tasks counted in each burst of this process."""
    counted: list[int] = []
    whole = Executor._burst

    def burst(self: Executor, *args: Any) -> int:
        counted.append(whole(self, *args))
        return counted[-1]

    monkeypatch.setattr(Executor, "_burst", burst)
    return counted


def execute(spec: Spec, *, careful: bool = False) -> tuple[dict[int, bytes], list[Any]]:
    """Run all tasks in this process; return rows by task, and failures."""
    frames: list[tuple[int, bytes]] = []
    watch = Watch(Cell())
    own = Executor(spec, nothing, lambda *frame: frames.append(frame), watch)
    tasks = np.array(TASKS)
    own.execute(tasks[:1], 1, {}, careful)
    kind, data = frames.pop()
    assert kind == DESCRIBE
    row = settle(spec, pickle.loads(data).described)
    own.settle(row)
    for start in range(1, len(tasks), 150):
        own.execute(tasks[start : start + 150], 1, {}, careful)
    rows, failures = {}, []
    for kind, data in frames:
        if kind == BATCH:
            batch = Batch.from_bytes(data, row)
            for record, one in zip(batch.records, batch.rows, strict=True):
                assert int(record["task"]) not in rows
                rows[int(record["task"])] = one.tobytes() + record.tobytes()[8:16]
        else:
            assert kind == FAILURE
            failures.append(pickle.loads(data))
    return rows, failures


def test_bursts_leave_what_care_leaves(tmp_path: Path, bursts: list[int]) -> None:
    spec = make_spec(tmp_path)
    quick, _ = execute(spec)
    assert sum(bursts) == len(TASKS) - 1 - PROBATION
    slow, _ = execute(spec, careful=True)
    assert quick == slow
    assert len(quick) == len(TASKS)
    assert sum(bursts) == len(TASKS) - 1 - PROBATION  # and none of them careful


@pytest.mark.parametrize("draw", ["random.random()", "np.random.rand()"])
@pytest.mark.parametrize("when", ["True", "late"])
def test_global_generators_are_seeded_for_whoever_draws(
    tmp_path: Path, bursts: list[int], draw: str, when: str
) -> None:
    spec = make_spec(tmp_path, f"draw = {draw} if {when} else 0.0")
    quick, _ = execute(spec)
    assert sum(bursts) <= min(LATE)
    if when == "True":
        assert bursts == []
    else:
        assert bursts[-1] == 0  # that one was in vain, and no other followed
    slow, _ = execute(spec, careful=True)
    assert quick == slow
    assert len(quick) == len(TASKS)


def test_a_model_that_seeds_what_is_global_itself_is_no_exception(
    tmp_path: Path, bursts: list[int]
) -> None:
    body = "np.random.seed(replicate); draw = np.random.rand()"
    spec = make_spec(tmp_path, body)
    assert execute(spec) == execute(spec, careful=True)
    assert bursts == []


def test_slow_tasks_are_run_one_by_one(
    tmp_path: Path, bursts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "SHORT", 1e-9)
    execute(make_spec(tmp_path))
    assert bursts == []


@pytest.mark.parametrize(
    "how", [{"task_memory": 1 << 40}, {}], ids=["task_memory", "fresh"]
)
def test_limits_of_each_task_rule_out_bursts(
    tmp_path: Path, bursts: list[int], how: dict[str, int]
) -> None:
    spec = make_spec(tmp_path)
    if how:
        spec = replace(spec, limits=replace(spec.limits, **how))
    else:
        spec = replace(spec, model=replace(spec.model, fresh="task"))
    rows, _ = execute(spec)
    assert bursts == []
    assert len(rows) == len(TASKS)


@pytest.mark.parametrize("body", DIES, ids=DIES.values())
def test_the_culprit_of_a_burst_is_found(tmp_path: Path, body: str) -> None:
    outcome = drive_all(make_spec(tmp_path, f"if late: {body}"))
    assert outcome.failures.keys() == LATE
    assert outcome.values.keys() == {*TASKS} - LATE
    for failure in outcome.failures.values():
        assert DIES[body] in failure.text
        assert failure.attempts == 1


def test_what_a_task_of_a_burst_prints_is_told_of_it_alone(tmp_path: Path) -> None:
    body = """print("now", scenario, replicate)
    if late: raise ValueError("no such town")"""
    outcome = drive_all(make_spec(tmp_path, textwrap.dedent(body)))
    assert outcome.failures.keys() == LATE
    for task, failure in outcome.failures.items():
        printed = failure.text.rpartition(":\n")[2].split("\n")
        assert [line for line in printed if line] == [f"now b {task - 400}"]


def test_a_hanging_task_of_a_burst_is_ended(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "if late and replicate == 177: time.sleep(60)")
    spec = replace(spec, limits=replace(spec.limits, task_seconds=0.5))
    outcome = drive_all(spec)
    assert [*outcome.failures] == [577]
    assert "longer than task_seconds" in outcome.failures[577].text


def test_a_fork_that_comes_back_in_a_burst_ends_there(tmp_path: Path) -> None:
    outcome = drive_all(make_spec(tmp_path, "late and os.fork()"))
    assert outcome.failures == {}
    assert outcome.values.keys() == {*TASKS}


def test_who_closes_files_and_opens_others_is_found(tmp_path: Path) -> None:
    body = f"if late: os.dup2(os.open({os.devnull!r}, os.O_WRONLY), 1)"
    outcome = drive_all(make_spec(tmp_path, body))
    assert outcome.failures.keys() == LATE
    assert all("closed files" in f.text for f in outcome.failures.values())
