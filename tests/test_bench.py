"""``mpiens bench``: it measures, tells what that means, and leaves nothing behind."""

from __future__ import annotations

import json
import math

import pytest
from conftest import Launcher

from mpiens.bench import LEAST, LENGTHS, predict


@pytest.mark.parametrize("environment", ["mpich", "debian"])
@pytest.mark.parametrize("ranks", [1, 3])
def test_all_is_measured_and_nothing_is_left(
    launcher: Launcher, environment: str, ranks: int
) -> None:
    results = launcher.folder / "results"
    results.mkdir()
    words = ["bench", "-o", "results", "--json", "figures.json"]
    words += ["--task-seconds", "0.5", "--row-bytes", "80000"]
    done = launcher.ranks(environment, ranks, *words, limit=120)
    assert done.code == 0, done.errors
    assert [*results.iterdir()] == []
    found = json.loads((launcher.folder / "figures.json").read_text())
    assert (found["ranks"], found["nodes"]) == (ranks, 1)
    assert found["parallel_hdf5"] == (environment == "debian")
    assert found["far"] is None
    assert (found["near"] is None) == (ranks == 1)
    rates = ("short_tasks", "write", "bands", "window", "startup", "service")
    assert all(0 < found[name] < math.inf for name in rates)
    assert 0 < found["utilisation"] <= 1
    if ranks > 1:
        assert 0 < found["near"][0] <= found["near"][1]
    assert [own["seconds"] for own in found["lengths"]] == [*LENGTHS, 0.5]
    assert "what it means for tasks with rows of 80,000 bytes" in done.output
    for line in ("the root's work for one range", "shared data into all windows"):
        assert line in done.output


def test_it_starts_ranks_itself_where_asked(launcher: Launcher) -> None:
    done = launcher.mpiens("bench", "-n", "2", "-o", ".", limit=120)
    assert done.code == 0, done.errors
    assert done.output.startswith("2 ranks on 1 node, ")
    assert [*launcher.folder.iterdir()] == []


def test_a_folder_that_cannot_be_used_is_told(launcher: Launcher) -> None:
    done = launcher.ranks("mpich", 2, "bench", "-o", "nowhere")
    assert done.code == 2
    [line] = done.errors.splitlines()
    assert line.startswith("--output: nowhere cannot be written to: No such file")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--row-bytes", "0"], "0 is too few"),
        (["--task-seconds", "-1"], "-1 is no length of time"),
        (["--task-seconds", "inf"], "inf is no length of time"),
    ],
)
def test_bad_options_are_told(launcher: Launcher, words: list[str], told: str) -> None:
    done = launcher.mpiens("bench", *words)
    assert done.code == 2
    assert told in done.errors


def test_the_root_or_the_file_is_the_bound() -> None:
    free = predict(1.0, 100, service=1e-4, row_bytes=8, write=1e9)
    assert (free.utilisation, free.bound, free.most_ranks) == (1.0, "", 10_000)
    busy = predict(1.0, 20_000, service=1e-4, row_bytes=8, write=1e9)
    assert (busy.utilisation, busy.bound) == (pytest.approx(0.5), "root")
    full = predict(1.0, 100, service=1e-4, row_bytes=1e8, write=1e9)
    assert (full.utilisation, full.bound) == (pytest.approx(0.1), "file")


def test_short_tasks_share_a_range() -> None:
    short = predict(1e-5, 10, service=1e-4, row_bytes=0, write=1e9)
    assert short.most_ranks == round(LEAST / 1e-4)
