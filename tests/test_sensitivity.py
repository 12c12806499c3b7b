"""What the parameters of a design do: from the spec to the file and the table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Launcher, write
from scipy import stats

SAMPLES = 128
BLOCK = 5
NOISE = 1.5
MODEL = f"""
import math

def simulate(rng, scenario, replicate, *, x, y, z, gain=1.0):
    if scenario.endswith("sample=17") and replicate == 1:
        raise ValueError("no luck")
    if scenario.endswith("sample=23"):
        raise ValueError("no luck at all")
    value = math.sin(x) + 7 * math.sin(y) ** 2 + 0.1 * z**4 * math.sin(x)
    value = gain * value + {NOISE} * rng.normal()
    return {{"curve": [value, x, 3.0], "level": 2 * value}}
"""
RANGES = """
ranges.x = { low = -3.141592653589793, high = 3.141592653589793 }
ranges.y = { low = -3.141592653589793, high = 3.141592653589793 }
ranges.z = { low = -3.141592653589793, high = 3.141592653589793 }
"""
SPEC = f"""
[ensemble]
model = "model.py:simulate"
replicates = 2
seed = 5
pairing = "independent"

[scenarios.plain]
[scenarios.loud]
gain = 10.0

[design]
method = "saltelli"
samples = {SAMPLES}
{RANGES}

