"""What a file system does to a run costs time, and nothing that was finished."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from conftest import Launch, Launcher, write

from mpiens.trouble import Trouble

LIMIT = 60
MPIENS = [sys.executable, "-m", "mpiens"]

# Task 10 does what a file asks for: waits until another one is there, or fills the
# disk on which the result is.
MODEL = """
import contextlib
import os
import time
from pathlib import Path


def simulate(rng, replicate):
    Path("called").touch()
    if replicate == 10 and Path("wait").exists():
        Path("waiting").touch()
        while not Path("go").exists():
            time.sleep(0.01)
    if replicate == 10 and Path("fill").exists():
        while not Path("disk/x.h5.partial").exists():
            time.sleep(0.01)
        time.sleep(0.3)
        ballast = os.open("disk/ballast", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(ballast, bytes(1024))
    return {"wave": rng.normal(size=5), "luck": int(rng.integers(99))}
"""
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 20
seed = 5

[outputs.wave]
dims = ["day"]
"""


def prepare(folder: Path) -> None:
    write(folder, "model.py", MODEL)
    write(folder, "sweep.toml", SPEC)
    write(folder, "dropped.toml", SPEC + "keep = false\n")
    (folder / "disk").mkdir()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a spec, and an empty folder named ``disk``."""
    prepare(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(folder)
    assert Launcher(folder).mpiens("sweep.toml").code == 0
    return folder / "sweep.h5"


def digest(file: Path) -> str:
    with h5py.File(file) as opened:
        return str(opened.attrs["digest"])


def wait_until(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < end, f"did not happen in {LIMIT} s"
        time.sleep(0.01)


def start_waiting(launcher: Launcher, output: str, *, laid: bool = True) -> Launch:
    """Start a run and return while it is in the midst of its tasks.

    Its file is there, with the rows of those that are finished, unless none is.
    """
    (launcher.folder / "wait").touch()
    launch = launcher.start([*MPIENS, "sweep.toml", "-o", output])
    wait_until((launcher.folder / "waiting").exists)
    if laid:  # tasks run while it is being laid down
        wait_until((launcher.folder / f"{output}.partial").exists)
        time.sleep(0.3)
    return launch


def on_disk(
    launcher: Launcher, options: str, script: str, spec: str = "sweep.toml"
) -> Launch:
    """Run a script of sh in whose eyes a disk is mounted on the folder ``disk``.

    ``run`` in it is the command, whose exit code it prints as a line.
    """
    (launcher.folder / "script").write_text(
        f"mount -t tmpfs -o {options} none disk || exit 99\n"
        f"run() {{ '{sys.executable}' -m mpiens {spec} -o disk/x.h5 > table\n"
        "echo code $?; }\n"
        f"{script}\n"
    )
    launch = launcher.run(["unshare", "--map-root-user", "--mount", "sh", "script"])
    assert launch.code == 0, launch.errors
    return launch


def assert_one_sentence(errors: str, *words: str) -> None:
    """One line, no traceback, and all that it should name."""
    assert len(errors.splitlines()) == 1, errors
    for word in words:
        assert word in errors


# two jobs, one file


def test_a_second_job_on_a_file_is_told_who_has_it(
    here: Path, launcher: Launcher, undisturbed: Path
) -> None:
    first = start_waiting(launcher, "x.h5")
    begun = (here / "x.h5.partial").read_bytes()
    second = launcher.mpiens("sweep.toml", "-o", "x.h5")
    assert second.code == 2
    assert second.output == ""
    holder = f"another mpiens ({os.uname().nodename}, process {first.process.pid}, "
    assert_one_sentence(second.errors, "x.h5: is being written by", holder, "-o")
    third = launcher.mpiens("sweep.toml", "-o", "x.h5", "--fresh", "-n", "2")
    assert third.code == 2
    assert_one_sentence(third.errors, holder)
    assert (here / "x.h5.partial").read_bytes() == begun
    (here / "go").touch()
    assert first.wait(LIMIT).code == 0, first.errors
    assert digest(here / "x.h5") == digest(undisturbed)
    assert not [*here.glob("x.h5.*")]


def test_the_lock_of_a_killed_job_hinders_nobody(
    here: Path, launcher: Launcher, undisturbed: Path
) -> None:
    first = start_waiting(launcher, "x.h5")
    os.kill(first.process.pid, signal.SIGKILL)
    first.wait(LIMIT)
    assert (here / "x.h5.lock").exists()
    (here / "wait").unlink()
    launch = launcher.mpiens("sweep.toml", "-o", "x.h5")
    assert launch.code == 0, launch.errors
    assert digest(here / "x.h5") == digest(undisturbed)
    assert not [*here.glob("x.h5.*")]


# places that cannot be written to


def test_a_read_only_place_is_told_in_a_sentence(
    here: Path, launcher: Launcher
) -> None:
    launch = on_disk(launcher, "ro", "run")
    assert launch.output == "code 2\n"
    assert_one_sentence(launch.errors, "disk/x.h5", "Read-only file system", "-o")


@pytest.mark.parametrize(
    ("words", "culprit", "told"),
    [
        ("-o nowhere/x.h5", "nowhere/x.h5", "No such file or directory"),
        ("-o model.py/x.h5", "model.py/x.h5", "Not a directory"),
        ("-o disk", "disk", "Is a directory"),
        ("-o disk --fresh", "disk", "Is a directory"),
        ("-o taken.h5 --fresh", "taken.h5.partial", "Is a directory"),
    ],
)
def test_an_impossible_place_is_told_before_any_task(
    here: Path, launcher: Launcher, words: str, culprit: str, told: str
) -> None:
    (here / "taken.h5.partial").mkdir()
    launch = launcher.mpiens("sweep.toml", *words.split())
    assert launch.code == 2
    assert launch.output == ""
    assert_one_sentence(launch.errors, culprit, told)
    left = {path.name for path in here.iterdir()} - {"__pycache__"}
    assert left == {
        *("model.py", "sweep.toml", "dropped.toml", "disk", "taken.h5.partial")
    }


# a full disk


@pytest.mark.parametrize("free", [0, 4, 8, 64])  # kibibytes; about 200 are needed
def test_a_full_disk_is_told_before_it_is_written_to(
    here: Path, launcher: Launcher, undisturbed: Path, free: int
) -> None:
    launch = on_disk(
        launcher,
        "size=1m",
        f"dd if=/dev/zero of=disk/ballast bs=1k count={1024 - free} 2> dd\n"
        "run; ls disk; rm disk/ballast\n"
        "run 2> second; cp disk/x.h5 .",
    )
    assert launch.output == "code 75\nballast\ncode 0\n"
    assert_one_sentence(launch.errors, "No space left on device", "same command")
    assert digest(here / "x.h5") == digest(undisturbed)


@pytest.mark.parametrize("spec", ["sweep.toml", "dropped.toml"])
def test_a_disk_that_is_filled_meanwhile_costs_nothing_that_was_finished(
    here: Path, launcher: Launcher, undisturbed: Path, spec: str
) -> None:
    (here / "fill").touch()
    launch = on_disk(
        launcher,
        "size=1m",
        "run; ls disk; cp disk/x.h5.partial .; rm disk/ballast fill\n"
        "run 2> second; cp disk/x.h5 .; ls disk",
        spec,
    )
    # what is needed to complete the file may have been reserved in the beginning
    first, told = re.match(r"code (0|75)\nballast\n(.*)\n", launch.output).groups()
    assert first == "0" or told == "x.h5.partial"
    assert launch.output.endswith("code 0\nx.h5\n"), (here / "second").read_text()
    if first == "75":
        assert_one_sentence(launch.errors, "No space left on device", "same command")
        with h5py.File(here / "x.h5.partial") as file:
            assert (file["tasks/status"][:] == 1).all()
    assert digest(here / "x.h5") == digest(undisturbed)


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_quota_is_told_like_a_full_disk(number: int) -> None:
    # the kernel that tests run on may have no quotas: this is what it would say
    trouble = Trouble.of(OSError(number, os.strerror(number), "x.h5.partial"))
    assert trouble.code == 75
    assert str(trouble).startswith(f"x.h5.partial: {os.strerror(number)}; ")
    assert "run the same command again" in str(trouble)


# files that are not ours


def cut(file: Path, whole: Path) -> None:
    file.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def cut_within_the_head(file: Path, whole: Path) -> None:
    file.write_bytes(whole.read_bytes()[:100])


def empty(file: Path, whole: Path) -> None:
    file.touch()


def write_text(file: Path, whole: Path) -> None:
    file.write_text("my notes on waves\n")


def write_foreign(file: Path, whole: Path) -> None:
    with h5py.File(file, "w") as foreign:
        foreign["wave"] = 1.0


WAYS = [cut, cut_within_the_head, empty, write_text, write_foreign]


def test_a_partial_file_that_is_none_of_ours_is_refused_and_left_alone(
    here: Path, launcher: Launcher, undisturbed: Path
) -> None:
    for way in WAYS:
        partial = here / f"{way.__name__}.h5.partial"
        way(partial, undisturbed)
        before = partial.read_bytes()
        launch = launcher.mpiens("sweep.toml", "-o", f"{way.__name__}.h5")
        assert launch.code == 2
        assert_one_sentence(launch.errors, partial.name)
        assert re.search("is no (HDF5|result) file", launch.errors)
        assert partial.read_bytes() == before
    launch = launcher.mpiens("sweep.toml", "-o", "cut.h5", "--fresh")
    assert launch.code == 0, launch.errors
    assert digest(here / "cut.h5") == digest(undisturbed)


# a place that goes away


@pytest.mark.parametrize("waiting", [0, 10])
def test_a_folder_that_is_removed_meanwhile_ends_the_run_with_a_sentence(
    here: Path, launcher: Launcher, waiting: int
) -> None:
    write(here, "model.py", MODEL.replace("replicate == 10", f"replicate == {waiting}"))
    launch = start_waiting(launcher, "disk/x.h5", laid=waiting > 0)
    shutil.rmtree(here / "disk")
    (here / "go").touch()
    launch.wait(LIMIT)
    assert launch.code in (2, 75)
    assert launch.output == ""
    assert_one_sentence(launch.errors, "disk/x.h5.partial", "o such file")
    assert launch.orphans() == []
