"""Windows: a range is cut, every piece is sampled, and one curve is joined of them."""

from __future__ import annotations

import itertools
import json
import math
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray
from conftest import Launch, Launcher, write
from hypothesis import given, settings
from hypothesis import strategies as st

from mpiens import compilation
from mpiens.reader import decode
from mpiens.spec import Spec
from mpiens.windows import Window, Windows, cut, equalise

RELAXED = settings(deadline=None)  # on a busy machine
COMPLETE, WRONG_INPUT, SOME_FAILED = 0, 2, 3
POINTS = 41  # of the grid of energies

# Every window knows a curve up to an offset; energies and lengths are its own.
MODEL = """
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
GRID = np.linspace(0, 10, 41)


def truth(x):
    return 3 * np.sin(x / 2) + 0.1 * x**2


def prepare(rng, scenario, *, low, high):
    with open(HERE / "prepared", "a") as log:
        log.write(scenario + "\\n")
    return {"state": rng.uniform(low, high)}


def simulate(rng, prepared, scenario, replicate, *, low, high, noise=0.1):
    assert low <= prepared["state"] <= high
    with open(HERE / "calls", "a") as log:
        log.write(f"{scenario} {replicate}\\n")
    refused = HERE / "refused"
    if refused.exists() and scenario in refused.read_text().splitlines():
        raise ValueError("no state was found in this window")
    energies = GRID[(GRID >= low) & (GRID <= high)]
    if (HERE / "apart").exists():
        energies = energies + low / 1000
    log_g = truth(energies) + noise * rng.normal(size=len(energies)) + rng.normal(0, 9)
    if (HERE / "slow").exists():
        time.sleep(0.01 if low < 4 else 0.002)
    return {"log_g": log_g, "energies": energies}
"""
SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 30
seed = 7
pairing = "independent"
[windows]
parameter = "energy"
low = 0
high = 10
bins = 4
overlap = 0.5
[prepare]
call = "model.py:prepare"
[outputs.log_g]
dims = ["*"]
length = 41
units = "nat"
[outputs.energies]
dims = ["*"]
length = 41
units = "J"
[join.log_g]
x = "energies"
anchor = [0.0, 0.0]
bootstrap = 200
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "curve.toml", SPEC)
    return tmp_path


def edit(folder: Path, *edits: tuple[str, str]) -> None:
    text = (folder / "curve.toml").read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    write(folder, "curve.toml", text)


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def ended(launch: Launch, code: int = COMPLETE) -> None:
    assert launch.code == code, launch.errors


def truth(x: Any) -> Any:
    return 3 * np.sin(x / 2) + 0.1 * x**2


def make(text: str) -> Spec:
    return decode(text, "lab/curve.toml").require()


def refuse(*edits: tuple[str, str]) -> list[str]:
    text = SPEC
    for old, new in edits:
        assert old in text
        text = text.replace(old, new, 1)
    return [str(fault) for fault in decode(text, "lab/curve.toml").faults]


# how a range is cut

edges_of = st.lists(
    st.floats(-1e6, 1e6, allow_subnormal=False), min_size=2, max_size=9, unique=True
).map(sorted)
shares = st.floats(0, 1)


def test_a_window_reaches_a_share_of_its_neighbour_into_it() -> None:
    assert cut((0.0, 1.0, 3.0, 7.0), 0.25) == (
        Window(0, 1, 0, 1.5),
        Window(1, 3, 0.75, 4),
        Window(3, 7, 2.5, 7),
    )


@RELAXED
@given(edges_of, shares)
def test_bins_cover_the_range_and_windows_reach_as_far_as_is_asked(
    edges: list[float], overlap: float
) -> None:
    windows = cut(edges, overlap)
    assert [w.first for w in windows] == edges[:-1]
    assert [w.last for w in windows] == edges[1:]
    assert (windows[0].low, windows[-1].high) == (edges[0], edges[-1])
    widths = np.diff(edges)
    span = edges[-1] - edges[0]
    for index, window in enumerate(windows):
        assert window.low <= window.first < window.last <= window.high
        if index:
            reach = window.first - window.low
            wanted = overlap * widths[index - 1]
            assert math.isclose(reach, wanted, abs_tol=1e-9 * span + 1e-9)
            assert window.low >= windows[index - 1].first
        if index + 1 < len(windows):
            assert window.high <= windows[index + 1].last