[outputs.curve]
dims = ["day"]
summaries = ["peak", "final"]
"""


def launch(launcher: Launcher, ranks: int, *words: str) -> None:
    done = launcher.mpiens("-n", str(ranks), "run.toml", *words, limit=120)
    assert done.code == 3, done.errors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, "model.py", MODEL)
    write(tmp_path, "run.toml", SPEC)
    return tmp_path


def read_group(path: Path) -> dict[str, bytes]:
    """All arrays below /sensitivity."""
    found: dict[str, bytes] = {}
    with h5py.File(path) as file:
        file["/sensitivity"].visititems(
            lambda name, item: (
                found.update({name: item[()].tobytes()})
                if isinstance(item, h5py.Dataset)
                else None
            )
        )
    return found


def test_a_saltelli_design_tells_what_every_parameter_does(
    folder: Path, launcher: Launcher
) -> None:
    launch(launcher, 2)
    with h5py.File(folder / "run.h5") as file:
        assert file["/case"].asstr()[:].tolist() == ["plain", "loud"]
        assert file["/factor"].asstr()[:].tolist() == ["x", "y", "z"]
        group = file["/sensitivity/level"]
        means = file["/summary/level/final.mean"][:].reshape(2, SAMPLES, BLOCK)
        first, total = group["final.first"], group["final.total"]
        assert first.dims[0][0] == file["/case"]
        assert first.dims[1][0] == file["/factor"]
        assert group["final.first_interval"].attrs["confidence"] == 0.95
        # with closed form, but for noise: of the loud case there is hardly any
        np.testing.assert_allclose(first[1], [0.314, 0.442, 0.0], atol=0.15)
        np.testing.assert_allclose(total[1], [0.558, 0.442, 0.244], atol=0.15)
        noise = group["final.noise"][:]
        ishigami = 0.5 + 7**2 / 8 + 0.1 * math.pi**4 / 5 + 0.01 * math.pi**8 / 18
        assert noise[0] == pytest.approx(
            (NOISE**2 / 2) / (ishigami + NOISE**2 / 2), rel=0.4
        )
        assert noise[1] < noise[0] / 30
        # by an independent implementation, where the failed block is left out
        for case, own in enumerate(means):
            known = own[~np.isnan(own).any(axis=1)]
            assert len(known) == SAMPLES - 1, "of one point all replicates failed"
            a, b = known[:, 0], known[:, -1]
            variance = np.var(np.concatenate([a, b]))
            squares = (known[:, 1:-1] - a[:, None]) ** 2
            np.testing.assert_allclose(total[case], squares.mean(axis=0) / 2 / variance)
            b, a = b - known.mean(), a - known.mean()
            parts = known[:, 1:-1] - known.mean() - a[:, None]
            np.testing.assert_allclose(
                first[case], (b[:, None] * parts).mean(axis=0) / variance
            )
            x = file["/parameters/x"][:].reshape(2, SAMPLES, BLOCK)[case]
            ends = [0, BLOCK - 1]
            theirs = stats.spearmanr(
                x[:, ends].ravel(), own[:, ends].ravel(), nan_policy="omit"
            )
            found = group["final.correlation"][case, 0]
            assert found == pytest.approx(theirs.statistic)
        # over time: the second day is x itself, and the third never varies
        series = file["/sensitivity/curve/series.total"][:]
        assert series.shape == (2, 3, 3)
        np.testing.assert_array_equal(series[0, :, 0], total[0])
        np.testing.assert_allclose(series[:, 0, 1], 1, atol=0.1)
        assert (series[:, 1:, 1] == 0).all()
        assert np.isnan(series[:, :, 2]).all()
        own = file["/sensitivity/curve/series.correlation"][0, :, 1]
        assert own[0] == pytest.approx(1)
        assert abs(own[1:]).max() < 0.3
        assert file["/sensitivity/curve/series.first"].dims[2][0] == file["/day"]
    shown = launcher.mpiens("show", "run.h5").output
    title = next(n for n in shown.splitlines() if "what the parameters do, lo" in n)
    assert title.strip() == "curve, peak: what the parameters do, loud, 95% sure"
    assert "of the variance over the design is noise of the replicates" in shown
    document = json.loads(launcher.mpiens("show", "run.h5", "--json").output)
    told = document["sensitivity"]
    assert [(t["case"], t["output"], t["summary"]) for t in told] == [
        *(("plain", "curve", "peak"), ("loud", "curve", "peak")),
        *(("plain", "curve", "final"), ("loud", "curve", "final")),
        *(("plain", "level", "final"), ("loud", "level", "final")),
    ]
    assert told[0]["factor"] == ["x", "y", "z"]
    assert len(told[0]["first_interval"]) == 3


def test_any_number_of_ranks_and_shards_tell_the_same(
    folder: Path, launcher: Launcher
) -> None:
    launch(launcher, 3)
    launch(launcher, 1, "-o", "alone.h5")
    whole = read_group(folder / "run.h5")
    assert {name.partition("/")[0] for name in whole} == {"curve", "level"}
    assert read_group(folder / "alone.h5") == whole
    for shard in ("0/2", "1/2"):
        launch(launcher, 1, "--shard", shard)
    shards = sorted(path.name for path in folder.glob("run.*-of-2.h5"))
    merged = launcher.mpiens("merge", *shards, "-o", "merged.h5")
    assert merged.code == 3, merged.errors
    assert read_group(folder / "merged.h5") == whole


def test_more_samples_run_only_what_is_new(folder: Path, launcher: Launcher) -> None:
    launch(launcher, 2)
    more = SPEC.replace(f"samples = {SAMPLES}", f"samples = {SAMPLES + 4}")
    write(folder, "run.toml", more)
    launch(launcher, 2)
    grown = read_group(folder / "run.h5")
    with h5py.File(folder / "run.h5") as file:
        assert file["/scenario"].shape == (2 * (SAMPLES + 4) * BLOCK,)
    launch(launcher, 1, "-o", "fresh.h5")
    assert read_group(folder / "fresh.h5") == grown


@pytest.mark.parametrize("method", ["lhs", "sobol", "halton"])
def test_other_designs_tell_rank_correlations(
    folder: Path, launcher: Launcher, method: str
) -> None:
    named = f'{RANGES}ranges.name = {{ choices = ["a", "b"] }}'
    text = SPEC.replace("saltelli", method).replace(RANGES, named)
    write(folder, "run.toml", text)
    write(folder, "model.py", MODEL.replace("z, gain", "z, name, gain"))
    launch(launcher, 2)
    with h5py.File(folder / "run.h5") as file:
        group = file["/sensitivity/level"]
        assert {*group} == {
            *("final.correlation", "final.correlation_interval", "final.noise")
        }
        own = file["/summary/level/final.mean"][:].reshape(2, SAMPLES)
        z = file["/parameters/z"][:].reshape(2, SAMPLES)
        for case in range(2):
            found = group["final.correlation"][case]
            theirs = stats.spearmanr(z[case], own[case], nan_policy="omit").statistic
            assert found[2] == pytest.approx(theirs)
            assert np.isnan(found[3]), "names have no ranks"
    assert "rank correlation" in launcher.mpiens("show", "run.h5").output
