"""Is one scenario better than another: what the file and the table say, end to end.

Against closed forms where noise is Gaussian, and against scipy where it is not; some
replicates fail.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import Launch, Launcher, write
from scipy import stats

REPLICATES = 120
EFFECT, COMMON, OWN = -2.0, 3.0, 1.0  # of masks; deviations of what is shared, or not

MODEL = f"""
import hashlib
import numpy as np

def simulate(rng, scenario, replicate, *, effect=0.0):
    if scenario == "masks" and replicate in (3, 50) or replicate == 70:
        raise ValueError("no more masks")
    luck = {COMMON} * rng.normal(size=4)
    digest = hashlib.sha256(f"{{scenario}}/{{replicate}}".encode()).digest()
    own = np.random.default_rng(int.from_bytes(digest[:8])).normal(size=4)
    return {{"ill": 20.0 + effect + luck + {OWN} * own}}
"""
SPEC = f"""
[ensemble]
model = "model.py:simulate"
replicates = {REPLICATES}
seed = 20260529
pairing = "PAIRING"

[scenarios.open]
[scenarios.masks]
effect = {EFFECT}

[outputs.ill]
dims = ["day"]
units = "agents"
summaries = ["final"]

[bands]
baseline = "open"
better = "lower"
"""


@dataclass
class Finished:
    """An ensemble that has been run."""

    folder: Path
    launch: Launch
    paired: bool

    def read(self, path: str) -> Any:
        with h5py.File(self.folder / "run.h5") as file:
            return file[path][:]

    @property
    def samples(self) -> tuple[np.ndarray, np.ndarray]:
        """The final values of masks and of open, those that are compared."""
        open_, masks = self.read("/summary/ill/final")
        if self.paired:
            both = ~np.isnan(open_) & ~np.isnan(masks)
            return masks[both], open_[both]
        return masks[~np.isnan(masks)], open_[~np.isnan(open_)]

    def verdict(self, name: str) -> Any:
        return self.read(f"/comparison/ill/final.{name}")[1]


@pytest.fixture(scope="module", params=["common", "independent"])
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    folder = tmp_path_factory.mktemp("comparison")
    write(folder, "model.py", MODEL)
    write(folder, "run.toml", SPEC.replace("PAIRING", request.param))
    launch = Launcher(folder).mpiens("run.toml")
    assert launch.code == 3, launch.errors  # some have failed
    return Finished(folder, launch, request.param == "common")


def test_the_mean_difference_has_students_interval_or_welchs(
    finished: Finished,
) -> None:
    masks, open_ = finished.samples
    test = (stats.ttest_rel if finished.paired else stats.ttest_ind)(
        masks, open_, **({} if finished.paired else {"equal_var": False})
    )
    expected = test.confidence_interval(0.95)
    np.testing.assert_allclose(finished.verdict("mean_interval"), expected, rtol=1e-9)
    np.testing.assert_allclose(finished.verdict("mean"), masks.mean() - open_.mean())
    assert expected.low < EFFECT < expected.high


def test_pairing_cancels_what_both_have_in_common(finished: Finished) -> None:
    width = np.diff(finished.verdict("mean_interval"))[0]
    spread = OWN if finished.paired else np.hypot(COMMON, OWN)
    count = len(finished.samples[0])
    # the deviation of the difference is known; that of its estimate from n pairs is
    # some 1 / sqrt(2 n) of it
    closed = 2 * stats.t.ppf(0.975, count - 1) * np.sqrt(2 / count) * spread
    assert width == pytest.approx(closed, rel=4 / np.sqrt(2 * count))
    saved = finished.verdict("reduction")
    if finished.paired:
        assert saved == pytest.approx((COMMON**2 + OWN**2) / OWN**2, rel=0.4)
    else:
        assert np.isnan(saved)


def test_the_probability_of_being_better_is_that_of_a_replicate(
    finished: Finished,
) -> None:
    masks, open_ = finished.samples
    spread = OWN if finished.paired else np.hypot(COMMON, OWN)
    closed = stats.norm.cdf(-EFFECT / (np.sqrt(2) * spread))
    better, interval = finished.verdict("better"), finished.verdict("better_interval")
    if finished.paired:
        assert better == (masks < open_).mean()
        exact = stats.binomtest(int((masks < open_).sum()), len(masks))
        found = exact.proportion_ci(method="exact")
        np.testing.assert_allclose(interval, found, rtol=1e-9)
    else:
        u = stats.mannwhitneyu(open_, masks).statistic
        assert better == pytest.approx(u / (len(masks) * len(open_)))
    assert interval[0] < closed < interval[1]


def test_the_averted_share_is_of_means_and_its_interval_has_the_true_one(
    finished: Finished,
) -> None:
    masks, open_ = finished.samples
    averted = finished.verdict("averted")
    assert averted == pytest.approx(1 - masks.mean() / open_.mean())
    low, high = finished.verdict("averted_interval")
    assert low < averted < high
    assert low < -EFFECT / 20 < high


def test_the_baseline_is_not_compared_with_itself(finished: Finished) -> None:
    for name in ("better", "averted_interval", "mean_interval"):
        assert np.isnan(finished.read(f"/comparison/ill/final.{name}")[0]).all()


def test_difference_curves_have_bands_of_pairs_that_are_done(
    finished: Finished,
) -> None:
    series, levels = finished.read("/series/ill"), finished.read("/level")
    both = ~np.isnan(series[:, :, 0]).any(axis=0)
    pairs = (series[1] - series[0])[both]
    assert len(pairs) == REPLICATES - 3
    np.testing.assert_array_equal(
        finished.read("/differences/ill")[1], np.quantile(pairs, levels, axis=0)
    )
    interval = finished.read("/differences/ill.mean_interval")[1]
    assert interval.shape == (2, 4)
    assert (interval[0] < interval[1]).all()


def test_the_file_says_how_sure_and_which_way_is_better(finished: Finished) -> None:
    with h5py.File(finished.folder / "run.h5") as file:
        band = file["/bands/ill.interval"]
        assert band.attrs["confidence"] == 0.95
        assert band.attrs["least_replicates"].tolist() == [59, 11, 6, 11, 59]
        assert band.attrs["units"] == "agents"
        assert file["/comparison/ill/final.better"].attrs["better"] == "lower"
        assert "units" not in file["/comparison/ill/final.averted"].attrs
        assert file["/prediction"][:].tolist() == [0.9, 0.5]


def test_the_table_answers_in_a_line(finished: Finished) -> None:
    lines = finished.launch.output.splitlines()
    start = next(i for i, line in enumerate(lines) if "against the baseline" in line)
    head, answer = lines[start + 2], lines[start + 4]
    assert lines[start].rstrip().endswith("against the baseline, 95% sure")
    assert "mean difference" in head
    assert "probability of being better" in head
    assert ("pairing saves" in head) == finished.paired
    assert answer.split()[:3] == ["masks", "vs", "open"]
    assert f"{100 * finished.verdict('averted'):.3g}%" in answer


def test_json_has_it_too(finished: Finished) -> None:
    shown = Launcher(finished.folder).mpiens("show", "run.h5", "--json").output
    scenarios = {s["name"]: s for s in json.loads(shown)["scenarios"]}
    assert "verdict" not in scenarios["open"]["summaries"]["ill"]["final"]
    verdict = scenarios["masks"]["summaries"]["ill"]["final"]["verdict"]
    assert verdict["better"] == finished.verdict("better")
    assert verdict["averted_interval"] == finished.verdict("averted_interval").tolist()


def test_csv_has_a_column_for_each_number(finished: Finished) -> None:
    shown = Launcher(finished.folder).mpiens("show", "run.h5", "--csv").output
    rows = {row["scenario"]: row for row in csv.DictReader(io.StringIO(shown))}
    open_, masks = rows["open"], rows["masks"]
    wanted = {
        "mean": finished.verdict("mean"),
        "mean.low": finished.verdict("mean_interval")[0],
        "better.high": finished.verdict("better_interval")[1],
        "averted": finished.verdict("averted"),
        "averted.low": finished.verdict("averted_interval")[0],
    }
    for name, value in wanted.items():
        assert float(masks[f"ill.final.verdict.{name}"]) == value
    assert {open_[f"ill.final.verdict.{name}"] for name in wanted} == {""}


def test_many_ranks_say_the_same(finished: Finished, tmp_path: Path) -> None:
    for name in ("model.py", "run.toml"):
        shutil.copy(finished.folder / name, tmp_path)
    launcher = Launcher(tmp_path)
    assert launcher.mpiens("-n", "3", "run.toml").code == 3
    digests = [
        Launcher(folder).mpiens("show", "run.h5", "--digest").output
        for folder in (finished.folder, tmp_path)
    ]
    assert digests[0] == digests[1]
    with h5py.File(tmp_path / "run.h5") as file:
        assert (file["/comparison/ill/final.better"][1]) == finished.verdict("better")


def test_few_replicates_are_said_to_be_few(launcher: Launcher, tmp_path: Path) -> None:
    write(tmp_path, "model.py", "def simulate(rng):\n    return {'x': rng.normal()}")
    spec = '[ensemble]\nmodel = "model.py:simulate"\nreplicates = 4\nseed = 1\n'
    write(tmp_path, "run.toml", spec + "[bands]\nlevels = [0.1, 0.5, 0.9]\n")
    output = launcher.mpiens("run.toml").output
    assert "of 4 replicates [10%, 90%] holds some 48% of future ones" in output
    assert "4 replicates are too few to say how far the 10% and 50% and 90%" in output
    assert "29 are enough" in output