@RELAXED
@given(edges_of)
def test_windows_that_overlap_wholly_end_where_their_neighbours_do(
    edges: list[float],
) -> None:
    windows = cut(edges, 1)
    for before, after in itertools.pairwise(windows):
        assert after.low == before.first
        assert before.high == after.last


@RELAXED
@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3), shares)
def test_a_single_window_stays_whole(low: float, width: float, overlap: float) -> None:
    [window] = cut((low, low + width), overlap)
    assert window == Window(low, low + width, low, low + width)


@RELAXED
@given(st.integers(1, 40), st.floats(-1e3, 1e3), st.floats(1e-2, 1e3))
def test_uniform_bins_are_equally_wide_and_end_where_the_range_does(
    bins: int, low: float, width: float
) -> None:
    edges = Windows("energy", low, low + width, bins).bin_edges
    assert (edges[0], edges[-1], len(edges)) == (low, low + width, bins + 1)
    np.testing.assert_allclose(np.diff(edges), width / bins, rtol=1e-6)


def test_bins_of_equal_cost_are_narrow_where_time_is_spent() -> None:
    edges = equalise([0.0, 4.0], [4.0, 8.0], [9.0, 3.0], (0.0, 8.0), 3)
    assert edges == pytest.approx((0, 16 / 9, 32 / 9, 8))


@RELAXED
@given(
    edges_of.filter(lambda edges: np.diff(edges).min() > 1e-3),
    st.lists(st.floats(0.1, 100), min_size=8, max_size=8),
    st.integers(1, 9),
    shares,
)
def test_bins_of_equal_cost_cost_the_same(
    edges: list[float], seconds: list[float], bins: int, overlap: float
) -> None:
    windows = cut(edges, overlap)
    lows, highs = [w.low for w in windows], [w.high for w in windows]
    seconds = seconds[: len(windows)]
    ends = (edges[0], edges[-1])
    found = equalise(lows, highs, seconds, ends, bins)
    assert (found[0], found[-1]) == ends
    assert len(found) == bins + 1

    def cost(left: float, right: float) -> float:
        marks = sorted({left, right, *(m for m in lows + highs if left < m < right)})
        total = 0.0
        for a, b in itertools.pairwise(marks):
            middle = (a + b) / 2
            rates = [
                s / (high - low)
                for low, high, s in zip(lows, highs, seconds, strict=True)
                if low <= middle <= high
            ]
            total += np.mean(rates) * (b - a)
        return total

    own = [cost(a, b) for a, b in itertools.pairwise(found)]
    whole = cost(*ends)
    np.testing.assert_allclose(own, whole / bins, rtol=1e-5, atol=1e-6 * whole)


# what a spec says


def test_windows_are_scenarios_and_the_model_is_told_of_them() -> None:
    spec = make(SPEC)
    assert [s.name for s in spec.scenarios] == [f"window={k}" for k in range(4)]
    assert [dict(s.parameters) for s in spec.scenarios] == [
        {"low": 0.0, "high": 3.75},
        {"low": 1.25, "high": 6.25},
        {"low": 3.75, "high": 8.75},
        {"low": 6.25, "high": 10.0},
    ]
    assert all(type(v) is float for s in spec.scenarios for v in s.parameters.values())
    assert [(c.name, c.scenarios) for c in spec.curves] == [("default", (0, 1, 2, 3))]


