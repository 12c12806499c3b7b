"""What a newcomer types first: a spec to start from, completion, and the version."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import pytest
from conftest import Launcher

import mpiens


def test_what_is_written_to_start_from_runs_as_it_is(launcher: Launcher) -> None:
    begun = launcher.mpiens("init", "flu.toml")
    assert (begun.code, begun.output) == (0, "flu.toml\nmodel.py\n")
    assert "now try: mpiens -n 2 flu.toml" in begun.errors
    assert launcher.mpiens("check", "flu.toml").code == 0
    ran = launcher.mpiens("-n", "2", "flu.toml")
    assert ran.code == 0, ran.errors
    shown = json.loads(launcher.mpiens("show", "flu.h5", "--json").output)
    verdict = shown["scenarios"][1]["summaries"]["infected"]["peak"]["verdict"]
    assert verdict["averted_interval"][0] > 0, "masks help"
    again = launcher.mpiens("init", "flu.toml")
    assert again.code == 2
    assert "flu.toml is there already" in again.errors
    assert "model.py is there already" in again.errors


def test_the_version_tells_what_a_report_of_a_bug_wants(launcher: Launcher) -> None:
    told = launcher.mpiens("--version")
    assert told.code == 0
    assert told.output.startswith(f"mpiens {mpiens.__version__}\nPython 3.")
    for name in (
        "numpy",
        "h5py",
        "mpi4py",
        "MPICH",
        f"HDF5 {h5py.version.hdf5_version}",
    ):
        assert name in told.output


def complete(launcher: Launcher, line: str) -> list[str]:
    """What a shell is told that a line may go on with."""
    asked = launcher.run(
        [sys.executable, "-m", "mpiens"],
        _ARGCOMPLETE="1",
        _ARGCOMPLETE_IFS="\n",
        _ARGCOMPLETE_SUPPRESS_SPACE="1",
        _ARGCOMPLETE_STDOUT_FILENAME="told",
        COMP_LINE=line,
        COMP_POINT=str(len(line)),
    )
    assert asked.code == 0, asked.errors
    return (launcher.folder / "told").read_text().split("\n")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("mpiens ", ["show", "plot", "sweep.toml"]),
        ("mpiens sh", ["show"]),
        ("mpiens sw", ["sweep.toml"]),
        ("mpiens sweep.toml --fr", ["--fresh"]),
        ("mpiens plot --ki", ["--kind"]),
        ("mpiens plot --kind fa", ["fans"]),
        ("mpiens plot swe", ["sweep.h5", "sweep.toml"]),
        ("mpiens show sweep.h5 --di", ["--digest"]),
    ],
)
def test_words_are_completed(
    launcher: Launcher, tmp_path: Path, line: str, expected: list[str]
) -> None:
    for name in ("sweep.toml", "sweep.h5", "notes.md"):
        (tmp_path / name).touch()
    found = [word.strip() for word in complete(launcher, line)]
    for word in expected:
        assert word in found
    assert "notes.md" not in found


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_ask(launcher: Launcher, shell: str) -> None:
    told = launcher.mpiens("completion", shell)
    assert told.code == 0
    assert "mpiens" in told.output
    assert "_ARGCOMPLETE" in told.output or "argcomplete" in told.output
