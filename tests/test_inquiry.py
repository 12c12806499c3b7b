"""When a job ends, by what commands in Slurm's place print, fail to, or never do."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from conftest import write

from mpiens import inquiry
from mpiens.deadline import AGAIN, MARGIN, Deadline, Stopped
from mpiens.inquiry import inquire

Command = Callable[[str, str], None]
END = 1_800_000_000
SCONTROL = (
    f"JobId={{}} JobName=x JobState=RUNNING TimeLimit=00:05:00 StartTime={END - 300} "
    f"EndTime={{}} Deadline=N/A NodeList=n1 Command=/home/run.sh"
)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Make a command of a shell script; nothing else that is Slurm's can be found."""
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()

    def make(name: str, script: str) -> None:
        path = write(tmp_path / "bin", name, f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    for name in ("squeue", "scontrol"):
        make(name, "exit 1")
    return make


def ask(job: str = "7", limit: float = 10) -> float | None:
    """Return what the inquiry finds out, None where that is nothing."""
    since = time.monotonic()
    for end in inquire(job):
        if end is not None:
            return end
        assert time.monotonic() - since < limit
        time.sleep(0.005)
    return None


def test_squeue_is_asked_for_seconds_and_for_one_job(command: Command) -> None:
    answer = 'test "$SLURM_TIME_FORMAT" = %s && echo "$*"'
    command("squeue", f'{answer} >"${{0%/*}}/asked"; echo 7 {END}')
    assert ask() == END
    asked = Path(os.environ["PATH"].partition(":")[0], "asked").read_text()
    assert asked.split("\n")[0] == "--noheader --job=7 --format=%A %e"


@pytest.mark.parametrize(
    ("printed", "end"),
    [
        (f"7 {END}", END),
        ("7 2027-01-15T08:00:00", datetime(2027, 1, 15, 8).timestamp()),
        (f"9 {END + 5}\n7 {END}\n8 N/A", END),  # an array whose id is an element's too
        *((text, None) for text in ("", "7 N/A", "7 NONE", "7 Unknown", "7 0", "7")),
        *((text, None) for text in ("7 12:24:33", "7 tomorrow", f"9 {END}")),
    ],
)
def test_an_end_is_told_in_many_ways(
    command: Command, printed: str, end: float | None
) -> None:
    command("squeue", f'printf "{printed}\n"')
    assert ask() == end


@pytest.mark.parametrize(
    "squeue", ["exit 1", f"echo 7 {END + 9}; exit 1", "echo 7 N/A"]
)
def test_where_squeue_cannot_tell_scontrol_is_asked(
    command: Command, squeue: str
) -> None:
    command("squeue", squeue)
    lines = [SCONTROL.format(9, END + 9), SCONTROL.format(7, END)]
    command("scontrol", f'echo "{lines[0]}"; echo "{lines[1]}"')
    assert ask() == END
    command("scontrol", f'echo "{SCONTROL.format(7, "Unknown")}"')
    assert ask() is None


def test_where_there_is_no_slurm_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ask() is None


def test_a_command_that_does_not_answer_is_ended(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inquiry, "LIMIT", 0.3)
    for name in ("squeue", "scontrol"):
        command(name, f"echo $$ >>{tmp_path}/pids; exec sleep 60")
    since = time.monotonic()
    assert ask() is None
    assert 0.6 <= time.monotonic() - since < 5
    pids = (tmp_path / "pids").read_text().split()
    assert len(pids) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


class Clock:
    """A clock that stands still until it is turned."""

    now = float(END - 3600)

    def __call__(self) -> float:
        return self.now


class Job:
    """A deadline whose job ends when ``end`` says, by a squeue that counts."""

    def __init__(self, folder: Path, command: Command) -> None:
        self.clock = Clock()
        self.folder = folder
        self.move(END)
        command("squeue", f"echo >>{folder}/asked; echo 7 $(cat {folder}/end)")
        self.deadline = Deadline.of({"SLURM_JOB_ID": "7"})
        self.deadline.clock = self.clock

    def move(self, end: int) -> None:
        """Give the job another end."""
        (self.folder / "end").write_text(str(end))

    def asked(self) -> int:
        path = self.folder / "asked"
        return len(path.read_text()) if path.exists() else 0

    def settle(self) -> float | None:
        """Return what remains once all questions are answered."""
        remaining = self.deadline.remaining()
        while self.deadline._inquiry is not None:
            time.sleep(0.005)
            remaining = self.deadline.remaining()
        return remaining


@pytest.fixture
def job(tmp_path: Path, command: Command) -> Job:
    return Job(tmp_path, command)


def test_a_rank_that_does_not_ask_has_no_deadline(job: Job) -> None:
    assert job.settle() is None
    assert not job.deadline.doubt()
    assert job.asked() == 0


def test_nobody_waits_for_the_answer(job: Job) -> None:
    job.deadline.ask_slurm({"SLURM_JOB_ID": "7"})
    assert job.deadline.remaining() is None  # the command has only been started
    assert job.settle() == 3600 - MARGIN
    assert job.asked() == 1


def test_a_job_without_slurm_asks_nobody(job: Job) -> None:
    job.deadline.ask_slurm({})
    assert job.settle() is None
    assert job.asked() == 0


def test_what_the_environment_tells_needs_no_question_until_the_end(job: Job) -> None:
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": str(END - 1000)}
    job.deadline = Deadline.of(environment)
    job.deadline.clock = job.clock
    job.deadline.ask_slurm(environment)
    assert job.settle() == 2600 - MARGIN
    assert job.asked() == 0
    job.clock.now += 2600 - MARGIN - AGAIN + 1
    assert job.settle() == AGAIN - 1 + 1000
    assert job.asked() == 1


def test_a_moved_end_is_seen_when_little_time_is_left(job: Job) -> None:
    job.deadline.ask_slurm({"SLURM_JOB_ID": "7"})
    job.settle()
    job.move(END + 600)
    job.clock.now = END - MARGIN - AGAIN - 1
    assert job.settle() == AGAIN + 1
    assert job.asked() == 1
    job.clock.now += 2
    assert job.settle() == AGAIN - 1 + 600
    assert job.asked() == 2


def test_in_doubt_slurm_is_asked_once_a_minute(job: Job) -> None:
    job.deadline.ask_slurm({"SLURM_JOB_ID": "7"})
    job.settle()
    assert not job.deadline.doubt()  # the answer is fresh
    job.move(END + 600)
    job.clock.now += AGAIN
    assert job.deadline.doubt()
    assert job.settle() == 4200 - AGAIN - MARGIN
    assert not job.deadline.doubt()
    assert job.asked() == 2


def test_an_end_that_is_not_moved_ends_the_work(job: Job) -> None:
    job.deadline.ask_slurm({"SLURM_JOB_ID": "7"})
    job.settle()
    job.clock.now = END - MARGIN
    assert job.settle() == 0
    with pytest.raises(Stopped, match="the job's time is nearly over"):
        job.deadline.look()
    assert not job.deadline.asked


def test_who_cannot_tell_is_not_asked_again(job: Job, command: Command) -> None:
    command("squeue", f"echo >>{job.folder}/asked; exit 1")
    job.deadline.ask_slurm({"SLURM_JOB_ID": "7"})
    assert job.settle() is None
    job.clock.now += 2 * AGAIN
    assert not job.deadline.doubt()
    assert job.settle() is None
    assert job.asked() == 1


def test_a_question_ends_with_the_work(job: Job, command: Command) -> None:
    command("squeue", f"echo $$ >{job.folder}/pid; exec sleep 60")
    job.deadline.ask_slurm({"SLURM_JOB_ID": "7"})
    while not (job.folder / "pid").exists() or not (job.folder / "pid").read_text():
        assert job.deadline.remaining() is None
        time.sleep(0.005)
    job.deadline.close()
    assert not Path(f"/proc/{(job.folder / 'pid').read_text().strip()}").exists()