def test_windows_are_crossed_with_scenarios_and_axes() -> None:
    more = "[scenarios.cold]\nnoise = 0.1\n[scenarios.hot]\nnoise = 0.2\n"
    more += "[sweep]\nfield = [0.5, 1.5]\n[bands]\nbaseline = 'cold'\n"
    spec = make(SPEC.replace("bins = 4", "bins = 2") + more)
    assert [s.name for s in spec.scenarios[:3]] == [
        *("cold,field=0.5,window=0", "cold,field=0.5,window=1"),
        "cold,field=1.5,window=0",
    ]
    assert spec.baselines == (0, 1, 2, 3, 0, 1, 2, 3)
    assert [(c.name, c.scenarios) for c in spec.curves] == [
        ("cold,field=0.5", (0, 1)),
        ("cold,field=1.5", (2, 3)),
        ("hot,field=0.5", (4, 5)),
        ("hot,field=1.5", (6, 7)),
    ]


def test_the_spec_that_a_file_keeps_is_the_same() -> None:
    text = SPEC + 'taper = ["kaiser", 6.0]\ncredences = { "window=3" = 0.5 }\n'
    spec = make(text)
    kept = decode(spec.to_json(), "lab/spec.json", is_json=True).require()
    assert (kept.windows, kept.join) == (spec.windows, spec.join)


RANGE = "low = 0\nhigh = 10\nbins = 4"


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            '"independent"',
            '"common"',
            '[ensemble] pairing: "common" lets all pieces me',
        ),
        ("bins = 4\n", "", "[windows] bins: is missing; give low, high and bins, or"),
        ("high = 10", "high = 0", "[windows] low: 0 is not below high = 0; a range"),
        ("high = 10", "high = inf", "[windows] high: inf is no end of a range; give"),
        ("bins = 4", "bins = 0", "[windows] bins: 0 should be greater than or equal"),
        ("= 0.5", "= 1.5", "[windows] overlap: 1.5 should be less than or equal to 1"),
        ("bins = 4", "bin = 4", "[windows] bin: is not a key here; did you mean bins"),
        (RANGE, "edges = [0, 1, 1]", "[windows] edges: [0.0, 1.0, 1.0] should rise"),
        (RANGE, "edges = [1]", "[windows] edges: [1.0] should rise, be finite, and"),
        ("bins = 4", "edges = [0, 1]", "[windows] edges: cannot go with low and high"),
        ("bins = 4", "bins = 4\ncost = 'equal'", "[windows] pilot: is missing, and"),
        ("bins = 4", "bins = 4\npilot = 'a.h5'", "[windows] pilot: tells what a range"),
        ("[prepare]", "[parameters]\nlow = 1\n[prepare]", "[parameters] low: is what"),
        ("[prepare]", "[sweep]\nhigh = [1]\n[prepare]", "[sweep] high: is what [wind"),
        ("[prepare]", "[sweep]\nwindow = [1]\n[prepare]", "[sweep] window: is what na"),
        ('x = "energies"\n', "", "[join.log_g] x: is missing; name the output that"),
        ('x = "energies"', 'x = "log_g"', "[join.log_g] x: 'log_g' cannot tell where"),
        ("[0.0, 0.0]", "[0.0]", "[join.log_g] anchor: [0.0] should be an offset, or"),
        ("[0.0, 0.0]", "true", "[join.log_g] anchor: True should be an offset, or a"),
        ("[0.0, 0.0]", "0\ntaper = 3", "[join.log_g] taper: 3 should be a name, or"),
        ("[0.0, 0.0]", "0\ntaper = 'no'", "[join.log_g] taper: no taper is 'no': see"),
        ("[0.0, 0.0]", "0\nweights = 'a'", "[join.log_g] weights: 'a' should be 'var"),
        ("[0.0, 0.0]", "0\ntolerance = -1", "[join.log_g] tolerance: -1 should be g"),
        ("[0.0, 0.0]", "0\nintegrate = true", "[join.log_g] integrate: is of slopes"),
        ("[0.0, 0.0]", "1\naligned = true", "[join.log_g] anchor: 1.0 has no use wh"),
        ("= 200", "= 1", "[join.log_g] bootstrap: 1 resample has no scatter; give 0"),
        ("= 200", "= 2\nanchors = 1", "[join.log_g] anchors: is not a key here; did"),
        (
            '"nat"',
            '"nat"\n[outputs.spins]\ndims = ["side", "log_g_points"]',
            "[outputs.spins] dims: 'side' is what [join] itself has in the file; choos",
        ),
        (
            '"nat"',
            '"nat"\n[outputs.spins]\ndims = ["log_g_point"]',
            "[outputs.spins] dims: 'log_g_point' is what [join.log_g] itself has in th",
        ),
        (
            "= 200",
            '= 2\ncredences = { "window=4" = 0.5 }',
            "[join.log_g] credences.window=4: is no piece; did you mean window=",
        ),
        (
            "= 200",
            '= 2\ncredences = { "window=3" = 1.5 }',
            "[join.log_g] credences.window=3: 1.5 is no credence; it is from 0 to 1",
        ),
        (
            "= 200",
            "= 2\nderivative = true\naligned = true\nintegrate = true",
            "[join.log_g] aligned: cannot go with derivative, as slopes have no offset",
        ),
        (
            'dims = ["*"]\nlength = 41\nunits = "J"',
            'dims = ["a", "b"]',
            "[join.log_g] x: 'energies' should have one dimension, to be joined along",
        ),
    ],
)
def test_faults_are_told_in_a_sentence(old: str, new: str, told: str) -> None:
    [fault] = refuse((old, new))
    assert fault.startswith(told)


