"""The benchmarks run, and what they hold peers against is right."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from conftest import Launcher

CALIBRATION = Path(__file__).parents[1] / "benchmarks" / "calibration"


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module of the benchmark's arithmetic, as its own scripts import it."""
    monkeypatch.syspath_prepend(str(CALIBRATION))
    for name in ("model", "report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import report

    yield report
    for name in ("model", "report"):
        sys.modules.pop(name, None)


def test_a_free_worker_takes_the_next_in_order(report: ModuleType) -> None:
    assert report.makespan([3, 1, 1, 1, 2], workers=2) == 5
    assert report.makespan([3, 1, 1, 1], workers=2) == 3
    assert report.makespan([1, 1], workers=4) == 1


def test_no_schedule_beats_the_bound(report: ModuleType) -> None:
    work = report.Work(trials=40, replicates=5, workers=16, scale=0.01)
    assert work.total == pytest.approx(40 * 5 * 0.33, rel=0.2)
    assert work.bound < work.ideal < work.bound + 2
    assert work.ideal <= work.ideal_batched(16) <= work.ideal_batched(4)
    assert work.ideal_batched(40) == work.ideal


def test_idle_time_is_found_where_it_is(report: ModuleType) -> None:
    ran = [(1, 0.5, 1.0), (1, 1.5, 4.0), (2, 0.0, 3.0)]
    idle = report.find_idle(ran, 0.0, 4.0, workers=3)
    assert (idle.before, idle.between, idle.after) == (0.5 + 4.0, 0.5, 1.0)


def test_a_table_has_medians_and_ratios_within_rounds(report: ModuleType) -> None:
    idle = report.Idle(before=0.0, between=0.0, after=0.0)
    work = report.Work(trials=10, replicates=2, workers=2, scale=0.01)
    runs = [
        report.Run(
            peer=peer,
            round=number,
            seconds=factor * (1 + number) * work.bound,
            outside=1.0,
            cpu=1.0,
            others=0.0,
            trials=10,
            simulations=20 * factor,
            scores=10 * factor,
            best=0.0,
            busy=factor * work.total,
            idle=idle,
        )
        for peer, factor in (("ours", 1), ("twice", 2))
        for number in range(3)
    ]
    assert report.compare(runs, "twice", "ours") == [2, 2, 2]
    ours, twice = report.write_table(runs, work, "ours").splitlines()[2:]
    cells = [line.strip("| ").split(" | ") for line in (ours, twice)]
    assert [row[:2] for row in cells] == [["ours", "3"], ["twice", "6"]]
    assert [row[4:6] for row in cells] == [["50.0%", "50.0%"], ["50.0%", "25.0%"]]
    assert [row[-1] for row in cells] == ["1.00 (1.00-1.00)", "2.00 (2.00-2.00)"]
    found = report.to_document(runs, work, "ours")
    assert found["twice"]["of_bound"] == pytest.approx([1 / 2, 1 / 4, 1 / 6])


def test_mpiens_runs_in_the_benchmark_of_calibration(launcher: Launcher) -> None:
    words = "--trials 6 --replicates 2 --workers 2 --rounds 1 --batch 3 --scale 0.0005"
    command = [sys.executable, str(CALIBRATION / "run.py"), *words.split()]
    ran = launcher.run([*command, "--json", "figures.json"], limit=120)
    assert ran.code == 0, ran.errors
    rows = [line.split(" | ") for line in ran.output.splitlines() if line[:1] == "|"]
    assert [row[0] for row in rows[2:]] == ["| mpiens parallel", "| mpiens batched"]
    assert [row[1] for row in rows[2:]] == ["3", "3"]  # 2 simulations, 1 scoring
    document = json.loads((launcher.folder / "figures.json").read_text())
    for figures in document["peers"].values():
        assert 0 < figures["of_bound"][0] <= 1
        shares = sum(figures[f"idle_{n}"][0] for n in ("before", "between", "after"))
        assert 0 <= shares < 1
    # both met the same losses: the first trials are drawn at random, from one seed
    bests = {figures["best"][0] for figures in document["peers"].values()}
    assert len(bests) == 1


PEERS = CALIBRATION.parent / "peers"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The benchmark's modules, as its own scripts import them."""
    monkeypatch.syspath_prepend(str(PEERS))
    names = ("queueing", "report", "tasks", "model")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield sys.modules[__name__]
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("ranks", [1, 5, 60])
@pytest.mark.parametrize("run", [0.002, 0.05])
def test_a_managers_ranks_are_as_busy_as_when_played_through(
    peers: ModuleType, ranks: int, run: float
) -> None:
    import queueing

    told = queueing.utilisation(ranks, run, 0.001)
    played = queueing.simulate(ranks, run, 0.001, ranges=40_000, seed=1)
    assert told == pytest.approx(played, abs=0.02)
    assert queueing.capacity(1.0, 1e-4) == pytest.approx(1e4 / 0.95, abs=1)
    assert queueing.range_seconds(1e-3) == pytest.approx(3e-3)
    assert queueing.range_seconds(2.0) == 2.0


def test_tables_hold_ratios_within_a_round(peers: ModuleType) -> None:
    import report

    runs = [
        report.Run("w", peer, number, {"seconds": seconds * (number + 1)})
        for number in range(3)
        for peer, seconds in (("ours", 2.0), ("a", 3.0), ("b", 5.0))
    ]
    columns = [
        report.Column("s", lambda f: f["seconds"], "{:.1f}"),
        report.Column("ratio", lambda f: f["seconds"], "{:.2f}", against="ours"),
        report.Column("no such", lambda f: f.get("other")),
    ]
    lines = report.write_table(runs, columns).splitlines()
    assert lines[0] == "| | s | ratio | no such | runs |"
    assert lines[2:] == [
        "| ours | 4.0 (2.0-6.0) | 1.00 | - | 3 |",
        "| a | 6.0 (3.0-9.0) | 1.50 | - | 3 |",
        "| b | 10.0 (5.0-15.0) | 2.50 | - | 3 |",
    ]
    assert report.ratios_to_best(runs, "seconds", "ours", besides=[]) == [1.5] * 3


def test_tables_are_renewed_between_their_marks(peers: ModuleType) -> None:
    import report

    old = f"what they say\n{report.BEGIN}\nold\n{report.END}\nand more\n"
    new = report.replace_tables(old, "new")
    assert "old" not in new
    assert new.startswith("what they say\n")
    assert new.endswith("\nand more\n")
    assert report.replace_tables(new, "new") == new
    assert report.replace_tables("", "new") == "new\n"


def test_the_peers_that_are_here_are_measured_and_checked(
    launcher: Launcher, tmp_path: Path
) -> None:
    words = ["--scale", "small", "--rounds", "1", "--json", str(tmp_path / "f.json")]
    works = ["draws", "naps", "shared", "arrays", "services", "seed"]
    command = [sys.executable, str(PEERS / "run.py"), *words, "--only", *works]
    done = launcher.run(command, limit=240)
    assert done.code == 0, done.errors
    found = json.loads((tmp_path / "f.json").read_text())
    assert [*found] == works
    peers = {run["peer"] for run in found["draws"]}
    assert {"**mpiens**", "multiprocessing.Pool, chunk 100"} <= peers
    assert {"mpi4py.futures, chunk 1", "static, chunk static"} <= peers
    for work in ("draws", "naps"):
        assert all(run["figures"]["seconds"] > 0 for run in found[work])
    assert all(run["figures"]["per_minute"] > 0 for run in found["seed"])
    naps = [run["figures"]["seconds"] for run in found["naps"][:2]]
    assert all(seconds >= 1.0 for seconds in naps)  # the longest one's
    [mapped] = [run for run in found["shared"] if "mapped" in run["peer"]]
    assert mapped["figures"]["copies"] < 2
    assert "| 10 s |" in done.output
