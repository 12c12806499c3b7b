"""What intervals, predictions and verdicts of a file cover, over a thousand ensembles.

Every draw of the sweep is an ensemble of its own, some with a failed replicate; what is
counted is how often the numbers in the file enclose what is known of the model.
"""

from __future__ import annotations

import math
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import Launcher, write
from numpy.typing import NDArray
from scipy import stats

DRAWS, REPLICATES = 1000, 20
MEAN, EFFECT = 10.0, -0.3
MODEL = f"""
import numpy as np

def simulate(seed, scenario, replicate, *, draw, effect=None):
    if draw % 10 == 0 and replicate == 3 and effect is not None:
        raise ValueError("no luck")
    rng = np.random.default_rng([seed, draw])
    shared, own = rng.normal(size=2)
    if effect is None:
        value = {MEAN} + shared
    else:
        value = {MEAN} + effect + 0.8 * shared + 0.6 * own
    heavy, ties = rng.standard_cauchy(), rng.poisson(1.5)
    return {{"normal": value, "heavy": heavy, "ties": ties}}
"""
SPEC = f"""
[ensemble]
model = "model.py:simulate"
replicates = {REPLICATES}
seed = 20261127
pairing = "PAIRING"

[scenarios.open]
[scenarios.masks]
effect = {EFFECT}

[sweep]
draw = {[*range(DRAWS)]}

[bands]
levels = [0.05, 0.5, 0.95]
baseline = "open"
better = "lower"
"""
LAWS = {"heavy": stats.cauchy(), "ties": stats.poisson(1.5), "normal": stats.norm(MEAN)}


class Finished:
    """A complete file of many ensembles."""

    def __init__(self, path: Path, *, paired: bool) -> None:
        self.path, self.paired = path, paired

    def read(self, name: str) -> NDArray[np.float64]:
        """A dataset of every draw: of the scenario that is compared, if of either."""
        with h5py.File(self.path) as file:
            whole: NDArray[np.float64] = file[name][:]
        return whole[DRAWS:]

    def covered(self, name: str, truth: float) -> float:
        """The share of draws whose interval encloses the truth, or touches it."""
        low, high = np.moveaxis(self.read(name), -1, 0)
        return float(np.mean((low <= truth) & (truth <= high)))


@pytest.fixture(scope="module", params=["common", "independent"])
def finished(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    folder = tmp_path_factory.mktemp(request.param)
    write(folder, "model.py", MODEL)
    write(folder, "run.toml", SPEC.replace("PAIRING", request.param))
    launch = Launcher(folder).mpiens("-n", "2", "run.toml", limit=240)
    assert launch.code == 3, launch.errors
    return Finished(folder / "run.h5", paired=request.param == "common")


def near(share: float) -> object:
    """Within four standard errors of what a thousand draws tell."""
    return pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / DRAWS))


@pytest.mark.parametrize("output", ["heavy", "ties"])
def test_quantiles_lie_within_their_intervals(finished: Finished, output: str) -> None:
    law = LAWS[output]
    with h5py.File(finished.path) as file:
        interval = file[f"/summary/{output}/final.interval"][:]
    assert np.isnan(interval[:, [0, 2]]).all(), "20 are too few for 5% and 95%"
    low, high = interval[:, 1, 0], interval[:, 1, 1]
    inside = float(np.mean((low <= law.median()) & (law.median() <= high)))
    if output == "heavy":  # of 20 the 6th and the 15th
        assert inside == near(
            stats.binom(20, 0.5).cdf(14) - stats.binom(20, 0.5).cdf(5)
        )
    assert inside >= 0.95


@pytest.mark.parametrize("output", LAWS)
def test_future_replicates_fall_where_it_was_predicted(
    finished: Finished, output: str
) -> None:
    law = LAWS[output]
    with h5py.File(finished.path) as file:
        assert file["/prediction"][:].tolist() == [0.9]
        low, high = file[f"/summary/{output}/final.prediction"][:DRAWS, 0].T
    below = low - 1 if output == "ties" else low  # what equals an end is within
    held = float(np.mean(law.cdf(high) - law.cdf(below)))
    assert held >= 0.9 - 0.005
    if output != "ties":  # the least and the largest of 20 hold 19 of 21
        assert held == pytest.approx(19 / 21, abs=0.01)


def test_mean_differences_and_averted_shares_lie_within_their_intervals(
    finished: Finished,
) -> None:
    path = "/comparison/normal/final"
    assert finished.covered(f"{path}.mean_interval", EFFECT) == near(0.95)
    assert finished.covered(f"{path}.averted_interval", -EFFECT / MEAN) == near(0.95)


def test_the_probability_of_being_better_lies_within_its_interval(
    finished: Finished,
) -> None:
    width = math.sqrt(2 - 2 * 0.8) if finished.paired else math.sqrt(2)
    truth = stats.norm.cdf(-EFFECT / width)
    found = finished.covered("/comparison/normal/final.better_interval", truth)
    if finished.paired:  # by Clopper and Pearson, who cover at least what they say
        assert 0.95 <= found <= 0.995
    else:
        assert found == near(0.95)
    estimates = finished.read("/comparison/normal/final.better")
    error = 0.5 / math.sqrt(REPLICATES * DRAWS)
    assert np.mean(estimates) == pytest.approx(truth, abs=5 * error)


def test_pairing_saves_what_the_correlation_promises(finished: Finished) -> None:
    saved = finished.read("/comparison/normal/final.reduction")
    if finished.paired:  # var / var, of a ratio that varies: 1 / (1 - correlation)
        assert np.median(saved) == pytest.approx(1 / (1 - 0.8), rel=0.1)
    else:
        assert np.isnan(saved).all()