def test_pieces_are_needed_to_be_joined() -> None:
    start, end = SPEC.index("[windows]"), SPEC.index("[prepare]")
    faults = decode(SPEC[:start] + SPEC[end:], "lab/curve.toml").faults
    text = "needs pieces; give [windows], or [scenarios.NAME] for each of them"
    assert [str(f) for f in faults] == [f"[join]: {text}"]


def test_a_model_that_takes_no_window_is_told(folder: Path, launcher: Launcher) -> None:
    write(folder, "model.py", "def simulate(rng):\n    return {}\n")
    edit(folder, ('[prepare]\ncall = "model.py:prepare"\n', ""))
    launch = launcher.mpiens("check", "curve.toml")
    ended(launch, WRONG_INPUT)
    text = "[windows] low: simulate() takes no such parameter; it takes none"
    assert f"curve.toml:9: {text}" in launch.errors


def test_check_tells_windows(folder: Path, launcher: Launcher) -> None:
    launch = launcher.mpiens("check", "curve.toml")
    ended(launch)
    lines = launch.output.splitlines()
    where = lines.index(
        "windows of energy: 4 from 0 to 10, overlap 0.5 of the neighbour"
    )
    assert lines[where + 2] == "  window=1: 1.25 to 6.25 (bin 2.5 to 5)"


# from spec to file


def read_joined(file: Path, name: str = "log_g") -> dict[str, Any]:
    with h5py.File(file) as opened:
        found: dict[str, Any] = {}
        opened[f"joined/{name}"].visititems(
            lambda key, item: (
                found.update({key: item[...]})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
        return found


def test_a_curve_is_joined_alike_on_any_number_of_ranks(
    folder: Path, launcher: Launcher
) -> None:
    ended(alone := launcher.mpiens("curve.toml", "-o", "1.h5"))
    for environment, ranks in (("mpich", 4), ("openmpi", 3), ("debian", 2)):
        file = f"{ranks}.h5"
        ended(launcher.ranks(environment, ranks, "curve.toml", "-o", file))
        assert launcher.digest(file) == launcher.digest("1.h5")
    prepared = (folder / "prepared").read_text().splitlines()
    assert sorted(prepared) == sorted(4 * [f"window={k}" for k in range(4)])

    own = read_joined(folder / "4.h5")
    np.testing.assert_array_equal(own["x"], np.linspace(0, 10, POINTS))
    apart = (own["y"] - truth(own["x"]))[1:] / own["error"][1:]
    assert own["error"][0] < 1e-12
    assert np.sqrt((apart**2).mean()) < 2  # the first point's own error is in all
    np.testing.assert_allclose(own["bootstrap_error"], own["error"], rtol=0.3)
    assert own["offset"].shape == own["offset_error"].shape == (4,)
    assert own["count"].max() == 3  # where the second window ends the fourth begins
    pairs = [tuple(pair) for pair in own["residuals/pair"].tolist()]
    assert pairs == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]
    assert own["residuals/points"].tolist() == [11, 1, 11, 1, 11]
    assert "joined log_g: 41 points, energy from 0 to 10, largest err" in alone.output
    assert "worst residual" in alone.output

    shown = json.loads(launcher.mpiens("show", "1.h5", "--json").output)
    [verdict] = shown["joined"]
    assert (verdict["points"], verdict["low"], verdict["high"]) == (41, 0, 10)


def test_the_file_is_netcdf(folder: Path, launcher: Launcher) -> None:
    edit(folder, ("[prepare]", "[scenarios.a]\n[scenarios.b]\nnoise = 0.5\n[prepare]"))
    ended(launcher.mpiens("curve.toml"))
    for engine in ("h5netcdf", "netcdf4"):
        tree = xarray.open_datatree(folder / "curve.h5", engine=engine)
        windows = tree["windows"]
        assert windows["low"].dims == ("window",)
        np.testing.assert_array_equal(windows["low"], [0, 1.25, 3.75, 6.25])
        np.testing.assert_array_equal(windows["high"], [3.75, 6.25, 8.75, 10])
        np.testing.assert_array_equal(windows["first"], [0, 2.5, 5, 7.5])
        np.testing.assert_array_equal(windows["last"], [2.5, 5, 7.5, 10])
        joined = tree["joined/log_g"]
        assert joined["y"].dims == ("curve", "log_g_point")
        assert joined["offset"].dims == ("curve", "window")
        pairs = tree["joined/log_g/residuals/pair"]
        assert pairs.dims == ("curve", "log_g_overlap", "side")
        assert joined["curve"].values.tolist() == ["a", "b"]
        assert joined["x"].attrs["units"] == "J"
        assert joined["x"].attrs["long_name"] == "energy"
        assert joined["error"].attrs["units"] == "nat"
        assert float(joined["error"].sel(curve="b").max()) > 0
        tree.close()


def test_merged_shards_are_joined_as_one_job(folder: Path, launcher: Launcher) -> None:
    ended(launcher.mpiens("curve.toml", "-o", "whole.h5"))
    for index in range(2):
        ended(launcher.mpiens("curve.toml", "--shard", f"{index}/2"))
    files = [f"curve.{index}-of-2.h5" for index in range(2)]
    ended(launch := launcher.mpiens("merge", *files, "-o", "curve.h5"))
    assert launcher.digest("curve.h5") == launcher.digest("whole.h5")
    assert "joined log_g: 41 points" in launch.output
    with h5py.File(folder / files[0]) as file:
        assert "joined" not in file  # it has not all the rows
        assert "windows" in file


def test_a_window_without_replicates_costs_the_curve_and_no_row(
    folder: Path, launcher: Launcher
) -> None:
    write(folder, "refused", "window=2\n")
    ended(launch := launcher.mpiens("curve.toml"), SOME_FAILED)
    text = "log_g: scenario 'window=2' has no replicate that is done, so that a piece"
    assert f"failed: join default, {text} is missing" in launch.output
    assert "1 joined curves failed" in launch.errors
    with h5py.File(folder / "curve.h5") as file:
        assert "joined" not in file
        assert (file["tasks/status"][:] == 1).sum() == 90
    ended(launcher.mpiens("curve.toml"), SOME_FAILED)  # nothing to do
    (folder / "refused").unlink()
    before = len(calls(folder))
    ended(launch := launcher.mpiens("curve.toml", "--retry-failed"))
    assert len(calls(folder)) == before + 30
    assert "failed: join" not in launch.output
    ended(launcher.mpiens("curve.toml", "-o", "other.h5"))
    assert launcher.digest("curve.h5") == launcher.digest("other.h5")


def test_a_window_may_be_left_out(folder: Path, launcher: Launcher) -> None:
    write(folder, "refused", "window=3\n")
    edit(folder, ("= 200", '= 0\ncredences = { "window=3" = 0 }'))
    ended(launcher.mpiens("curve.toml"), SOME_FAILED)  # by its tasks
    own = read_joined(folder / "curve.h5")
    assert own["x"][-1] == 8.75
    assert np.isnan(own["offset"]).tolist() == [False, False, False, True]
    assert np.isnan(own["bootstrap_error"]).all()


def test_pieces_that_share_no_point_are_told(folder: Path, launcher: Launcher) -> None:
    (folder / "apart").touch()
    ended(launch := launcher.mpiens("curve.toml"), SOME_FAILED)
    [line] = [t for t in launch.output.splitlines() if t.startswith("failed: join")]
    assert "share no point, so that nothing tells the offset between them" in line
    assert "give interpolate=True" in line
    edit(folder, ("= 200", "= 200\ninterpolate = true"))
    before = len(calls(folder))
    ended(launcher.mpiens("curve.toml"))
    assert len(calls(folder)) == before
    own = read_joined(folder / "curve.h5")
    assert np.abs(own["y"] - truth(own["x"])).max() < 0.2


def test_a_kill_in_the_midst_of_joining_is_undone(
    folder: Path, launcher: Launcher
) -> None:
    write(folder, "refused", "b,window=2\n")
    edit(folder, ("[prepare]", "[scenarios.a]\n[scenarios.b]\n[prepare]"))
    code = """
import os
from mpiens import root
from mpiens.__main__ import main
root.complete = lambda *these: os.kill(os.getpid(), 9)
main(["curve.toml"])
"""
    ended(launcher.run([sys.executable, "-c", code]), -9)
    with h5py.File(folder / "curve.h5.partial") as file:
        assert "joined" in file
    before = calls(folder)
    (folder / "refused").unlink()  # nothing is tried again without --retry-failed
    ended(launch := launcher.mpiens("curve.toml"), SOME_FAILED)
    assert calls(folder) == before
    assert launch.output.count("failed: join b") == 1
    write(folder, "refused", "b,window=2\n")
    ended(launcher.mpiens("curve.toml", "-o", "other.h5"), SOME_FAILED)
    assert launcher.digest("curve.h5") == launcher.digest("other.h5")


def test_a_curve_that_fails_leaves_the_others(folder: Path, launcher: Launcher) -> None:
    write(folder, "refused", "a,window=1\n")
    edit(folder, ("[prepare]", "[scenarios.a]\n[scenarios.b]\nnoise = 0.5\n[prepare]"))
    ended(launch := launcher.mpiens("curve.toml"), SOME_FAILED)
    own = read_joined(folder / "curve.h5")
    assert np.isnan(own["y"][0]).all()
    assert own["count"][0].max() == 0
    assert np.isfinite(own["y"][1]).all()
    assert "joined log_g of a: nothing, see the failures" in launch.output
    assert "joined log_g of b: 41 points" in launch.output


def test_a_changed_join_only_recomputes(folder: Path, launcher: Launcher) -> None:
    ended(launcher.mpiens("curve.toml"))
    before, digest = calls(folder), launcher.digest("curve.h5")
    edit(folder, ("= 200", '= 200\nweights = "variance"'))
    ended(launcher.mpiens("curve.toml"))
    assert calls(folder) == before
    changed = launcher.digest("curve.h5")
    assert changed != digest
    ended(launcher.mpiens("curve.toml", "-o", "anew.h5"))
    assert launcher.digest("anew.h5") == changed


def test_other_edges_are_other_windows(folder: Path, launcher: Launcher) -> None:
    edit(folder, ("low = 0\nhigh = 10\nbins = 4", "edges = [0, 2, 5, 10]"))
    ended(launcher.mpiens("curve.toml"))
    (folder / "calls").unlink()
    edit(folder, ("[0, 2, 5, 10]", "[0, 2, 5, 8, 10]"))
    ended(launcher.mpiens("curve.toml"))
    run = {call.split()[0] for call in calls(folder)}
    assert run == {"window=1", "window=2", "window=3"}  # window=0 is as it was
    ended(launcher.mpiens("curve.toml", "-o", "anew.h5"))
    assert launcher.digest("anew.h5") == launcher.digest("curve.h5")


def test_a_pilot_tells_where_time_is_spent(folder: Path, launcher: Launcher) -> None:
    (folder / "slow").touch()
    edit(folder, ("replicates = 30", "replicates = 3"))
    ended(launcher.mpiens("curve.toml", "-o", "pilot.h5"))
    edit(folder, ("bins = 4", 'bins = 4\ncost = "equal"\npilot = "pilot.h5"'))
    ended(launch := launcher.mpiens("check", "curve.toml"))
    assert "of equal cost by pilot.h5, overlap" in launch.output
    ended(launcher.mpiens("curve.toml"))
    with h5py.File(folder / "curve.h5") as file:
        widths = file["windows/last"][:] - file["windows/first"][:]
        assert widths[0] < 2.5 < widths[3]
        assert json.loads(file.attrs["spec"])["windows"]["edges"][-1] == 10
    before = calls(folder)
    ended(launcher.mpiens("curve.toml"))
    assert calls(folder) == before
    (folder / "pilot.h5").unlink()  # the file itself needs it no more
    ended(launcher.mpiens("show", "curve.h5"))


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("pilot.h5", "no.h5", "'no.h5': there is no such file"),
        ("pilot.h5", "curve.h5", "'curve.h5' is the result file itself; name another"),
        ("high = 10", "high = 12", "'pilot.h5' has no window from 10 to 12; let it"),
        ('= "energy"', '= "mass"', "'pilot.h5' has windows of energy, not of mass"),
    ],
)
def test_a_pilot_that_tells_nothing_is_refused(
    folder: Path, launcher: Launcher, old: str, new: str, told: str
) -> None:
    edit(folder, ("replicates = 30", "replicates = 1"))
    ended(launcher.mpiens("curve.toml", "-o", "pilot.h5"))
    edit(folder, ("bins = 4", 'bins = 4\ncost = "equal"\npilot = "pilot.h5"'))
    edit(folder, (old, new))
    ended(launch := launcher.mpiens("curve.toml"), WRONG_INPUT)
    assert f"[windows] pilot: {told}" in launch.errors


def test_replicates_may_have_points_of_their_own(
    folder: Path, launcher: Launcher
) -> None:
    more = "energies = energies[energies != GRID[8 + replicate % 2]]\n    log_g ="
    text = MODEL.replace("log_g =", more, 1)
    write(folder, "model.py", text)
    ended(launcher.mpiens("curve.toml"))
    own = read_joined(folder / "curve.h5")
    grid = np.linspace(0, 10, POINTS)
    np.testing.assert_array_equal(own["x"], np.delete(grid, [8, 9]))


def test_repeated_experiments_are_averaged(folder: Path, launcher: Launcher) -> None:
    write(
        folder,
        "model.py",
        """
        import numpy as np

        def simulate(*, level):
            return {"height": level + np.arange(3.0)}
        """,
    )
    write(
        folder,
        "curve.toml",
        """
        [ensemble]
        model = "model.py:simulate"
        replicates = 1
        seed = 1
        pairing = "independent"
        [scenarios.first]
        level = 1.0
        [scenarios.second]
        level = 5.0
        [join.height]
        aligned = true
        credences = { second = 0.5 }
        """,
    )
    ended(launch := launcher.mpiens("curve.toml"))
    own = read_joined(folder / "curve.h5", "height")
    np.testing.assert_allclose(own["y"], (1.0 + 0.5 * 5) / 1.5 + np.arange(3))
    with h5py.File(folder / "curve.h5") as file:
        assert file["piece"].asstr()[:].tolist() == ["first", "second"]
    assert "worst residual 4 (root mean square), first and second" in launch.output


def test_what_is_to_be_joined_has_to_be_returned(
    folder: Path, launcher: Launcher
) -> None:
    edit(folder, ('[outputs.energies]\ndims = ["*"]\nlength = 41\nunits = "J"\n', ""))
    edit(folder, ('x = "energies"', 'x = "energy"'))
    ended(launch := launcher.mpiens("curve.toml"), SOME_FAILED)
    text = "output 'energy' stands in [join.log_g], and the model returned log_g, ener"
    assert text in launch.output


# what is compiled

COMPILED = """
import os
import time
from pathlib import Path

import numpy as np
from numba import float64, int64, njit
from numba.experimental import jitclass


@njit(cache=True)
def inner(x):
    return np.sin(x) + 1


@njit(cache=True)
def walk(x, steps):
    for _ in range(steps):
        x = inner(x)
    return x


@jitclass([("steps", int64), ("state", float64)])
class Walker:
    def __init__(self, steps):
        self.steps = steps
        self.state = 0.0

    def run(self, start):
        self.state = start
        for _ in range(self.steps):
            self.state = np.cos(self.state)
        return self.state


njit(lambda x: x)(1.0)  # so that all are as quick as one that has compiled already
open(f"ready-{os.getpid()}", "w").close()


def prepare(ranks):
    end = time.monotonic() + 60  # else the first may have compiled before others are
    while len([*Path().glob("ready-*")]) <= ranks and time.monotonic() < end:
        time.sleep(0.01)
    return inner(1.0)


def simulate(rng, prepared, *, ranks, steps=100):
    end = walk(rng.random(), steps)
    other = Walker(steps).run(end) if BUILDS else 0.0
    missed = sum(walk.stats.cache_misses.values())
    time.sleep(0.05)  # so that every rank has some
    return {"end": end, "other": other, "missed": missed, "rank": os.getpid()}
"""
COMPILED_SPEC = """
[ensemble]
model = "model.py:simulate"
replicates = 40
seed = 3
[parameters]
ranks = 1
[prepare]
call = "model.py:prepare"
"""


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    pytest.importorskip("numba")
    write(tmp_path, "model.py", COMPILED + "\n\nBUILDS = False\n")
    write(tmp_path, "compiled.toml", COMPILED_SPEC)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def series(file: Path, *names: str) -> list[Any]:
    with h5py.File(file) as opened:
        return [opened[f"series/{name}"][0] for name in names]


def test_the_ranks_of_a_node_compile_once(compiled: Path, launcher: Launcher) -> None:
    write(compiled, "compiled.toml", COMPILED_SPEC.replace("ranks = 1", "ranks = 4"))
    words = ("compiled.toml", "-o")
    tmp = {"TMPDIR": str(compiled / "tmp")}
    ended(launcher.start_ranks("mpich", 4, *words, "1.h5", **tmp).wait(180))
    missed, ranks = series(compiled / "1.h5", "missed", "rank")
    assert len(set(ranks.tolist())) > 1
    compilers = set(ranks[missed > 0].tolist())
    assert len(compilers) == 1
    [folder] = (compiled / "tmp").glob("mpiens-numba-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [*folder.rglob("*.nbi")]
    ended(launcher.start_ranks("mpich", 2, *words, "2.h5", **tmp).wait(180))
    [missed] = series(compiled / "2.h5", "missed")
    assert not missed.any()
    assert launcher.digest("1.h5") != launcher.digest("2.h5")  # ranks are outputs here


def test_compiled_objects_are_made_anew_in_every_runner(
    compiled: Path, launcher: Launcher
) -> None:
    text = COMPILED.replace('"missed": missed, "rank": os.getpid()', "")
    write(compiled, "model.py", text + "\n\nBUILDS = True\n")
    for ranks in (1, 3):
        file = f"{ranks}.h5"
        ended(launcher.ranks("mpich", ranks, "compiled.toml", "-o", file, limit=240))
    assert launcher.digest("1.h5") == launcher.digest("3.h5")


def test_a_folder_of_another_user_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("numba")
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    environment: dict[str, str] = {}
    compilation.share_cache(environment)
    folder = Path(environment[compilation.VARIABLE])
    assert folder.parent == tmp_path
    folder.chmod(0o777)  # anybody may have put something there, which would be run
    again: dict[str, str] = {}
    compilation.share_cache(again)
    assert not again
    own = {compilation.VARIABLE: "mine"}
    compilation.share_cache(own)
    assert own == {compilation.VARIABLE: "mine"}
